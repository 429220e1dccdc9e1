"""The arms of the ablations: edits of a built ControlNet, and a U-Net that sees edges by concatenation."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tinyldm.blocks import Down, zero
from tinyldm.controlnet import ControlNet
from tinyldm.diffusion import Schedule
from tinyldm.unet import UNet


@torch.no_grad()
def gaussian(controlnet: ControlNet, std: float = 0.0) -> None:
    """Draw zero convs from a Gaussian, by default of std 1 / sqrt(c_in), which keeps sizes; [CN] gives none."""
    for conv in (*controlnet.zero_convs, controlnet.hint_encoder[-1]):
        weight = conv.get_parameter("weight")
        weight.normal_(std=std or weight[0].numel() ** -0.5)


def random_copy(controlnet: ControlNet) -> None:
    """The copy starts anew, not from the base's weights."""
    for module in controlnet.encoder.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
            module.reset_parameters()


class LiteBlock(nn.Conv2d):
    """One convolution where an encoder has a block; no time, no text."""

    def forward(self, x: Tensor, *t_emb_and_context: Tensor) -> Tensor:
        return F.silu(super().forward(x))


def lite(controlnet: ControlNet) -> None:
    """Each block of the copy becomes one convolution: "ControlNet-lite" [CN, 4.2]."""
    blocks, channels = controlnet.encoder.blocks, controlnet.encoder.channels
    for i, block in enumerate(blocks):
        stride = 2 if any(isinstance(module, Down) for module in block.modules()) else 1
        blocks[i] = LiteBlock(channels[i], channels[i + 1], 3, stride, padding=1)


STDS = (0.02, 0.1, 1.0)
EDITS: dict[str, Callable[[ControlNet], object]] = {
    "zero": lambda controlnet: None,  # the ControlNet of the paper
    "gaussian": gaussian,
    **{f"gaussian {std:g}": partial(gaussian, std=std) for std in STDS},
    "lite": lite,
    "random copy": random_copy,
}


class ConcatUNet(UNet):
    """A trained U-Net whose stem also sees the hint, f x f pixels folded into channels.

    The new weights are zero: at first it is the U-Net. For fine-tuning as a whole, where ControlNet keeps
    the base.
    """

    def __init__(self, unet: UNet, f: int):
        super().__init__(unet.config)
        self.load_state_dict(unet.state_dict())
        self.f, channels = f, unet.config.channels
        self.stem = nn.Conv2d(channels + f * f, unet.config.widths[0], 3, padding=1)
        zero(self.stem)
        with torch.no_grad():
            self.stem.weight[:, :channels] = unet.stem.weight
            self.stem.get_parameter("bias")[:] = unet.stem.get_parameter("bias")

    def forward(
        self, z_t: Tensor, t: Tensor, context: Tensor, *controls: Sequence[Tensor]
    ) -> Tensor:
        """As UNet's, with one "control": a list that holds the hint (b, 1, H, W)."""
        [[hint]] = controls
        folded = rearrange(hint, "b 1 (h i) (w j) -> b (i j) h w", i=self.f, j=self.f)
        return super().forward(torch.cat([z_t, folded], dim=1), t, context)


class ScaledUNet(UNet):
    """A U-Net that sees z_t divided by its standard deviation, that of z_0 being `std`."""

    def __init__(self, unet: UNet, schedule: Schedule, std: float):
        super().__init__(unet.config)
        self.load_state_dict(unet.state_dict())
        self.std, signal = std, schedule.alphas_cumprod.float()
        self.register_buffer("signal", signal, persistent=False)  # (T + 1,)

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, *controls: list[Tensor]) -> Tensor:
        """As UNet's."""
        signal = self.get_buffer("signal")[t]  # (b,)
        std = (signal * self.std**2 + 1 - signal).sqrt()
        return super().forward(z_t / rearrange(std, "b -> b 1 1 1"), t, context, *controls)


def just_hint(z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
    """Stands where a ControlNet would, and returns the hint as its one "residual"."""
    return [hint]
