"""What the benchmark times: training steps of our networks and of diffusers' at the same sizes, and sampling.

diffusers' networks are trained as its own scripts do it (examples/text_to_image and examples/controlnet
of its repository): its noise scheduler, torch's AdamW, gradients clipped at norm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.diffusers_io.configurations import (
    Entries,
    controlnet_entries,
    scheduler_entries,
    unet_entries,
    vae_entries,
)
from tinyldm.diffusion import SAMPLERS, EpsFn, Schedule, diffusion_loss, guided
from tinyldm.ldm import Control, bind, last
from tinyldm.training.ema import EMA
from tinyldm.training.machine import Machine
from tinyldm.training.optimizer import build_optimizer
from tinyldm.training.presets import BASE_PRESETS, CONTROL_PRESETS
from tinyldm.training.settings import FitSettings
from tinyldm.training.step import gradient, take_step
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import MSE_WEIGHT, VAE, VAEConfig, vae_loss

UNET, CONTROLNET, VAE_PART = PARTS = ("U-Net", "ControlNet", "VAE")
UNLOCKED = "ControlNet, decoder unlocked"  # sd_locked=False of the released code
TOKENS, LR, CLIP, KL_WEIGHT = 9, 1e-5, 1.0, 1e-5

Loss = Callable[[], Tensor]
Trained = tuple[Loss, list[Any]]  # a loss and its networks, of which the last is trained


@dataclass(frozen=True)
class Sizes:
    """What every step shares: the sizes of the networks and of a batch, and the device."""

    unet: UNetConfig
    vae: VAEConfig
    hint_widths: tuple[int, ...]
    batch: int = 64
    vae_batch: int = 16
    resolution: int = 32
    device: str = "cpu"

    @classmethod
    def of(cls, preset: str, device: str) -> "Sizes":
        """Those of the trainings of a preset."""
        base, hint_widths = BASE_PRESETS[preset], CONTROL_PRESETS[preset].hint_widths
        batches = base.fit.batch_size, base.vae_fit.batch_size
        return cls(base.unet, base.vae, hint_widths, *batches, base.data.resolution, device)

    def images(self) -> Tensor:
        """A random batch x (b, k, H, W) for the autoencoder."""
        size = self.resolution
        return torch.rand(self.vae_batch, self.vae.image_channels, size, size, device=self.device)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """A random batch for the U-Net: z_0 (b, c, h, w), context (b, l, d) and hint (b, 1, H, W)."""
        b, size, latent = self.batch, self.resolution, self.resolution // self.vae.f
        with torch.device(self.device):
            z_0 = torch.randn(b, self.unet.channels, latent, latent)
            context = torch.randn(b, TOKENS, self.unet.context_width)
            return z_0, context, torch.rand(b, 1, size, size)


# ---------------------------------------------------------------- ours


def controlled(sizes: Sizes, machine: Machine, controls: int) -> tuple[list[Any], EpsFn, Tensor]:
    """A U-Net with so many ControlNets, its eps_fn, and random latents of a batch."""
    unet, (z, context, hint) = UNet(sizes.unet), sizes.inputs()
    config = ControlNetConfig(hint_widths=sizes.hint_widths)
    controlnets = [ControlNet(unet, config) for _ in range(controls)]
    machine.place(unet, *controlnets)
    eps_fn = bind(unet, context, [Control(controlnet, hint) for controlnet in controlnets])
    return [unet, *controlnets], eps_fn, z


def our_loss(sizes: Sizes, machine: Machine, part: str) -> Trained:
    """Of one of PARTS or of UNLOCKED."""
    if part == VAE_PART:
        vae = VAE(sizes.vae)
        machine.place(vae)
        return partial(vae_loss, vae, sizes.images(), KL_WEIGHT), [vae]
    networks, eps_fn, z_0 = controlled(sizes, machine, controls=0 if part == UNET else 1)
    unet = networks[0].requires_grad_(part == UNET)
    if part == UNLOCKED:
        unet.decoder.requires_grad_()
        unet.head.requires_grad_()
    return partial(diffusion_loss, Schedule(), eps_fn, z_0), networks


def sampling(
    sizes: Sizes, sampler: str, steps: int, controls: int, w: float = 2.0
) -> Callable[[], Tensor]:
    """Sampling of a batch of latents with so many ControlNets; random weights take as long as trained ones."""
    _, eps_fn, z_T = controlled(sizes, Machine(torch.device(sizes.device)), controls)
    eps_fn = guided(eps_fn, eps_fn, w)
    return torch.no_grad()(lambda: last(SAMPLERS[sampler](Schedule(), eps_fn, z_T, steps)))


# ---------------------------------------------------------------- diffusers'


def theirs(entries: Entries) -> Any:
    """A network of diffusers with random weights, or its scheduler, from the entries of its config.json."""
    import diffusers

    return getattr(diffusers, entries["_class_name"]).from_config(entries)


def their_vae_loss(vae: Any, x: Tensor) -> Tensor:
    posterior = vae.encode(x).latent_dist
    x_hat = vae.decode(posterior.sample()).sample.float()
    kl = posterior.kl().mean()
    return F.l1_loss(x_hat, x) + MSE_WEIGHT * F.mse_loss(x_hat, x) + KL_WEIGHT * kl


def their_loss(sizes: Sizes, machine: Machine, part: str) -> Trained:
    """Of one of PARTS."""
    if part == VAE_PART:
        vae = theirs(vae_entries(sizes.vae)).to(machine.device)
        return partial(their_vae_loss, vae, sizes.images()), [vae]
    scheduler = theirs(scheduler_entries(Schedule()))
    unet, (z_0, context, hint) = theirs(unet_entries(sizes.unet)).to(machine.device), sizes.inputs()
    networks = [unet]
    if part == CONTROLNET:
        unet.requires_grad_(False)
        entries = controlnet_entries(sizes.unet, ControlNetConfig(hint_widths=sizes.hint_widths))
        networks.append(theirs(entries).to(machine.device))

    def loss() -> Tensor:
        eps, t = torch.randn_like(z_0), torch.randint(0, 1000, (len(z_0),), device=z_0.device)
        z_t, control = scheduler.add_noise(z_0, eps, t), {}
        for controlnet in networks[1:]:
            down, middle = controlnet(z_t, t, context, hint, return_dict=False)
            control["down_block_additional_residuals"] = down
            control["mid_block_additional_residual"] = middle
        return F.mse_loss(unet(z_t, t, context, **control).sample.float(), eps)

    return loss, networks


# ---------------------------------------------------------------- steps of both


class Step:
    """A training step of one of PARTS, or of ours of UNLOCKED, taken by calling it.

    Ours is as `fit` takes it: a ControlNet's passes through its U-Net too. `as_fit` has Muon and an EMA, as the
    presets do; without, the optimizer is AdamW.
    """

    def __init__(self, ours: bool, sizes: Sizes, part: str, *, bf16=False, as_fit=False):
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.machine = Machine(torch.device(sizes.device), dtype)
        self.loss, networks = (our_loss if ours else their_loss)(sizes, self.machine, part)
        trained = [p for network in networks for p in network.parameters() if p.requires_grad]
        settings = FitSettings(optimizer="muon" if as_fit else "adamw", lr=LR)
        self.optimizer = build_optimizer(settings, trained)
        if not ours:
            self.optimizer = torch.optim.AdamW(trained, lr=LR)
        self.ema = EMA(trained, settings.ema) if as_fit else None

    def __call__(self) -> None:
        with self.machine.autocast():
            loss = self.loss()
        gradient(loss, self.optimizer, CLIP)
        take_step(self.optimizer)
        if self.ema:
            self.ema.update(1)


our_step, their_step = partial(Step, True), partial(Step, False)

FIT: dict[str, Any] = {"bf16": True, "as_fit": True}
CANDIDATES: dict[str, Callable[..., Step]] = {
    "diffusers, its defaults: fp32": their_step,
    "tinyldm fp32": our_step,
    "diffusers bf16": partial(their_step, bf16=True),
    "tinyldm bf16": partial(our_step, bf16=True),
    "tinyldm as fit runs it: bf16, Muon, EMA": partial(our_step, **FIT),
}


def candidates(part: str) -> list[str]:
    """Names of the steps of one of PARTS, or of UNLOCKED, which is only ours."""
    return [name for name in CANDIDATES if part in PARTS or "tinyldm" in name]
