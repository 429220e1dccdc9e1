"""The U-Net with text context, cut where ControlNet needs it: time_embed + stem + encoder + decoder + head.

Letters: b batch, c latent channels, h w latent size, l d context tokens and their width, e width of t_emb.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyldm.blocks import Down, GroupNorm, ResBlock, SpatialTransformer, TimeEmbedding, Up, zero
from tinyldm.sizes import UNetConfig


def transformer(config: UNetConfig, width: int) -> nn.Module:
    return SpatialTransformer(width, config.groups, config.heads, config.context_width)


def transformers(config: UNetConfig, level: int) -> list[nn.Module]:
    """What follows a ResBlock of this level: one transformer or none."""
    return [transformer(config, config.widths[level])] if config.attention[level] else []


def res_block(config: UNetConfig, c_in: int, c_out: int) -> nn.Module:
    return ResBlock(c_in, c_out, config.groups, t_width=4 * config.widths[0])


class Block(nn.Module):
    """One ResBlock, then what follows it: a transformer, an Up, both or nothing. (h, t_emb, context) -> h."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, h: Tensor, t_emb: Tensor, context: Tensor) -> Tensor:
        for part in self.parts:
            h = part(h, t_emb, context)
        return h


class Encoder(nn.Module):
    """The stem's output h (b, c_0, h, w) -> features: h first, then one per block, the middle's last."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        widths = config.widths
        self.blocks = nn.ModuleList()
        self.channels = [widths[0]]  # of each feature map
        for i, width in enumerate(widths):
            for _ in range(config.res_blocks):
                self.append(width, res_block(config, self.channels[-1], width), *transformers(config, i))
            if i < len(widths) - 1:
                self.append(width, Down(width))
        res1, res2 = (res_block(config, widths[-1], widths[-1]) for _ in range(2))
        self.append(widths[-1], res1, transformer(config, widths[-1]), res2)

    def append(self, channels: int, *parts: nn.Module) -> None:
        self.blocks.append(Block(*parts))
        self.channels.append(channels)

    def forward(self, h: Tensor, t_emb: Tensor, context: Tensor) -> list[Tensor]:
        features = [h]
        for block in self.blocks:
            features.append(block(features[-1], t_emb, context))
        return features


class Decoder(nn.Module):
    """features, as the encoder gives them -> h (b, c_0, h, w): from coarse to fine, one skip joined before each block."""

    def __init__(self, config: UNetConfig, skip_channels: Sequence[int]):
        super().__init__()
        widths, skips = config.widths, list(skip_channels)
        self.blocks = nn.ModuleList()
        c_in = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            for j in range(config.res_blocks + 1):
                up = [Up(width)] if i and j == config.res_blocks else []
                res = res_block(config, c_in + skips.pop(), width)
                self.blocks.append(Block(res, *transformers(config, i), *up))
                c_in = width

    def forward(self, features: Sequence[Tensor], t_emb: Tensor, context: Tensor) -> Tensor:
        *skips, h = features
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], dim=1), t_emb, context)
        return h


def add_controls(features: Sequence[Tensor], controls: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Add every control's residuals to the features, map by map. Raises ValueError if a list is of another length."""
    return [sum(residuals, feature) for feature, *residuals in zip(features, *controls, strict=True)]


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
        self.head = nn.Sequential(
            GroupNorm(config.groups, width), nn.SiLU(), zero(nn.Conv2d(width, config.channels, 3, padding=1))
        )

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, *controls: Sequence[Tensor]) -> Tensor:
        """z_t (b, c, h, w), t (b,) in 1..T, context (b, l, d), each control a list of residuals -> eps (b, c, h, w)."""
        t_emb = self.time_embed(t)  # (b, e)
        features = self.encoder(self.stem(z_t), t_emb, context)  # [(b, c_i, h_i, w_i)], fine to coarse
        features = add_controls(features, controls)  # the same shapes
        h = self.decoder(features, t_emb, context)  # (b, c_0, h, w)
        return self.head(h)
