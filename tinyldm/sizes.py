"""The sizes of the networks, as plain numbers: settings can be read without waiting for torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder. Stable Diffusion 1.5: image 3, widths 128, 256, 512, 512, res_blocks 2."""

    image_channels: int = 1  # k
    latent_channels: int = 4  # c
    widths: tuple[int, ...] = (16, 32, 64)  # one per resolution; f = 2 ** (len(widths) - 1)
    res_blocks: int = 1  # a level on the way down, one more on the way up

    @property
    def groups(self) -> int:
        """Of every GroupNorm: 32, as in Stable Diffusion, or what divides narrower widths."""
        return math.gcd(32, *self.widths)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder; `vocabulary` (words known) is set from the training captions."""

    vocabulary: int = 0
    length: int = 16  # l, tokens a caption
    width: int = 128  # d
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the U-Net. Stable Diffusion 1.5: widths 320, 640, 1280, 1280, res_blocks 2, no attention on the last level."""

    channels: int = 4  # c, of the latent
    widths: tuple[int, ...] = (64, 128, 128)  # one per resolution, from fine to coarse
    res_blocks: int = 1  # a level in the encoder, one more in the decoder
    attention: tuple[bool, ...] = (False, True, True)  # transformers at this level?
    heads: int = 4
    context_width: int = 128  # d

    @property
    def groups(self) -> int:
        """Of every GroupNorm: 32, as in Stable Diffusion, or what divides narrower widths."""
        return math.gcd(32, *self.widths)
