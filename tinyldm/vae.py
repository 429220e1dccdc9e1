"""The KL autoencoder: image x (b, k, H, W) in [-1, 1] <-> latent z (b, c, h, w) of unit variance, H = f h [LDM, 3.1]."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tinyldm.blocks import Attention, GroupNorm, ResBlock, Up
from tinyldm.sizes import VAEConfig


def res_block(config: VAEConfig, c_in: int, c_out: int) -> nn.Module:
    return ResBlock(c_in, c_out, config.groups, eps=1e-6)


def res_blocks(config: VAEConfig, c_in: int, c_out: int, number: int) -> list[nn.Module]:
    return [res_block(config, c_in if i == 0 else c_out, c_out) for i in range(number)]


def middle(config: VAEConfig) -> nn.Module:
    width = config.widths[-1]
    attention = SelfAttention(width, config.groups)
    return nn.Sequential(res_block(config, width, width), attention, res_block(config, width, width))


def head(config: VAEConfig, width: int, channels: int) -> nn.Module:
    norm = GroupNorm(config.groups, width, eps=1e-6)
    return nn.Sequential(norm, nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))


class Down(nn.Module):
    """h (b, c, h, w) -> (b, c, h/2, w/2): as in Stable Diffusion's VAE, padded on the right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.pad(h, (0, 1, 0, 1)))


class SelfAttention(nn.Module):
    """h (b, c, h, w) -> h: single-head attention between the positions of a feature map."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.attention = Attention(channels, heads=1, bias=True)

    def forward(self, h: Tensor) -> Tensor:
        x = rearrange(self.norm(h), "b c h w -> b (h w) c")
        return h + rearrange(self.attention(x), "b (h w) c -> b c h w", h=h.shape[2])


class VAE(nn.Module):
    """The autoencoder. The latent scale lives in here: nobody outside has to know it."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        k, c, widths = config.image_channels, config.latent_channels, config.widths

        down: list[nn.Module] = [nn.Conv2d(k, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            down += res_blocks(config, widths[max(i - 1, 0)], width, config.res_blocks)
            down += [Down(width)] if i < len(widths) - 1 else []
        self.encoder = nn.Sequential(*down, middle(config), head(config, widths[-1], 2 * c))
        self.quant = nn.Conv2d(2 * c, 2 * c, 1)

        up: list[nn.Module] = [nn.Conv2d(c, widths[-1], 3, padding=1), middle(config)]
        for i, width in reversed(list(enumerate(widths))):
            up += res_blocks(config, widths[min(i + 1, len(widths) - 1)], width, config.res_blocks + 1)
            up += [Up(width)] if i else []
        self.post_quant = nn.Conv2d(c, c, 1)
        self.decoder = nn.Sequential(*up, head(config, widths[0], k))
        self.register_buffer("scale", torch.ones(()))

    @property
    def f(self) -> int:
        """Downsampling factor."""
        return 2 ** (len(self.config.widths) - 1)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (b, k, H, W) -> mean, logvar (b, c, h, w) of q(z | x), before scaling; logvar in [-30, 20]."""
        mean, logvar = self.quant(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def encode(self, x: Tensor) -> Tensor:
        """x (b, k, H, W) in [-1, 1] -> z (b, c, h, w), the scaled posterior mean: unit variance over the training set."""
        mean, _ = self.posterior(x)
        return mean * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """z (b, c, h, w) -> x (b, k, H, W), in [-1, 1] but for overshoot."""
        return self.decoder(self.post_quant(z / self.scale))

    @torch.no_grad()
    def set_scale(self, z: Tensor) -> None:
        """Choose the scale so that these latents (n, c, h, w), encoded before, would have unit variance [LDM, D.1]."""
        self.scale /= z.std()


def vae_loss(vae: VAE, x: Tensor, kl_weight: float) -> Tensor:
    """L1 + MSE of the reconstruction plus kl_weight KL(q(z | x) || N(0, I)), each a mean over elements, to ().

    LDM [G] has LPIPS and a discriminator in place of MSE; both need networks trained elsewhere.
    """
    mean, logvar = (y.float() for y in vae.posterior(x))
    z = mean + (logvar / 2).exp() * torch.randn_like(mean)
    x_hat = vae.decode(z * vae.scale).float()
    kl = (mean**2 + logvar.exp() - 1 - logvar).mean() / 2
    return F.l1_loss(x_hat, x) + F.mse_loss(x_hat, x) + kl_weight * kl
