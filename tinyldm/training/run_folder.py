"""Run folders: opened once, never overwritten by accident; and what every command reads from one."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from tinyldm.data import load
from tinyldm.data.dataset import Dataset
from tinyldm.data.emoji import find_font, font_checksum
from tinyldm.data.folder import channels_of, folder_checksum, folder_dataset
from tinyldm.ldm import LatentDiffusion
from tinyldm.support import files
from tinyldm.support.decode import decode
from tinyldm.support.errors import Finished, UserError, warned
from tinyldm.support.sealed import Sealed, is_sealed
from tinyldm.training.checkpoint import METRICS, REMEDY, Checkpoints
from tinyldm.training.log import plot_losses
from tinyldm.training.machine import Machine, keep_threads
from tinyldm.training.networks import NO_BASE, SETTINGS, base_checksum, load_base
from tinyldm.training.settings import BaseSettings, ControlSettings, DataSettings, MachineSettings
from tinyldm.training.team import check_parts

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
NEW = {"min_count", "canny_low", "canny_high"}
OF_FOLDERS = "channels", "background", "conditioning_image_column", "skip_bad_images"
REPLACING = "replacing.json"  # in a run that is to replace the one which stands aside
# what trainings write into a run folder
OURS = (
    r"(settings|config|vocabulary|manifest|replacing)\.json|metrics\.jsonl|loss\.png|"
    r"\w+\.safetensors|previews|hints|checkpoint-\d+"
)
# settings that may differ when a run is resumed: at most the rounding and the noise depend on them
FREE = {
    *("preset", "resume", "overwrite", "device", "threads", "preview_every"),
    *("checkpointing_steps", "checkpoints_total_limit"),
    *("gradient_accumulation_steps", "gradient_checkpointing"),
    *("out", "base", "data_dir"),  # how a path is spelled; the contents have checksums
}


def described(settings: BaseSettings | ControlSettings, machine: Machine) -> dict:
    """What settings.json says: every flag, the precision that was picked, the identity of base and font."""
    content = json.loads(json.dumps(asdict(settings), default=str))
    content["run"]["precision"] = PRECISIONS[machine.dtype]
    content["run"]["threads"] = torch.get_num_threads()
    for fit in (content[name] for name in ("fit", "vae_fit") if name in content):
        if fit["lr_scheduler"] == "cosine":
            del fit["lr_scheduler"]  # runs from before there was another are resumed
    for name in NEW & content.keys():  # runs from before there were these are resumed
        if content[name] == getattr(type(settings), name):
            del content[name]
    if isinstance(settings, ControlSettings):
        content["base_sha256"] = base_checksum(settings.base)
        return content
    data = content["data"]
    if settings.data.data_dir:
        data["data_dir"] = str(files.real(settings.data.data_dir))
    if settings.data.dataset == "emoji":
        content["font_sha256"] = font_checksum(settings.data.data_dir)
    else:
        del data["views"]  # the others have none, and runs from before there were views are resumed
    if settings.data.folder:
        data["dataset"] = str(files.real(settings.data.folder))
        content["folder_sha256"] = folder_checksum(
            settings.data.folder, settings.data.conditioning_image_column
        )
    else:
        for name in OF_FOLDERS:
            del data[name]
    return content


def flat(settings: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}, without what may differ when a run is resumed."""
    found: dict[str, object] = {}
    for key, value in settings.items():
        below = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if below else {prefix + key: value}
    if "folder_sha256" in found:
        del found["data.dataset"]  # only how its path is spelled
    return {key: value for key, value in found.items() if key.split(".")[-1] not in FREE}


def aside(out: Path) -> Path:
    """Where the run stands that --overwrite is replacing."""
    return out.with_name(f"{out.name}.old")


def replaces(out: Path) -> bool:
    """Is what stands aside the run that this one notes to replace, by the checksum of its settings?"""
    note, old = out / REPLACING, aside(out) / SETTINGS
    if not (note.is_file() and old.is_file()):
        return False
    return files.read_json(note, "delete it") == files.sha256(old)


