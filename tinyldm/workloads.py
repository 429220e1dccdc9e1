"""What the benchmark times: training steps of this project's networks and of diffusers' at the same sizes, and sampling.

diffusers' steps are written as its own training scripts write them (examples/text_to_image and examples/controlnet of
its repository): its classes, its noise scheduler, torch's AdamW, gradients clipped at norm 1.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyldm.config import FitConfig, RunConfig
from tinyldm.controlnet import ControlNet
from tinyldm.diffusers_io import controlnet_settings, unet_settings, vae_settings
from tinyldm.diffusion import SAMPLERS, Schedule, diffusion_loss, guided
from tinyldm.ldm import bind_context, bind_hint, last
from tinyldm.training import EMA, build_optimizer, compile_networks, update
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAE, VAEConfig, vae_loss

Step = Callable[[], object]
TOKENS = 16


@dataclass(frozen=True)
class Sizes:
    """What every step shares: the sizes of the networks and of a batch, and the device."""

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    hint_widths: tuple[int, ...] = (16, 32, 96)
    batch: int = 64
    vae_batch: int = 16
    resolution: int = 32
    device: str = "cpu"

    @property
    def latent(self) -> int:
        return self.resolution // 2 ** (len(self.vae.widths) - 1)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random z_0, context and hint of one batch."""
        z_0 = torch.randn(self.batch, self.unet.channels, self.latent, self.latent, device=self.device)
        context = torch.randn(self.batch, TOKENS, self.unet.context_width, device=self.device)
        hint = torch.rand(self.batch, 1, self.resolution, self.resolution, device=self.device).round()
        return z_0, context, hint

    def run(self, compile: bool) -> RunConfig:
        return RunConfig(device=self.device, compile=compile)

    def images(self) -> Tensor:
        shape = (self.vae_batch, self.vae.image_channels, self.resolution, self.resolution)
        return torch.rand(shape, device=self.device) * 2 - 1


def trained(
    loss: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    device: str,
    optimizer="adamw",
    bf16=False,
    ema=False,
) -> Step:
    """A training step as `fit` takes it; with "plain" as diffusers' scripts take it: AdamW with torch's defaults."""
    parameters = [p for p in parameters if p.requires_grad]
    dtype = torch.bfloat16 if bf16 else torch.float32
    if optimizer == "plain":
        made: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    else:
        made = build_optimizer(FitConfig(optimizer=optimizer, lr=1e-5), parameters, dtype)
    average = EMA(nn.ParameterList(parameters), 0.99) if ema else None

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            value = loss()
        update(value, made, 1e-5, 1.0)
        if average:
            average.update(1)

    step.loss = loss  # for counting operations
    return step


def our_unet(sizes: Sizes, compile: bool = False, **settings) -> Step:
    unet = UNet(sizes.unet).to(sizes.device, memory_format=torch.channels_last)
    compile_networks(sizes.run(compile), unet)
    schedule, (z_0, context, _) = Schedule().to(sizes.device), sizes.inputs()
    return trained(
        lambda: diffusion_loss(schedule, bind_context(unet, context), z_0), unet.parameters(), sizes.device, **settings
    )


def our_control(sizes: Sizes, compile: bool = False, unlocked: bool = False, **settings) -> Step:
    """base + ControlNet; `unlocked` trains the base's decoder too, as the released code does with sd_locked=False."""
    unet = UNet(sizes.unet).to(sizes.device, memory_format=torch.channels_last).requires_grad_(False)
    controlnet = ControlNet(unet, 1, sizes.hint_widths).to(sizes.device, memory_format=torch.channels_last)
    compile_networks(sizes.run(compile), unet, controlnet)
    schedule, (z_0, context, hint) = Schedule().to(sizes.device), sizes.inputs()
    eps_fn = bind_context(unet, context, [bind_hint(controlnet, hint)])
    for part in (unet.decoder, unet.head):
        part.requires_grad_(unlocked)
    parameters = [*controlnet.parameters(), *unet.parameters()]  # of which `trained` takes those that are not frozen
    return trained(lambda: diffusion_loss(schedule, eps_fn, z_0), parameters, sizes.device, **settings)


def our_vae(sizes: Sizes, compile: bool = False, **settings) -> Step:
    vae = VAE(sizes.vae).to(sizes.device, memory_format=torch.channels_last)
    compile_networks(sizes.run(compile), vae.encoder, vae.decoder)
    x = sizes.images()
    return trained(lambda: vae_loss(vae, x, 1e-5), vae.parameters(), sizes.device, **settings)


