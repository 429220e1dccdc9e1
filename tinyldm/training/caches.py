"""What is computed once for all steps: the latents and the hints of the training images."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tinyldm.data.dataset import to_float
from tinyldm.support import files
from tinyldm.support.progress import progress
from tinyldm.vae import VAE


@torch.no_grad()
def encode_all(vae: VAE, images: Tensor) -> Tensor:
    """Images uint8 (n, k, H, W) -> z (n, c, h, w), on the CPU."""
    device = vae.scale.device
    parts = images.split(250)
    batches = progress(parts, desc="encode", unit_scale=250, unit="image", leave=False)
    with torch.compiler.set_stance("force_eager"):
        return torch.cat([vae.encode(to_float(batch).to(device)).cpu() for batch in batches])


def latents_path(base: Path) -> Path:
    """Where a base keeps the latents of its training images; the name says of which autoencoder."""
    return base / f"latents-{files.sha256(base / 'vae.safetensors')[:12]}.safetensors"


def save_latents(base: Path, z: Tensor) -> None:
    """Keep the latents z (n, c, h, w) of a base's training images beside its autoencoder."""
    files.write_tensors(latents_path(base), {"z": z})


def cached_latents(base: Path, vae: VAE, images: Tensor) -> Tensor:
    """z (n, c, h, w) of a base's training images (n, k, H, W): those it kept, or encoded again."""
    path = latents_path(base)
    z = files.read_tensors(path, "delete it")["z"] if path.exists() else torch.empty(0)
    return z if len(z) == len(images) else encode_all(vae, images)


def hints_of(condition: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Images uint8 (n, k, H, W) -> hints bool (n, 1, H, W)."""
    parts = images.split(1000)
    batches = progress(parts, desc="hints", unit_scale=1000, unit="image", leave=False)
    return torch.cat([condition(batch) for batch in batches])
