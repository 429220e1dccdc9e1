"""What is computed once for all steps: the latents and the hints of the training images."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tinyldm.data.dataset import to_float
from tinyldm.ldm import LatentDiffusion
from tinyldm.support.progress import progress
from tinyldm.support.sealed import Sealed
from tinyldm.training.networks import LATENTS, NO_BASE
from tinyldm.vae import VAE


@torch.no_grad()
def encode_all(vae: VAE, images: Tensor) -> Tensor:
    """Images uint8 (n, k, H, W) -> z (n, c, h, w), on the CPU."""
    device = vae.scale.device
    parts = images.split(250)
    batches = progress(parts, desc="encode", unit_scale=250, unit="image", leave=False)
    return torch.cat([vae.encode(to_float(batch).to(device)).cpu() for batch in batches])


def cached_latents(base: Path, ldm: LatentDiffusion, images: Tensor) -> Tensor:
    """z (n, c, h, w) of a base's training images (n, k, H, W): those it kept, or encoded again. UserError."""
    if not (base / LATENTS).exists():
        return encode_all(ldm.vae, images)
    shape = (len(images), *ldm.latent_shape)
    return Sealed(base, f"{NO_BASE}, or delete this file").tensors(LATENTS, {"z": shape})["z"]


def hints_of(
    condition: Callable[[Tensor], Tensor], images: Tensor, given: Tensor | None = None
) -> Tensor:
    """Hints bool (n, 1, H, W) of images uint8 (n, k, H, W): those `given` with them, else what is found."""
    if given is not None:
        return given
    parts = images.split(1000)
    batches = progress(parts, desc="hints", unit_scale=1000, unit="image", leave=False)
    return torch.cat([condition(batch) for batch in batches])