def diffusers_unet(sizes: Sizes, compile: bool = False, **settings) -> Step:
    unet = load_diffusers(unet_settings(sizes.unet, sizes.latent)).to(sizes.device)
    compile_networks(sizes.run(compile), unet)
    scheduler, (z_0, context, _) = diffusers_scheduler(), sizes.inputs()

    def loss() -> Tensor:
        eps, t = torch.randn_like(z_0), torch.randint(0, 1000, (len(z_0),), device=z_0.device)
        return F.mse_loss(unet(scheduler.add_noise(z_0, eps, t), t, context).sample.float(), eps)

    return trained(loss, unet.parameters(), sizes.device, "plain", **settings)


def diffusers_control(sizes: Sizes, compile: bool = False, **settings) -> Step:
    unet = load_diffusers(unet_settings(sizes.unet, sizes.latent)).to(sizes.device).requires_grad_(False)
    controlnet = load_diffusers(controlnet_settings(sizes.unet, 1, list(sizes.hint_widths))).to(sizes.device)
    compile_networks(sizes.run(compile), unet, controlnet)
    scheduler, (z_0, context, hint) = diffusers_scheduler(), sizes.inputs()

    def loss() -> Tensor:
        eps, t = torch.randn_like(z_0), torch.randint(0, 1000, (len(z_0),), device=z_0.device)
        z_t = scheduler.add_noise(z_0, eps, t)
        down, middle = controlnet(z_t, t, context, hint, return_dict=False)
        controls = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return F.mse_loss(unet(z_t, t, context, **controls).sample.float(), eps)

    return trained(loss, controlnet.parameters(), sizes.device, "plain", **settings)


def diffusers_vae(sizes: Sizes, compile: bool = False, **settings) -> Step:
    vae = load_diffusers(vae_settings(sizes.vae, 1.0, sizes.resolution)).to(sizes.device)
    compile_networks(sizes.run(compile), vae.encoder, vae.decoder)
    x = sizes.images()

    def loss() -> Tensor:
        posterior = vae.encode(x).latent_dist
        x_hat = vae.decode(posterior.sample()).sample.float()
        return F.l1_loss(x_hat, x) + F.mse_loss(x_hat, x) + 1e-5 * posterior.kl().mean()

    return trained(loss, vae.parameters(), sizes.device, "plain", **settings)


def load_diffusers(settings: dict) -> nn.Module:
    """A network of diffusers with random weights, from its config.json."""
    import diffusers

    return getattr(diffusers, settings["_class_name"]).from_config(settings).train()


def diffusers_scheduler() -> object:
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


UNLOCKED = "ControlNet, decoder unlocked"
AS_FIT = "tinyldm as fit runs it: bf16, Muon, EMA"
FIT = {"bf16": True, "optimizer": "muon", "ema": True}
PARTS = {
    "U-Net": (our_unet, diffusers_unet),
    "ControlNet": (our_control, diffusers_control),
    "VAE": (our_vae, diffusers_vae),
}


def candidates(sizes: Sizes, part: str, compile: bool) -> dict[str, Callable[[], Step]]:
    """name -> what builds its step, for one of PARTS; the first is the one that the others are compared to."""
    if part == UNLOCKED:
        return {"tinyldm fp32": partial(our_control, sizes, unlocked=True)}
    ours, theirs = (partial(build, sizes) for build in PARTS[part])
    steps = {
        "diffusers, its defaults: fp32": theirs,
        "tinyldm fp32": ours,
        "diffusers bf16": partial(theirs, bf16=True),
        "tinyldm bf16": partial(ours, bf16=True),
        AS_FIT: partial(ours, **FIT),
    }
    if compile:
        steps["diffusers bf16, compiled"] = partial(theirs, bf16=True, compile=True)
        steps["tinyldm bf16, compiled"] = partial(ours, bf16=True, compile=True)
    return steps


def sampling(sizes: Sizes, sampler: str, steps: int, controls: int = 0, guidance: float = 2.0) -> Step:
    """Sampling of one batch of latents with that many ControlNets; random weights take the time of trained ones."""
    unet = UNet(sizes.unet).to(sizes.device, memory_format=torch.channels_last).requires_grad_(False)
    nets = [ControlNet(unet, 1, sizes.hint_widths).to(sizes.device).requires_grad_(False) for _ in range(controls)]
    schedule, (z_T, context, hint) = Schedule().to(sizes.device), sizes.inputs()
    eps_fn = bind_context(unet, context, [bind_hint(net, hint) for net in nets])
    eps_fn = guided(eps_fn, eps_fn, guidance)
    return torch.no_grad()(lambda: last(SAMPLERS[sampler](schedule, eps_fn, z_T, steps)))
