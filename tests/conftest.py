import os
from dataclasses import replace

import pytest
import torch

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.ldm import LatentDiffusion
from tinyldm.text import TextConfig, Tokenizer
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAE, VAEConfig

# Tests compare bits, also between processes that they start: so none may choose its threads by how busy the
# machine is. What torch found here holds for all of them, unless who calls has chosen; with -n it is one.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))

SMALL = UNetConfig(4, widths=(32, 64), attention=(False, True), heads=2, context_width=16)
SD15_UNET = UNetConfig(
    channels=4,
    widths=(320, 640, 1280, 1280),
    res_blocks=2,
    attention=(True, True, True, False),
    heads=8,
    context_width=768,
)
SD15_CONTROLNET = ControlNetConfig(hint_channels=3, hint_widths=(16, 32, 96, 256))
SD15_VAE = VAEConfig(image_channels=3, widths=(128, 256, 512, 512), res_blocks=2)


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
    return ControlNet(unet, ControlNetConfig(1, (8, 16, 24)))


def small_inputs(batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """z_t (b, 4, 8, 8), t (b,), context (b, 5, 16), hint (b, 1, 32, 32) in {0, 1}."""
    g = torch.Generator().manual_seed(seed)
    z_t = torch.randn(batch, 4, 8, 8, generator=g)
    t = torch.randint(1, 1001, (batch,), generator=g)
    context = torch.randn(batch, 5, 16, generator=g)
    hint = (torch.rand(batch, 1, 32, 32, generator=g) < 0.2).float()
    return z_t, t, context, hint


def small_ldm() -> LatentDiffusion:
    """A frozen model with random weights, the zero convolutions' too; images (1, 32, 32)."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_captions(["a red circle", "a blue ring"], 5)
    text, unet = TextConfig(width=16, layers=1, heads=2), replace(SMALL, widths=(16, 32))
    ldm = LatentDiffusion.build(VAE(VAEConfig(widths=(8, 8, 16))), tokenizer, text, unet, 32)
    return randomise(ldm).requires_grad_(False)


@pytest.fixture
def ldm() -> LatentDiffusion:
    return small_ldm()


@pytest.fixture
def unet() -> UNet:
    return small_unet()


@pytest.fixture
def frozen_unet() -> UNet:
    return small_unet().requires_grad_(False)
