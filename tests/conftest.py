import pytest
import torch

from tinyldm.controlnet import ControlNet
from tinyldm.unet import UNet, UNetConfig

SMALL = UNetConfig(channels=4, widths=(32, 64), res_blocks=1, attention=(False, True), heads=2, context_width=16)


def randomise(module: torch.nn.Module, seed: int = 0, std: float = 0.05) -> torch.nn.Module:
    """Give every parameter random values, those that start at zero included: a stand-in for training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return module


def small_unet(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return randomise(UNet(SMALL), seed)


def small_controlnet(unet: UNet, seed: int = 1) -> ControlNet:
    torch.manual_seed(seed)
    return ControlNet(unet, hint_channels=1, hint_widths=(8, 16, 24))


def small_inputs(batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """z_t (b, 4, 8, 8), t (b,), context (b, 5, 16), hint (b, 1, 32, 32) in {0, 1}."""
    g = torch.Generator().manual_seed(seed)
    z_t = torch.randn(batch, 4, 8, 8, generator=g)
    t = torch.randint(1, 1001, (batch,), generator=g)
    context = torch.randn(batch, 5, 16, generator=g)
    hint = (torch.rand(batch, 1, 32, 32, generator=g) < 0.2).float()
    return z_t, t, context, hint


@pytest.fixture
def unet() -> UNet:
    return small_unet()


@pytest.fixture
def frozen_unet() -> UNet:
    return small_unet().requires_grad_(False)
