"""ControlNet: a trainable copy of the U-Net's encoder, joined by zero convolutions [CN, 2302.05543].

y_c = F(x; Theta) + Z(F(x + Z(c; Theta_z1); Theta_c); Theta_z2) [CN, eq. 2]: F(.; Theta) is the frozen U-Net,
Theta_c the copy; the inner Z ends the hint encoder, the outer Z are `zero_convs`. At first both are 0: y_c = y.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from tinyldm.blocks import check, zero
from tinyldm.unet import UNet


@dataclass(frozen=True)
class ControlNetConfig:
    """Sizes of the hint encoder; all others are the U-Net's. Stable Diffusion 1.5: 3; 16, 32, 96, 256."""

    hint_channels: int = 1  # k, of the hint
    hint_widths: tuple[int, ...] = (16, 32, 96)  # one per resolution, as many as the VAE has

    def __post_init__(self) -> None:
        check(self, hint_channels=1, hint_widths=1)


def zero_conv(channels: int) -> nn.Module:
    """A 1x1 convolution with weight and bias zero at the start, yet with a gradient [CN, 3.1]."""
    return zero(nn.Conv2d(channels, channels, 1))


class HintEncoder(nn.Sequential):
    """hint (b, k, H, W) -> (b, c_out, H/f, W/f), zero at first; 3x3, SiLU: the code of [CN], not its text."""

    def __init__(self, config: ControlNetConfig, c_out: int):
        widths = config.hint_widths
        layers = [nn.Conv2d(config.hint_channels, widths[0], 3, padding=1), nn.SiLU()]
        for c_in, c in pairwise(widths):
            layers += [nn.Conv2d(c_in, c_in, 3, padding=1), nn.SiLU()]
            layers += [nn.Conv2d(c_in, c, 3, padding=1, stride=2), nn.SiLU()]
        super().__init__(*layers, zero(nn.Conv2d(widths[-1], c_out, 3, padding=1)))


class ControlNet(nn.Module):
    """A ControlNet for this U-Net: copies of its time embedding, stem and encoder, all trainable."""

    def __init__(self, unet: UNet, config: ControlNetConfig):
        super().__init__()
        self.config = config
        self.time_embed = copy.deepcopy(unet.time_embed)
        self.stem = copy.deepcopy(unet.stem)
        self.encoder = copy.deepcopy(unet.encoder)
        self.hint_encoder = HintEncoder(config, unet.config.widths[0])
        self.zero_convs = nn.ModuleList(zero_conv(c) for c in self.encoder.channels)
        self.requires_grad_(True)

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        """z_t (b, c, h, w), t (b,), context (b, l, d), hint (b, k, f h, f w) -> a residual per feature map."""
        t_emb = self.time_embed(t)  # (b, e)
        x = self.stem(z_t) + self.hint_encoder(hint)  # (b, c_0, h, w)
        features = self.encoder(x, t_emb, context)  # [(b, c_i, h_i, w_i)]
        return [conv(feature) for conv, feature in zip(self.zero_convs, features, strict=True)]


def weighted(residuals: Sequence[Tensor], weight: float) -> list[Tensor]:
    """The residuals at a strength: 0 is none, 1 as trained (diffusers' conditioning scale)."""
    return [weight * residual for residual in residuals]


def resolution_weighted(residuals: Sequence[Tensor]) -> list[Tensor]:
    """Each residual (b, c, h_i, w_i) times h_0 / h_i: 1 to 8 in Stable Diffusion [CN, 3.4, 64 / h_i]."""
    finest = residuals[0].shape[-2]
    return [finest / residual.shape[-2] * residual for residual in residuals]
