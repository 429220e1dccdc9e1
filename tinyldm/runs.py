"""Run folders: opened once, never overwritten by accident; and what every command computes from one."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tinyldm import files
from tinyldm.config import BaseConfig, ControlConfig
from tinyldm.data import load, to_float
from tinyldm.errors import UserError
from tinyldm.ldm import NO_BASE, LatentDiffusion
from tinyldm.training import plot_losses
from tinyldm.vae import VAE


def open_run(out: Path, config: BaseConfig | ControlConfig) -> None:
    """Make the run folder and write settings.json into it.

    Raises UserError if it holds a run (unless --overwrite), is no run folder of ours, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / "settings.json").exists():
            raise UserError(f"--out {out}: a folder with other content; name a new one")
        if not config.run.overwrite:
            raise UserError(f"--out {out}: holds a run already; give --overwrite or another folder")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror})") from error
    files.write_json(out / "settings.json", asdict(config))


def finish_run(out: Path) -> None:
    """Draw the loss curves and say where everything is."""
    plot_losses(out)
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


def hints_of(condition: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Images uint8 (n, k, H, W) -> hints uint8 (n, 1, H, W) in {0, 1}, cached once for all steps."""
    batches = tqdm(images.split(1000), desc="hints", unit_scale=1000, unit="image", leave=False)
    return torch.cat([condition(to_float(batch)).to(torch.uint8) for batch in batches])