def is_run(folder: Path) -> bool:
    """Did `open_run` make this folder?"""
    try:
        content = files.read_json(folder / SETTINGS, "")
        return {"preset", "run", "fit"} <= set(content)
    except (UserError, TypeError):
        return False


def check_out(
    settings: BaseSettings | ControlSettings, machine: Machine, holding: bool = False
) -> int | None:
    """The checkpoint to resume from, 0 for the start; None for a new run. Changes no unfinished run.

    `holding` tells that this process holds the run. Raises UserError if the run folder may not be used
    so, or a batch cannot be shared, and Finished if nothing is left to do.
    """
    check_batches(settings, machine)
    out, run = files.real(settings.out), settings.run
    with files.expecting("a run folder", out, "name another --out"):
        if isinstance(settings, ControlSettings):
            base = files.real(settings.base)
            if {out, aside(out)} & {base, *base.parents}:
                raise UserError(f"--out {out}: holds the base {base}; name another folder")
        if not run.resume:
            check_room(out, run.overwrite)
            return None
        at = check_resumable(out, run.resume, described(settings, machine))
    if is_sealed(out):
        if not machine.team.rank:
            with contextlib.nullcontext() if holding else held(out):
                complete(out)
        raise Finished(f"{out}: finished already")
    return at


def check_batches(settings: BaseSettings | ControlSettings, machine: Machine) -> None:
    """Raise UserError unless every batch can be shared equally."""
    sizes = {"--batch-size": settings.fit.batch_size}
    if isinstance(settings, BaseSettings):
        sizes["--vae-fit.batch-size"] = settings.vae_fit.batch_size
    for flag, size in sizes.items():
        check_parts(size, machine.team, machine.accumulate, flag)


def check_room(out: Path, overwrite: bool) -> None:
    """Raise UserError unless a new run may be made there."""
    if not out.name or (os.path.exists(out) and not os.path.isdir(out)):
        raise UserError(f"--out {out}: is no folder; name one")
    if not files.writable(out) or not files.writable(out.parent):
        raise UserError(f"--out {out}: cannot be written there")
    if os.path.isdir(out) and any(not files.is_temporary(path) for path in out.iterdir()):
        check_replaceable(out, overwrite)
    if os.path.lexists(aside(out)) and not replaces(out):
        raise UserError(f"--out {out}: {aside(out)} is in the way; move it to {out} or elsewhere")


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise UserError unless the folder holds a run, and nothing else, that may be replaced."""
    if not is_run(out):
        raise UserError(f"--out {out}: a folder with other content; name a new one")
    if not overwrite:
        remedy = "give --resume latest, --overwrite or another folder"
        raise UserError(f"--out {out}: holds a run already; {remedy}")
    if others := [p.name for p in out.iterdir() if not re.fullmatch(OURS, p.name)]:
        raise UserError(f"--overwrite: {out} also holds {others[0]}; move that first")
    if replaces(out) and not is_sealed(out) and Checkpoints(out).numbers():
        remedy = "give --resume latest, or delete it"
        raise UserError(f"--overwrite: {out} is half of a run that replaces another; {remedy}")


def check_resumable(out: Path, resume: Path, settings: dict) -> int:
    """The checkpoint that --resume names, 0 for a run that is finished and undamaged. Raises UserError."""
    path, remedy = out / SETTINGS, "there is no run to resume; leave out --resume"
    content = files.read_json(path, remedy)
    with files.expecting("the settings of a run", path, remedy):
        before, after = flat(content), flat(settings)
    changed = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    if changed:
        pairs = "; ".join(f"{k}: {before.get(k)} then, {after.get(k)} now" for k in changed)
        raise UserError(
            f"--resume: {out} holds a run with other settings ({pairs}); "
            "give the same, or start over with --overwrite"
        )
    if is_sealed(out):
        Sealed(out, "move this run away, or start over with --overwrite").verify()
        return 0
    checkpoints = Checkpoints(out, run=fingerprint(settings))
    return latest(checkpoints) if str(resume) == "latest" else named(checkpoints, resume)


def latest(checkpoints: Checkpoints) -> int:
    """The newest checkpoint, 0 for a run that has not saved any. Raises UserError if some were lost."""
    number = checkpoints.newest()
    lines = files.read_lines(checkpoints.folder / METRICS)
    if not number and (checkpoints.numbers() or any("checkpoint" in line for line in lines)):
        raise UserError(f"--resume latest: {checkpoints.folder} has lost its checkpoints; {REMEDY}")
    return number


def named(checkpoints: Checkpoints, path: Path) -> int:
    """The checkpoint with this path. Raises UserError if it is none of this run, or damaged."""
    numbers = {files.real(checkpoints.path(n)): n for n in checkpoints.numbers()}
    if files.real(path) not in numbers:
        known = ", ".join(["latest", *(str(checkpoints.path(n)) for n in numbers.values())])
        raise UserError(f"--resume {path}: no checkpoint of {checkpoints.folder}; it has {known}")
    checkpoints.open(number := numbers[files.real(path)])
    return number


def fingerprint(settings: dict) -> str:
    """What checkpoints know their run by."""
    return hashlib.sha256(json.dumps(flat(settings), sort_keys=True).encode()).hexdigest()


def threads_of(out: Path) -> int:
    """With how many threads a run was begun. Raises UserError."""
    path = out / SETTINGS
    with files.expecting("the settings of a run", path, "give --threads"):
        run = files.read_json(path, "give --threads")["run"]
        return MachineSettings(threads=run["threads"]).threads or torch.get_num_threads()


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Inside, no other process may train into this folder. Raises UserError if one does."""
    busy = f"--out {out}: another training is writing there; wait for it, or name another folder"
    with files.locked(out.with_name(f".{out.name}.lock"), busy):
        files.sweep(out)
        yield


