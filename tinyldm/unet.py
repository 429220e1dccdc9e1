"""The U-Net with text context, cut where ControlNet needs it: time_embed + stem + encoder + decoder + head.

b batch, c latent channels, h w latent size, l d context tokens and their width, e width of t_emb
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyldm.blocks import Down, ResBlock, SpatialTransformer, TimeEmbedding, Up, check, head, zero


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the U-Net. SD 1.5: widths 320, 640, 1280, 1280, res_blocks 2, attention but at the coarsest."""

    channels: int = 4  # c, of the latent
    widths: tuple[int, ...] = (48, 64)  # one per resolution, from fine to coarse
    res_blocks: int = 1  # a level in the encoder, one more in the decoder
    attention: tuple[bool, ...] = (False, True)  # transformers at this level?
    heads: int = 4
    context_width: int = 64  # d, of the text encoder

    def __post_init__(self) -> None:
        check(self, channels=1, widths=2, heads=1, context_width=1)
        check(self, most=64, res_blocks=1)
        if len(self.attention) != len(self.widths):
            raise ValueError(f"attention {self.attention}: give one for each of {self.widths}")
        if self.widths[0] % 2:
            raise ValueError(f"widths {self.widths}: the first must be even")
        if any(width % self.heads for width in self.widths):
            raise ValueError(f"heads {self.heads}: must divide the widths {self.widths}")

    @property
    def groups(self) -> int:  # of every GroupNorm: 32, as in SD, or what divides the widths
        return math.gcd(32, *self.widths)


def transformer(config: UNetConfig, width: int) -> nn.Module:
    return SpatialTransformer(width, config.groups, config.heads, config.context_width)


def res_block(config: UNetConfig, c_in: int, c_out: int) -> nn.Module:
    return ResBlock(c_in, c_out, config.groups, t_width=4 * config.widths[0])


def level_block(config: UNetConfig, c_in: int, level: int) -> list[nn.Module]:
    """A ResBlock of this level and, if it has attention, the transformer that follows."""
    width, res = config.widths[level], res_block(config, c_in, config.widths[level])
    return [res, transformer(config, width)] if config.attention[level] else [res]


class Block(nn.Module):
    """A ResBlock, then a transformer, an Up, both or nothing: (x, t_emb, context) -> x."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, t_emb: Tensor, context: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x, t_emb, context)
        return x


class Encoder(nn.Module):
    """The stem's output x (b, c_0, h, w) -> features: x first, then one per block, the middle's last."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        widths = config.widths
        self.blocks = nn.ModuleList()
        self.channels = [widths[0]]  # of each feature map
        for i, width in enumerate(widths):
            for _ in range(config.res_blocks):
                self.append(width, *level_block(config, self.channels[-1], i))
            if i < len(widths) - 1:
                self.append(width, Down(width))
        first, second = (res_block(config, width, width) for _ in range(2))
        self.append(width, first, transformer(config, width), second)

    def append(self, channels: int, *parts: nn.Module) -> None:
        self.blocks.append(Block(*parts))
        self.channels.append(channels)

    def forward(self, x: Tensor, t_emb: Tensor, context: Tensor) -> list[Tensor]:
        features = [x]
        for block in self.blocks:
            features.append(block(features[-1], t_emb, context))
        return features


class Decoder(nn.Module):
    """The encoder's features -> x (b, c_0, h, w), coarse to fine, one skip joined before each block."""

    def __init__(self, config: UNetConfig, skip_channels: Sequence[int]):
        super().__init__()
        widths, skips = config.widths, list(skip_channels)
        self.blocks = nn.ModuleList()
        c_in = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            for j in range(config.res_blocks + 1):
                up = [Up(width)] if i and j == config.res_blocks else []
                self.blocks.append(Block(*level_block(config, c_in + skips.pop(), i), *up))
                c_in = width

    def forward(self, features: Sequence[Tensor], t_emb: Tensor, context: Tensor) -> Tensor:
        *skips, x = features
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([x, skip], dim=1), t_emb, context)
        return x


def add_controls(features: Sequence[Tensor], controls: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Add every control's residuals to the features, map by map. Raises ValueError if the lengths differ."""
    maps = zip(features, *controls, strict=True)
    return [sum(residuals, feature) for feature, *residuals in maps]


class UNet(nn.Module):
    """eps_theta(z_t, t, context) [LDM, eq. 3], with any number of controls added to its features [CN, 3.2]."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        width = config.widths[0]
        self.time_embed = TimeEmbedding(width)
        self.stem = nn.Conv2d(config.channels, width, 3, padding=1)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, self.encoder.channels[:-1])
        self.head = head(width, config.channels, config.groups)
        zero(self.head[-1])

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, *controls: list[Tensor]) -> Tensor:
        """z_t (b, c, h, w), t (b,) in 1..T, context (b, l, d), controls: lists of residuals -> eps, as z_t."""
        t_emb = self.time_embed(t)  # (b, e)
        x = self.stem(z_t)  # (b, c_0, h, w)
        features = self.encoder(x, t_emb, context)  # [(b, c_i, h_i, w_i)], fine to coarse
        features = add_controls(features, controls)  # the same shapes
        x = self.decoder(features, t_emb, context)  # (b, c_0, h, w)
        return self.head(x)  # (b, c, h, w)
