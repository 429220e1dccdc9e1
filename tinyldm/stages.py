"""What `fit` minimises: one small module per training, whose `forward(batch)` returns the loss."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tinyldm.controlnet import ControlNet
from tinyldm.dataset import to_float
from tinyldm.diffusion import diffusion_loss
from tinyldm.ldm import LatentDiffusion, bind_context, bind_hint
from tinyldm.vae import VAE, vae_loss


def drop_captions(captions: list[str], share: float) -> list[str]:
    """Replace this share of captions, drawn by torch's global generator, by the empty one [CFG; CN, 3.3]."""
    keep = (torch.rand(len(captions)) >= share).tolist()
    return [caption if kept else "" for caption, kept in zip(captions, keep, strict=True)]


class VAEStage(nn.Module):
    """Batches (images uint8 (b, k, H, W),)."""

    def __init__(self, vae: VAE, kl_weight: float):
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight

    def forward(self, images: Tensor) -> Tensor:
        return vae_loss(self.vae, to_float(images), self.kl_weight)


class BaseStage(nn.Module):
    """Batches (z_0 (b, c, h, w), captions)."""

    def __init__(self, ldm: LatentDiffusion, caption_drop: float, timesteps: str = "uniform"):
        super().__init__()
        self.ldm, self.caption_drop, self.timesteps = ldm, caption_drop, timesteps

    def forward(self, z_0: Tensor, captions: list[str]) -> Tensor:
        context = self.ldm.context(drop_captions(captions, self.caption_drop))
        return diffusion_loss(self.ldm.schedule, bind_context(self.ldm.unet, context), z_0, self.timesteps)


class ControlStage(nn.Module):
    """Batches (z_0 (b, c, h, w), hint uint8 (b, 1, H, W) in {0, 1}, captions); the ldm is frozen.

    `captions` are all that a batch may have: their contexts are computed once, since the text encoder is frozen too.
    """

    def __init__(
        self,
        ldm: LatentDiffusion,
        controlnet: ControlNet,
        captions: Iterable[str],
        caption_drop: float,
        timesteps: str = "uniform",
    ):
        super().__init__()
        self.ldm, self.controlnet, self.caption_drop, self.timesteps = ldm, controlnet, caption_drop, timesteps
        captions = list(dict.fromkeys(["", *captions]))
        self.row = {caption: i for i, caption in enumerate(captions)}
        parts = [ldm.context(captions[i : i + 500]) for i in range(0, len(captions), 500)]
        self.register_buffer("contexts", torch.cat(parts))  # (captions, l, d)

    def forward(self, z_0: Tensor, hint: Tensor, captions: list[str]) -> Tensor:
        context = self.contexts[[self.row[caption] for caption in drop_captions(captions, self.caption_drop)]]
        control = bind_hint(self.controlnet, hint.float())
        eps_fn = bind_context(self.ldm.unet, context, [control])
        return diffusion_loss(self.ldm.schedule, eps_fn, z_0, self.timesteps)