@contextmanager
def open_run(settings: BaseSettings | ControlSettings, machine: Machine) -> Iterator[Checkpoints]:
    """Hold the run folder while a run is trained and saved into it: a new one, or one that is resumed.

    With --overwrite the old run stands aside until the new one is complete, and comes back if that fails
    before its first checkpoint. Of a team only the first writes there. Raises UserError.
    """
    out, team, first = files.real(settings.out), machine.team, not machine.team.rank
    with contextlib.ExitStack() as stack:
        with team.together(machine.device):
            if first:
                stack.enter_context(held(out))
            at = check_out(settings, machine, holding=first)
        with team.together(machine.device):
            if first and at is None:
                make(out, described(settings, machine))
            elif first and machine.device.type == "cpu" and not settings.run.threads:
                keep_threads(threads_of(out))
        folder = out if first else stack.enter_context(copied(out))
        checkpoints = checkpoints_of(settings, machine, folder, at)
        try:
            yield checkpoints
        except Exception:
            if first and at is None and not checkpoints.numbers():
                unmake(out)
            raise
        with team.together(machine.device):
            pass
        if first:
            complete(out)


def checkpoints_of(
    settings: BaseSettings | ControlSettings, machine: Machine, folder: Path, at: int | None
) -> Checkpoints:
    """Those of a run that is trained in this folder: a new one, or one that is resumed from checkpoint `at`."""
    run, content = settings.run, described(settings, machine)
    limits = run.checkpointing_steps, run.checkpoints_total_limit
    return Checkpoints(folder, *limits, at or 0, fingerprint(content))


