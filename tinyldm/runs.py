"""Run folders: opened once, never overwritten by accident; and what every command computes from one."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tinyldm import files
from tinyldm.config import BaseConfig, ControlConfig
from tinyldm.data import load
from tinyldm.dataset import to_float
from tinyldm.errors import UserError
from tinyldm.ldm import NO_BASE, Control, LatentDiffusion, generate, last
from tinyldm.vae import VAE

SAMPLE_BATCH = 100
FREE = ("preset", "resume", "overwrite", "device")  # settings that may differ when a run is resumed


def open_run(out: Path, config: BaseConfig | ControlConfig) -> None:
    """Make the run folder with settings.json in it, or with --resume check that it holds a run of these settings.

    Raises UserError if it holds a run (unless --overwrite), is no run folder of ours, or cannot be written.
    """
    settings = json.loads(json.dumps(asdict(config), default=str))
    if isinstance(config, ControlConfig):
        settings["base_sha256"] = files.read_json(config.base / "config.json", NO_BASE)["sha256"]["unet"]
        if out.resolve() in (config.base.resolve(), *config.base.resolve().parents):
            raise UserError(f"--out {out}: holds the base {config.base}; name another folder")
    if config.run.resume:
        return check_resumable(out, settings)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if out.exists() and any(out.iterdir()):
        if not is_run(out):
            raise UserError(f"--out {out}: a folder with other content; name a new one")
        if not config.run.overwrite:
            raise UserError(f"--out {out}: holds a run already; give --resume, --overwrite or another folder")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror})") from error
    files.write_json(out / "settings.json", settings)


def is_run(folder: Path) -> bool:
    """Did `open_run` make this folder?"""
    try:
        return {"preset", "run", "fit"} <= set(json.loads((folder / "settings.json").read_text()))
    except (OSError, ValueError, TypeError):
        return False


def check_resumable(out: Path, settings: dict) -> None:
    """Raise UserError, listing the differences, if the folder holds no run of these settings, or a finished one."""
    before = flat(files.read_json(out / "settings.json", "there is no run to resume; leave out --resume"))
    after = flat(settings)
    differences = [f"{k}: {before.get(k)} then, {v} now" for k, v in after.items() if before.get(k) != v]
    differences = [text for text in differences if text.split(":")[0].split(".")[-1] not in FREE]
    if differences:
        raise UserError(f"--resume: {out} holds a run with other settings ({'; '.join(differences)})")
    if (out / "config.json").exists():
        raise UserError(f"--resume: {out} is finished; give --overwrite or another folder")


def flat(settings: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    pairs = [
        flat(v, f"{prefix}{k}.").items() if isinstance(v, dict) else [(prefix + k, v)] for k, v in settings.items()
    ]
    return dict(pair for part in pairs for pair in part)


def finish_run(out: Path) -> None:
    """Drop the checkpoints, and say where everything is."""
    for path in out.glob("*.checkpoint"):
        path.unlink()
    print(f"{out}: done")


def load_run(base: Path, *splits: str) -> tuple:
    """(LatentDiffusion, Dataset, ...): a base's model and splits of the dataset that it was trained on. Raises UserError."""
    ldm = LatentDiffusion.load(base)
    data = files.read_json(base / "settings.json", NO_BASE)["data"]
    folder = data["data_dir"] and Path(data["data_dir"])
    return ldm, *(load(data["dataset"], split, data["resolution"], folder, data["limit"]) for split in splits)


@torch.no_grad()
def encode_all(vae: VAE, images: Tensor, device: torch.device) -> Tensor:
    """Images uint8 (n, k, H, W) -> z (n, c, h, w), on the CPU."""
    batches = tqdm(images.split(250), desc="encode", unit_scale=250, unit="image", leave=False)
    with torch.compiler.set_stance("force_eager"):
        return torch.cat([vae.encode(to_float(batch).to(device)).cpu() for batch in batches])


def latents_file(base: Path) -> Path:
    """Where a base keeps the latents of its training images; the name says of which autoencoder they are."""
    return base / f"latents-{files.sha256(base / 'vae.safetensors')[:12]}.safetensors"


def train_latents(base: Path, vae: VAE, images: Tensor, device: torch.device) -> Tensor:
    """z (n, c, h, w) of the training images (n, k, H, W) of a base: those that its training kept, or encoded again."""
    path = latents_file(base)
    z = files.read_tensors(path, "delete it")["z"] if path.exists() else torch.empty(0)
    return z if len(z) == len(images) else encode_all(vae, images, device)


@torch.no_grad()
def sample_images(
    ldm: LatentDiffusion,
    prompts: Sequence[str],
    dtype: torch.dtype,
    controls: Callable[[slice], Sequence[Control]] = lambda part: (),
    seed: int = 0,
    desc: str = "sample",
    **settings,
) -> Tensor:
    """One image per prompt, x (n, k, H, W) in [-1, 1] on the CPU, SAMPLE_BATCH at a time, sampled in `dtype`.

    `controls` makes the controls of a part of the images; `settings` are those of `generate`.
    """
    images = []
    for i in tqdm(range(0, len(prompts), SAMPLE_BATCH), desc=desc, unit_scale=SAMPLE_BATCH, unit="image"):
        part = slice(i, i + SAMPLE_BATCH)
        with torch.autocast(ldm.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            z_0 = last(generate(ldm, prompts[part], controls=controls(part), seed=seed + i, **settings)).float()
        images.append(ldm.vae.decode(z_0).clamp(-1, 1).cpu())
    return torch.cat(images)


def hints_of(condition: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Images uint8 (n, k, H, W) -> hints uint8 (n, 1, H, W) in {0, 1}, cached once for all steps."""
    batches = tqdm(images.split(1000), desc="hints", unit_scale=1000, unit="image", leave=False)
    return torch.cat([condition(to_float(batch)).to(torch.uint8) for batch in batches])
