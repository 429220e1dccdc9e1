"""The whole model: autoencoder, text encoder, U-Net and schedule; its loss, and `generate`."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tinyldm.controlnet import weighted
from tinyldm.diffusion import SAMPLERS, EpsFn, Schedule, diffusion_loss, guided, seeded
from tinyldm.text import TextConfig, TextEncoder, Tokenizer
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAE

Prompts = Sequence[str] | Tensor  # captions, or their tokens (b, l)
Passes = Literal["both", "prompted"]  # of guidance: those that a control acts on


class Control(NamedTuple):
    """A ControlNet with its hint (b, k, H, W) and a weight: 0 is none, 1 as trained."""

    controlnet: Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]
    hint: Tensor
    weight: float = 1.0

    def __call__(self, z_t: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        return weighted(self.controlnet(z_t, t, context, self.hint.float()), self.weight)


def bind(unet: UNet, context: Tensor, controls: Sequence[Control] = ()) -> EpsFn:
    """The eps_fn of diffusion.py: this U-Net with this context (b, l, d) and these controls."""
    return lambda z_t, t: unet(z_t, t, context, *(control(z_t, t, context) for control in controls))


class LatentDiffusion(nn.Module):
    """Image <-> latent, caption -> context, (z_t, t, context) -> eps: all that `generate` needs."""

    def __init__(
        self,
        vae: VAE,
        tokenizer: Tokenizer,
        text: nn.Module,
        unet: UNet,
        schedule: Schedule,
        size: int,
    ):
        super().__init__()
        self.vae, self.tokenizer, self.text, self.unet = vae, tokenizer, text, unet
        self.schedule, self.resolution = schedule, size  # H = W of the images that it is trained on

    @classmethod
    def build(
        cls, vae: VAE, tokenizer: Tokenizer, text: TextConfig, unet: UNetConfig, resolution: int
    ) -> "LatentDiffusion":
        """An untrained model; sizes that must agree come from the VAE, the tokenizer and the text encoder."""
        text = replace(text, vocabulary=len(tokenizer.vocabulary), length=tokenizer.length)
        unet = replace(unet, channels=vae.config.latent_channels, context_width=text.width)
        return cls(vae, tokenizer, TextEncoder(text), UNet(unet), Schedule(), resolution)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image of the training resolution."""
        size = self.resolution // self.vae.config.f
        return self.unet.config.channels, size, size

    def context(self, captions: Prompts) -> Tensor:
        """Captions, or their tokens (b, l) -> context (b, l, d); the null context is that of ""."""
        if not isinstance(captions, Tensor):
            captions = self.tokenizer.encode(list(captions)).to(self.device)
        return self.text(captions)

    def eps_fn(self, captions: Prompts, controls: Sequence[Control] = ()) -> EpsFn:
        """The noise prediction for these captions (b) under these controls."""
        return bind(self.unet, self.context(captions), controls)

    def loss(
        self, z_0: Tensor, captions: Prompts, controls: Sequence[Control] = (), density="uniform"
    ) -> Tensor:
        """|| eps - eps_theta(z_t, t, captions, controls) ||^2, a mean, to () [LDM, eq. 3; CN, eq. 5]."""
        return diffusion_loss(self.schedule, self.eps_fn(captions, controls), z_0, density)


@torch.no_grad()
def generate(
    ldm: LatentDiffusion,
    prompts: Sequence[str],
    *,
    guidance: float = 2.0,
    sampler: str = "dpm++",
    steps: int = 20,
    seed: int = 0,
    eta: float = 0.0,
    controls: Sequence[Control] = (),
    control_passes: Passes = "both",
) -> Iterator[Tensor]:
    """Yield z (b, c, h, w) after each of `steps` steps, one image per prompt; `ldm.vae.decode` shows it.

    Image i is a function of seed + i. Guidance 1 is off; controls act on both of its passes or on the
    prompted one only [CN, 3.4], as the commands have it by default. `eta` is for ddim.
    """
    null_controls = controls if control_passes == "both" else ()
    if not any(prompts) and len(null_controls) == len(controls):
        guidance = 1.0  # both passes are equal, so one is enough
    null_fn = ldm.eps_fn([""] * len(prompts), null_controls)
    eps_fn = guided(ldm.eps_fn(prompts, controls), null_fn, guidance)
    noise = seeded(seed, len(prompts))
    z_T = noise(torch.Size([len(prompts), *ldm.latent_shape])).to(ldm.device)
    yield from SAMPLERS[sampler](ldm.schedule, eps_fn, z_T, steps, noise=noise, eta=eta)


def last(z: Iterator[Tensor]) -> Tensor:
    """The last tensor of a sampler: z_0."""
    return deque(z, maxlen=1).pop()