@contextmanager
def copied(out: Path) -> Iterator[Path]:
    """A folder that starts as a copy of the run, for another process than the one that writes into it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(out, folder, dirs_exist_ok=True)
        yield Path(folder)


def make(out: Path, content: dict) -> None:
    """Make a run folder. A run that stands there is put aside last of all, which the new one notes."""
    replaced = is_run(out)
    if replaces(out):
        if is_sealed(out):
            complete(out)
        else:
            unmake(out)
    if not replaced and out.exists():  # an empty folder, perhaps somebody's current one
        files.write_json(out / SETTINGS, content)
        return
    with files.whole_folder(out) as folder:
        files.write_json(folder / SETTINGS, content)
        if replaced:
            files.write_json(folder / REPLACING, files.sha256(out / SETTINGS))
            files.move(out, aside(out))


def unmake(out: Path) -> None:
    """Delete a run in which nothing was trained, and put back what it was to replace."""
    replacing = replaces(out)
    files.discard(out)
    if replacing:
        files.move(aside(out), out)


def complete(out: Path) -> None:
    """Delete what a finished run needs no more, and draw its losses, unless that was done before."""
    if is_sealed(out):
        Checkpoints(out).clear()
        if replaces(out):
            files.discard(aside(out))
        files.remove(out / REPLACING)
        if not (plot := out / "loss.png").exists():
            with warned(f"drawing {plot}"):
                plot_losses(out)


def load_data(
    settings: DataSettings, *splits: str, held_out: bool = False, channels: int = 0
) -> list[Dataset]:
    """Splits of a dataset, with its held-out pairs or without; `channels` 0 leaves them to it. UserError."""
    s = settings
    if s.folder:
        column = s.conditioning_image_column
        how = s.resolution, s.limit, s.background, column, s.skip_bad_images
        channels = channels or {"grey": 1, "rgb": 3, "auto": 0}[s.channels]
        channels = channels or channels_of(s.folder, *how)
        return [folder_dataset(s.folder, split, *how, channels) for split in splits]
    sizes = s.resolution, s.data_dir, s.limit, held_out, s.views
    return [load(s.dataset, split, *sizes) for split in splits]


def data_settings(base: Path) -> DataSettings:
    """What a base was trained on; a folder of data that has gone is left open. Raises UserError.

    It must be the same version of the font, if it was a font, and the same pictures, if it was a folder.
    """
    sealed = Sealed(base, NO_BASE)
    with files.expecting("the settings of a base", base / SETTINGS, NO_BASE):
        content = json.loads(sealed.read(SETTINGS))
        known = asdict(DataSettings())  # not all are told of every dataset
        folder = Path(content["data"]["dataset"]) if "folder_sha256" in content else None
        if folder and not folder.is_dir():
            raise UserError(f"{base}: was trained on {folder}, which is gone; put it back")
        data: DataSettings = decode(DataSettings, {**known, **content["data"]})
        font = content.get("font_sha256")
    there = data.data_dir and os.path.isdir(data.data_dir)
    data = data if there else replace(data, data_dir=None)
    if font and font != font_checksum(data.data_dir):
        other = (
            f"{find_font(data.data_dir)}: not the version of the font that {base} was trained on"
        )
        raise UserError(f"{other}; set TINYLDM_DATA to a folder with that, or train anew")
    if folder and content["folder_sha256"] != folder_checksum(
        folder, data.conditioning_image_column
    ):
        changed = "its pictures or captions have changed since"
        raise UserError(f"{folder}: {changed} {base} was trained on it; train anew")
    return data


def dataset_of(base: Path) -> str:
    """The name of the dataset that a base was trained on. Raises UserError."""
    return data_settings(base).dataset


def load_run(
    base: Path, *splits: str, augmented: bool = True, held_out: bool = False
) -> tuple[LatentDiffusion, list[Dataset]]:
    """A base's model, and splits of the dataset that it was trained on. Raises UserError.

    Without `augmented`, a drawing has one view, itself.
    """
    data = data_settings(base)
    data = data if augmented else replace(data, views=1)
    ldm = load_base(base)
    every = load_data(data, *splits, held_out=held_out, channels=ldm.vae.config.image_channels)
    expected = (ldm.vae.config.image_channels, ldm.resolution, ldm.resolution)
    if (found := tuple(every[0].images.shape[1:])) != expected:
        raise UserError(
            f"{base / SETTINGS}: images of {found}, not the model's {expected}; {NO_BASE}"
        )
    return ldm, every
