"""`python -m tinyldm.sample`: prompts, and perhaps a hint, to a PNG of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyldm.cli import parse, run_command


@dataclass(frozen=True)
class SampleConfig:
    """Generate images from prompts, steered by the edges of a picture if a ControlNet and a hint are given."""

    base: Path = Path("runs/base")
    """Run folder of train_base.py."""
    control: Path | None = None
    """Run folder of train_control.py; needs --hint."""
    hint: tuple[Path, ...] = ()
    """Pictures to take the edges from: one for all prompts, or one for each; needs --control."""
    hint_is_edges: bool = False
    """The hint is an edge map already, white on black."""
    prompt: tuple[str, ...] = ("",)
    """What to draw, a row of images each: one for all hints, or one for each."""
    num_images: int = 4
    """Images per row."""
    guidance: float = 2.0
    """Classifier-free guidance: 1 is off, more obeys the prompt more."""
    control_scale: float = 1.0
    """Strength of the control: 0 is none, 1 is as trained."""
    sampler: Literal["dpm++", "ddim", "ddpm"] = "dpm++"
    steps: int = 20
    """Steps of the sampler; ddim wants about 50, ddpm hundreds."""
    eta: float = 0.0
    """Noise of the ddim sampler: 0 is deterministic, 1 is ddpm."""
    seed: int = 0
    """Image i of a row starts from noise of seed + i."""
    out: Path = Path("samples.png")
    """The PNG to write; in each row the hint stands first."""
    device: str = "auto"


if __name__ == "__main__":  # before torch is imported: --help and mistakes answer at once
    config = run_command(lambda: parse(SampleConfig))

import os
import sys

import torch
from torch import Tensor
from tqdm import tqdm

from tinyldm.conditions import CONDITIONS
from tinyldm.errors import UserError
from tinyldm.ldm import LatentDiffusion, bind_hint, generate, last, load_control
from tinyldm.pictures import hint_image, read_image, save_grid
from tinyldm.training import pick_device


def check(config: SampleConfig) -> None:
    """Raise UserError for flags that do not fit together, before any work."""
    if (config.control is None) != (not config.hint):
        raise UserError("--control and --hint go together: give both or neither")
    if len({len(config.hint or (None,)), len(config.prompt)} - {1}) > 1:
        raise UserError(f"{len(config.hint)} --hint and {len(config.prompt)} --prompt: give one of either, or as many")
    if not config.prompt:
        raise UserError('--prompt: give at least one; "" is the empty prompt')
    if not 0 <= config.seed < 2**63:
        raise UserError(f"--seed {config.seed}: must be between 0 and 2**63 - 1")
    for name in ("num_images", "steps"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    folder = next(parent for parent in config.out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--out {config.out}: cannot be written into {folder}")
    if config.out.is_dir() or config.out.suffix.lower() != ".png":
        raise UserError(f"--out {config.out}: name a file that ends in .png")


def read_hint(path: Path, ldm: LatentDiffusion, condition: str, is_edges: bool) -> Tensor:
    """A picture's hint (1, 1, H, W) at the resolution of the base."""
    if is_edges:
        hint = (read_image(path, 1, ldm.resolution) > -1).float()  # any edge in a cell, however thin, is an edge
    else:
        hint = CONDITIONS[condition](read_image(path, ldm.vae.config.image_channels, ldm.resolution))
    if not hint.any():
        print(f"note: {path} has no edges", file=sys.stderr)
    return hint


@torch.no_grad()
def main(config: SampleConfig) -> None:
    """Write the grid: row i has prompt i and hint i, or the only one."""
    check(config)
    device = pick_device(config.device)
    ldm = LatentDiffusion.load(config.base)
    if config.steps > ldm.schedule.T:
        raise UserError(f"--steps {config.steps}: the base was trained with {ldm.schedule.T} timesteps at most")
    ldm.to(device)
    hints, controls = [None], [[]]
    if config.control:
        controlnet, condition = load_control(config.control, config.base, ldm)
        hints = [read_hint(path, ldm, condition, config.hint_is_edges).to(device) for path in config.hint]
        controls = [[bind_hint(controlnet.to(device), hint, config.control_scale)] for hint in hints]
    for word in ldm.tokenizer.unknown(config.prompt):
        print(f"note: the base was never trained with the word {word!r}", file=sys.stderr)
    number = max(len(hints), len(config.prompt))
    rows = []
    for i in range(number):
        prompt, hint = config.prompt[i % len(config.prompt)], hints[i % len(hints)]
        settings = {"guidance": config.guidance, "sampler": config.sampler, "steps": config.steps, "eta": config.eta}
        z = generate(ldm, [prompt] * config.num_images, seed=config.seed, controls=controls[i % len(hints)], **settings)
        x = ldm.vae.decode(last(tqdm(z, total=config.steps, desc=f"{i + 1}/{number} {prompt}", unit="step")))
        rows.append((prompt, [*([] if hint is None else [hint_image(hint[0])]), *x]))
    save_grid(config.out, rows)
    print(config.out)


if __name__ == "__main__":
    run_command(lambda: main(config))
