"""`python -m tinyldm.evaluate.gallery`: unseen outlines in every colour, with and without control."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyldm.data.dataset import Dataset
from tinyldm.data.pictures import Rows, hint_image, save_animation, save_grid
from tinyldm.diffusion import seeded
from tinyldm.ldm import Control, LatentDiffusion, Passes, generate
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.progress import progress
from tinyldm.training.machine import process
from tinyldm.training.networks import check_steps, load_control
from tinyldm.training.run_folder import load_run
from tinyldm.training.settings import within

TILE = 64  # pixels of an image in the picture


@dataclass(frozen=True)
class GallerySettings:
    """Draw the first outlines of the test split in every colour (or tone), with control and without it.

    A row is the hint, one sample for each colour with control, and the same prompts and noise without.
    """

    base: Path = Path("runs/base")
    """Run folder of train_base.py."""
    control: Path = Path("runs/control")
    """Run folder of train_control.py."""
    transfer: bool = False
    """Use the control even if it was trained on another base."""
    rows: int = 8
    """Outlines: the first drawings of the test split."""
    guidance: float = 2.0
    """Classifier-free guidance: 1 is off."""
    steps: int = 25
    """Steps of the sampler, ddim."""
    control_passes: Passes = "prompted"
    """Which passes of guidance the control acts on: both, or the prompted one only [CN, 3.4]."""
    seed: int = 0
    """All samples of row i start from the noise of seed + i."""
    out: Path = Path("gallery.png")
    """The PNG to write."""
    animation: Path | None = None
    """Also write a GIF of the predicted z_0, decoded, after each step."""
    animation_rows: int = 3
    """Rows of the animation."""
    device: str = "auto"

    def __post_init__(self) -> None:
        within(self, 1, 100, "rows", "animation_rows")
        within(self, 1, 1000, "steps")
        within(self, 0, 2**62, "seed")
        within(self, -1000, 1000, "guidance")
        for path, suffix in ((self.out, ".png"), (self.animation, ".gif")):
            if path and path.suffix.lower() != suffix:
                name = "out" if suffix == ".png" else "animation"
                raise ValueError(f"{name} {path}: name a file that ends in {suffix}")


def first_of_each(origins: Tensor, number: int) -> list[int]:
    """The first image of each of the first so many drawings, by origins (n,)."""
    seen: dict[int, int] = {}
    for i, origin in enumerate(origins.tolist()):
        seen.setdefault(origin, i)
    return [*seen.values()][:number]


def in_every_colour(data: Dataset, index: int) -> list[str]:
    """The caption of an image with each value of its attribute: that of an image of the class which has it.

    Where there is none, with a small --limit, it is the image's own.
    """
    captions, (name, attribute) = data.captions.full(), [*data.labels.items()][1]
    same_class = data.labels["class"] == data.labels["class"][index]
    found = []
    for value in range(len(data.names[name])):
        others = (same_class & (attribute == value)).nonzero()
        found.append(captions[others[0] if len(others) else index])
    return found


def predicted(
    ldm: LatentDiffusion, prompts: Sequence[str], seed: int, steps: int, **settings: Any
) -> Iterator[Tensor]:
    """Yield the predicted z_0 (b, c, h, w) of each step of ddim; the last is the sample.

    z_s = alpha_s z_0 + sigma_s eps and z_t = alpha_t z_0 + sigma_t eps are solved for z_0 [DDIM, eq. 12].
    """
    z_t = seeded(seed, len(prompts))(torch.Size([len(prompts), *ldm.latent_shape])).to(ldm.device)
    timesteps, schedule = pairwise(ldm.schedule.timesteps(steps)), ldm.schedule
    samples = generate(ldm, prompts, sampler="ddim", seed=seed, steps=steps, **settings)
    for (t, s), z_s in zip(timesteps, samples, strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        ratio = sigma_s / sigma_t
        yield (z_s - ratio * z_t) / (alpha_s - ratio * alpha_t)
        z_t = z_s


@torch.no_grad()
def latents_of_steps(
    ldm: LatentDiffusion, prompts: Sequence[Sequence[str]], control: Control, **settings: Any
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the predicted z_0 (m, c, h, w) of m rows a step: every colour with control, then without."""
    columns = [*zip(*prompts, strict=True)]
    runs = [
        predicted(ldm, column, controls=controls, **settings)
        for controls in ([control], [])
        for column in columns
    ]
    yield from zip(*runs, strict=True)


@torch.no_grad()
def decoded(
    ldm: LatentDiffusion, labels: Sequence[str], hints: Tensor, latents: Sequence[Tensor]
) -> Rows:
    """The rows of a picture, as many as labels: a hint, half of the latents decoded, a gap, the other half."""
    n, half = len(labels), len(latents) // 2
    pictures = [ldm.vae.decode(z_0[:n]).clamp(-1, 1).cpu() for z_0 in latents]
    gap = torch.ones_like(pictures[0][0])
    return [
        (label, [hint_image(hint), *x[:half], gap, *x[half:]])
        for label, hint, x in zip(labels, hints, zip(*pictures, strict=True), strict=False)
    ]


def main(settings: GallerySettings) -> None:
    """Write the picture, and the animation."""
    s = settings
    files.check_writable("--out", s.out)
    if s.animation:
        files.check_writable("--animation", s.animation)
    with process(s.device, "fp32", threads=torch.get_num_threads()) as machine:
        ldm, (test,) = load_run(s.base, "test", held_out=True)
        check_steps(s.steps, ldm)
        controlnet, condition = load_control(s.control, s.base, ldm, s.transfer)
        machine.place(ldm, controlnet)
        picked = first_of_each(test.origins, s.rows)
        hints = condition(test.images[picked])
        prompts = [in_every_colour(test, i) for i in picked]
        name, values = [*test.names.items()][1]
        labels = [of[0].replace(values[0], f"[{name}]") for of in prompts]
        steps = latents_of_steps(
            ldm,
            prompts,
            Control(controlnet, hints.to(machine.device)),
            guidance=s.guidance,
            steps=s.steps,
            seed=s.seed,
            control_passes=s.control_passes,
        )
        frames = list(progress(steps, total=s.steps, desc="gallery", unit="step"))
        save_grid(s.out, decoded(ldm, labels, hints, frames[-1]), TILE)
        print(s.out)
        if s.animation:
            few = labels[: s.animation_rows]
            save_animation(s.animation, [decoded(ldm, few, hints, z) for z in frames], TILE)
            print(s.animation)


if __name__ == "__main__":
    run_command(lambda: main(parse(GallerySettings)))
