"""The KL autoencoder: image x (b, k, H, W) in [-1, 1] <-> latent z (b, c, h, w), H = f h [LDM, 3.1]."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tinyldm.blocks import Attention, GroupNorm, ResBlock, Up, check, head

MSE_WEIGHT = 10  # beside L1


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder. Stable Diffusion 1.5: image 3, widths 128, 256, 512, 512, res_blocks 2."""

    image_channels: int = 1  # k, from the images
    latent_channels: int = 4  # c
    widths: tuple[int, ...] = (8, 16, 32)  # one per resolution; f = 2 ** (len(widths) - 1)
    res_blocks: int = 1  # a level on the way down, one more on the way up

    def __post_init__(self) -> None:
        check(self, image_channels=1, latent_channels=1, widths=1)
        check(self, most=64, res_blocks=1)

    @property
    def f(self) -> int:  # downsampling factor
        return 2 ** (len(self.widths) - 1)

    @property
    def groups(self) -> int:  # of every GroupNorm: 32, as in SD, or what divides the widths
        return math.gcd(32, *self.widths)


class Down(nn.Module):
    """x (b, c, h, w) -> (b, c, h/2, w/2); as in SD's VAE, padded on the right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class SelfAttention(nn.Module):
    """x (b, c, h, w) -> x: single-head attention between the positions of a feature map."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.attention = Attention(channels, heads=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        y = rearrange(self.norm(x), "b c h w -> b (h w) c")  # (b, n, c)
        y = self.attention(y)  # (b, n, c)
        return x + rearrange(y, "b (h w) c -> b c h w", h=x.shape[2])


def res_blocks(config: VAEConfig, c_in: int, c_out: int, number: int) -> list[nn.Module]:
    pairs = [(c_in if i == 0 else c_out, c_out) for i in range(number)]
    return [ResBlock(a, b, config.groups, eps=1e-6) for a, b in pairs]


def middle(config: VAEConfig, width: int) -> nn.Module:
    attention = SelfAttention(width, config.groups)
    first, second = res_blocks(config, width, width, 2)
    return nn.Sequential(first, attention, second)


class VAE(nn.Module):
    """The autoencoder. It applies the latent scale itself: nobody outside has to know it."""

    scale: Tensor  # (); what makes latents of unit variance

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        k, c, widths = config.image_channels, config.latent_channels, config.widths
        finest, coarsest, groups = widths[0], widths[-1], config.groups

        down: list[nn.Module] = [nn.Conv2d(k, finest, 3, padding=1)]
        for i, width in enumerate(widths):
            down += res_blocks(config, widths[max(i - 1, 0)], width, config.res_blocks)
            down += [Down(width)] if i < len(widths) - 1 else []
        down += [middle(config, coarsest), head(coarsest, 2 * c, groups, eps=1e-6)]
        self.encoder = nn.Sequential(*down)
        self.quant = nn.Conv2d(2 * c, 2 * c, 1)

        up: list[nn.Module] = [nn.Conv2d(c, coarsest, 3, padding=1), middle(config, coarsest)]
        for i, width in reversed(list(enumerate(widths))):
            c_in = widths[min(i + 1, len(widths) - 1)]
            up += res_blocks(config, c_in, width, config.res_blocks + 1)
            up += [Up(width)] if i else []
        self.post_quant = nn.Conv2d(c, c, 1)
        self.decoder = nn.Sequential(*up, head(finest, k, groups, eps=1e-6))
        self.register_buffer("scale", torch.ones(()))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (b, k, H, W) -> mean, logvar (b, c, h, w) of q(z | x), unscaled; logvar in [-30, 20]."""
        mean, logvar = self.quant(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def encode(self, x: Tensor) -> Tensor:
        """x (b, k, H, W) in [-1, 1] -> z (b, c, h, w), the scaled posterior mean."""
        return self.posterior(x)[0] * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """z (b, c, h, w) -> x (b, k, H, W), in [-1, 1] but for overshoot."""
        return self.decoder(self.post_quant(z / self.scale))

    @torch.no_grad()
    def set_scale(self, z: Tensor) -> Tensor:
        """Set the scale so that latents z (n, c, h, w) have unit variance; return them scaled [LDM, D.1]."""
        scale = 1 / z.std()
        self.scale *= scale
        return z * scale


def vae_loss(vae: VAE, x: Tensor, kl_weight: float) -> Tensor:
    """L1 + 10 MSE of the reconstruction + kl_weight KL(q(z | x) || N(0, I)), means over elements, to ().

    LDM [G] has LPIPS and a discriminator in place of MSE; both need networks trained elsewhere.
    """
    mean, logvar = (y.float() for y in vae.posterior(x))  # (b, c, h, w) each
    z = mean + (logvar / 2).exp() * torch.randn(mean.shape, device=mean.device)
    x_hat = vae.decode(z * vae.scale).float()  # (b, k, H, W)
    kl = (mean**2 + logvar.exp() - 1 - logvar).mean() / 2
    return F.l1_loss(x_hat, x) + MSE_WEIGHT * F.mse_loss(x_hat, x) + kl_weight * kl
