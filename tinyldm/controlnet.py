"""ControlNet: a trainable copy of the U-Net's encoder, joined to it by zero convolutions [CN, arXiv 2302.05543].

y_c = F(x; Theta) + Z(F(x + Z(c; Theta_z1); Theta_c); Theta_z2)   [CN, eq. 2]: F(.; Theta) is the frozen U-Net,
Theta_c the copy, the inner Z ends the hint encoder, the outer Z are `zero_convs`. At the start both Z are 0, so y_c = y.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from tinyldm.blocks import zero
from tinyldm.unet import UNet


def zero_conv(channels: int) -> nn.Module:
    """A 1x1 convolution that starts at zero weight and bias, yet has a gradient [CN, 3.1]."""
    return zero(nn.Conv2d(channels, channels, 1))


class HintEncoder(nn.Sequential):
    """hint (b, k, H, W) -> (b, c_out, H/f, W/f), f = 2 ** (len(widths) - 1), zero at the start.

    The layout of the released code (3x3 SiLU convolutions), not of the paper's text (4x4 ReLU) [CN, 3.2].
    """

    def __init__(self, channels: int, widths: Sequence[int], c_out: int):
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
        for c_in, c in pairwise(widths):
            layers += [nn.Conv2d(c_in, c_in, 3, padding=1), nn.SiLU()]
            layers += [nn.Conv2d(c_in, c, 3, padding=1, stride=2), nn.SiLU()]
        super().__init__(*layers, zero(nn.Conv2d(widths[-1], c_out, 3, padding=1)))


class ControlNet(nn.Module):
    """A ControlNet for this U-Net: its time embedding, stem and encoder copied, trainable even where it is frozen."""

    def __init__(self, unet: UNet, hint_channels: int = 1, hint_widths: Sequence[int] = (16, 32, 96)):
        super().__init__()
        self.time_embed = copy.deepcopy(unet.time_embed)
        self.stem = copy.deepcopy(unet.stem)
        self.encoder = copy.deepcopy(unet.encoder)
        self.hint_encoder = HintEncoder(hint_channels, hint_widths, unet.config.widths[0])
        self.zero_convs = nn.ModuleList(zero_conv(channels) for channels in self.encoder.channels)
        self.requires_grad_(True)

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        """z_t (b, c, h, w), t (b,), context (b, l, d), hint (b, k, f h, f w) -> one residual per feature map."""
        t_emb = self.time_embed(t)  # (b, e)
        h = self.stem(z_t) + self.hint_encoder(hint)  # (b, c_0, h, w)
        features = self.encoder(h, t_emb, context)  # [(b, c_i, h_i, w_i)]
        return [conv(feature) for conv, feature in zip(self.zero_convs, features, strict=True)]


def scale(residuals: Sequence[Tensor], weight: float) -> list[Tensor]:
    """Control at a strength: 0 is none, 1 is as trained (diffusers calls it conditioning scale)."""
    return [weight * residual for residual in residuals]


def resolution_weights(residuals: Sequence[Tensor]) -> list[Tensor]:
    """Each residual (b, c, h_i, w_i) times h_0 / h_i, h_0 the finest: 1 to 8 in Stable Diffusion [CN, 3.4, 64 / h_i]."""
    return [residuals[0].shape[-2] / residual.shape[-2] * residual for residual in residuals]
