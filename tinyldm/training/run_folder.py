"""Run folders: opened once, never overwritten by accident; and what every command reads from one."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tinyldm.data import load
from tinyldm.data.dataset import Dataset
from tinyldm.ldm import LatentDiffusion
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.training.log import plot_losses
from tinyldm.training.networks import NO_BASE, base_checksum, load_base
from tinyldm.training.settings import BaseSettings, ControlSettings, DataSettings, from_json

FREE = ("preset", "resume", "overwrite", "device")  # settings that may differ when a run is resumed


def open_run(out: Path, settings: BaseSettings | ControlSettings) -> None:
    """Make the run folder with settings.json in it, or with --resume check that it holds this run.

    Raises UserError if it holds a run (unless --overwrite), is no run folder, or cannot be written.
    """
    content = json.loads(json.dumps(asdict(settings), default=str))
    if isinstance(settings, ControlSettings):
        content["base_sha256"] = base_checksum(settings.base)
        base = settings.base.resolve()
        if out.resolve() in (base, *base.parents):
            raise UserError(f"--out {out}: holds the base {settings.base}; name another folder")
    if settings.run.resume:
        return check_resumable(out, content)
    make_room(out, settings.run.overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror})") from error
    files.write_json(out / "settings.json", content)


def make_room(out: Path, overwrite: bool) -> None:
    """Remove the run that the folder holds, if `overwrite`. Raises UserError if it may not be used."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not is_run(out):
        raise UserError(f"--out {out}: a folder with other content; name a new one")
    if not overwrite:
        remedy = "give --resume, --overwrite or another folder"
        raise UserError(f"--out {out}: holds a run already; {remedy}")
    shutil.rmtree(out)


def is_run(folder: Path) -> bool:
    """Did `open_run` make this folder?"""
    try:
        content = json.loads((folder / "settings.json").read_text())
        return {"preset", "run", "fit"} <= set(content)
    except (OSError, ValueError, TypeError):
        return False


def check_resumable(out: Path, settings: dict) -> None:
    """Raise UserError, listing the differences, if the folder holds another run or a finished one."""
    remedy = "there is no run to resume; leave out --resume"
    before, after = flat(files.read_json(out / "settings.json", remedy)), flat(settings)
    changed = [k for k, v in after.items() if before.get(k) != v and k.split(".")[-1] not in FREE]
    if changed:
        differences = "; ".join(f"{k}: {before.get(k)} then, {after[k]} now" for k in changed)
        raise UserError(f"--resume: {out} holds a run with other settings ({differences})")
    if (out / "config.json").exists():
        raise UserError(f"--resume: {out} is finished; give --overwrite or another folder")


def flat(settings: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, object] = {}
    for key, value in settings.items():
        below = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if below else {prefix + key: value}
    return found


def check_levels(hint_widths: Sequence[int], ldm: LatentDiffusion, base: Path) -> None:
    """Raise UserError unless the hint encoder has as many levels as the autoencoder of the base."""
    levels = len(ldm.vae.config.widths)
    if len(hint_widths) != levels:
        raise UserError(f"--hint-widths: give {levels}, as many as the VAE of {base} has")


def finish_run(out: Path, next_command: str) -> None:
    """Draw the losses, delete the checkpoints, and say what to run next."""
    plot_losses(out)
    for path in out.glob("*.checkpoint"):
        path.unlink()
    print(f"{out}: done. Next:\n    {next_command}")


def load_data(settings: DataSettings, *splits: str) -> list[Dataset]:
    """Splits of a dataset. Raises UserError."""
    s = settings
    return [load(s.dataset, split, s.resolution, s.data_dir, s.limit) for split in splits]


def dataset_of(base: Path) -> str:
    """The name of the dataset that a base was trained on. Raises UserError."""
    return data_settings(base).dataset


def data_settings(base: Path) -> DataSettings:
    """What a base was trained on. Raises UserError."""
    path = base / "settings.json"
    with files.expecting("the settings of a base", path, NO_BASE):
        data = files.read_json(path, NO_BASE)["data"]
        folder = Path(data["data_dir"]) if data["data_dir"] else None
        return from_json(DataSettings, {**data, "data_dir": folder})


def load_run(base: Path, *splits: str) -> tuple[LatentDiffusion, list[Dataset]]:
    """A base's model, and splits of the dataset that it was trained on. Raises UserError."""
    return load_base(base), load_data(data_settings(base), *splits)
