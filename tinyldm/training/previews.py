"""Sample pictures during training, on validation images, captions and hints."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyldm.data.dataset import Dataset, to_float
from tinyldm.data.pictures import hint_image, save_grid, save_image
from tinyldm.ldm import Control, LatentDiffusion, generate, last
from tinyldm.support.errors import warned
from tinyldm.training.caches import encode_all

PANEL = 256  # validation images whose loss is followed
ROWS, COLUMNS = 8, 4  # prompts, and images of each
STEPS = 10  # of the sampler


def watch_vae(ldm: LatentDiffusion, validation: Dataset, out: Path) -> dict[str, Any]:
    """For `fit` of the autoencoder: the images whose loss is followed, and the preview."""
    images = validation.images[:PANEL]
    return {"validation": (images,), "preview": partial(preview_vae, ldm, images, out)}


def watch_samples(
    ldm: LatentDiffusion, validation: Dataset, out: Path, name: str, control: Control | None = None
) -> dict[str, Any]:
    """For `fit` of the base, or of a control with the validation hints: batch and preview."""
    prompts = validation.captions.full()[:PANEL]
    z_0 = encode_all(ldm.vae, validation.images[:PANEL])
    preview = partial(preview_samples, ldm, prompts, out, name, control=control)
    tokens = ldm.tokenizer.encode(prompts)
    batch = (z_0, control.hint, tokens) if control else (z_0, tokens)
    return {"validation": batch, "preview": preview}


@warned("a preview of the autoencoder")
@torch.no_grad()
def preview_vae(ldm: LatentDiffusion, images: Tensor, out: Path, step: int) -> None:
    """Draw images uint8 (n, k, H, W) above what the autoencoder makes of them."""
    x = to_float(images[:ROWS]).to(ldm.device)
    x_hat = ldm.vae.decode(ldm.vae.encode(x))
    rows = [("validation images", list(x)), ("decoded latents", list(x_hat))]
    save_grid(out / "previews" / f"vae-{step:06}.png", rows)


@warned("a preview of samples")
def preview_samples(
    ldm: LatentDiffusion,
    prompts: list[str],
    out: Path,
    name: str,
    step: int,
    control: Control | None = None,
) -> None:
    """Draw samples of the first prompts, and with a control (b, k, H, W) its hints before them."""
    prompts = prompts[:ROWS]
    controls, hints = [], []
    if control:
        hints = [hint_image(hint) for hint in control.hint[:ROWS]]
        repeated = control.hint[:ROWS].repeat_interleave(COLUMNS, dim=0).to(ldm.device)
        controls = [control._replace(hint=repeated)]
    every = [p for p in prompts for _ in range(COLUMNS)]
    z = last(generate(ldm, every, steps=STEPS, controls=controls))
    x = ldm.vae.decode(z).cpu().split(COLUMNS)
    rows = [(p, [*hints[i : i + 1], *x[i]]) for i, p in enumerate(prompts)]
    save_grid(out / "previews" / f"{name}-{step:06}.png", rows)


def examples_of(validation: Dataset) -> dict[str, int]:
    """Which images are good to try: the first of each class, or where there are no classes the first few."""
    kinds = validation.names["class"]
    if len(kinds) == 1:
        return {f"{kinds[0]} {i + 1}": i for i in range(min(ROWS, len(validation)))}
    first = {
        kinds[value]: i for i, value in reversed([*enumerate(validation.labels["class"].tolist())])
    }
    return {kind: first[kind] for kind in kinds if kind in first}


def save_examples(folder: Path, validation: Dataset) -> list[Path]:
    """Write validation images, or the hints that came with them: pictures to try as --hint.

    They are named by their classes.
    """
    given, paths = validation.hints, []
    for name, i in examples_of(validation).items():
        paths.append(folder / f"{name.replace(' ', '-')}.png")
        image = to_float(validation.images[i]) if given is None else hint_image(given[i])
        save_image(paths[-1], image)
    return paths
