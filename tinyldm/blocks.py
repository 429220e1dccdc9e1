"""The modules that every network here is made of, with the layout of Stable Diffusion 1.5.

b batch, c channels, h w height and width, n = h w positions, d token width, l context tokens, e width of t_emb
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def check(config: object, most: int = 65_536, **smallest: int) -> None:
    """Raise ValueError, naming the field, for a number of this configuration out of [smallest, most].

    A field may hold one number, or 1 to 16 of them.
    """
    for name, least in smallest.items():
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if not (1 <= len(values) <= 16 and all(least <= x <= most for x in values)):
            raise ValueError(f"{name} {value}: must be {least} to {most}")


def zero(module: nn.Module) -> nn.Module:
    """Set all parameters to zero and return the module; a residual branch ending in it starts as 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """x (b, c, h, w) -> x, normalised in fp32: PyTorch's bf16 kernel is 3 to 4 times slower on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (b, heads, n, d); in fp32 on CPUs, whose bf16 gradient is 10 times slower."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class TimeEmbedding(nn.Module):
    """Timesteps t (b,) in 1..T -> t_emb (b, 4 c): sinusoids of t - 1, as in SD, and an MLP [DDPM, app. B]."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels, width = channels, 4 * channels
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = rearrange(t - 1, "b -> b 1").float() * torch.exp(-math.log(10_000) * exponents)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (b, c)
        return self.mlp(sinusoids.to(next(self.parameters()).dtype))  # (b, 4 c)


def head(width: int, channels: int, groups: int, eps: float = 1e-5) -> nn.Sequential:
    """x (b, width, h, w) -> (b, channels, h, w): what a network ends in."""
    conv = nn.Conv2d(width, channels, 3, padding=1)
    return nn.Sequential(GroupNorm(groups, width, eps), nn.SiLU(), conv)


class ResBlock(nn.Module):
    """x (b, c_in, h, w), t_emb (b, e) -> (b, c_out, h, w); without t_width the VAE's block, without t_emb."""

    def __init__(self, c_in: int, c_out: int, groups: int, t_width: int = 0, eps: float = 1e-5):
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(t_width, c_out) if t_width else None
        self.norm2 = GroupNorm(groups, c_out, eps)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, t_emb: Tensor | None = None, context: object = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))  # (b, c_out, h, w)
        if self.time is not None:
            assert t_emb is not None
            y = y + rearrange(self.time(F.silu(t_emb)), "b c -> b c 1 1")
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """Multi-head attention from x (b, n, d) to context (b, l, d_context), by default to x [LDM, 3.3]."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, bias=False):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(context_width or width, width, bias=bias)
        self.v = nn.Linear(context_width or width, width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.q(x), self.k(context), self.v(context)  # (b, n, d), (b, l, d), (b, l, d)
        q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=self.heads) for y in (q, k, v))
        x = attend(q, k, v)  # (b, heads, n, d / heads)
        return self.out(rearrange(x, "b h n d -> b n (h d)"))  # (b, n, d)


class FeedForward(nn.Module):
    """x (b, n, d) -> (b, n, d): GEGLU, a linear layer to 4 d gated by another, then back to d."""

    def __init__(self, width: int):
        super().__init__()
        self.into = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.into(x).chunk(2, dim=-1)  # (b, n, 4 d) each
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """x (b, n, d), context (b, l, d_context) -> x: self-attention, cross-attention, feed-forward."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads, context_width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """x (b, c, h, w), context (b, l, d) -> x: the positions of a feature map as tokens [LDM, E.2.1]."""

    def __init__(self, channels: int, groups: int, heads: int, context_width: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.into = nn.Conv2d(channels, channels, 1)
        self.block = TransformerBlock(channels, heads, context_width)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, t_emb: Tensor, context: Tensor) -> Tensor:
        y = self.into(self.norm(x))  # (b, c, h, w)
        y = rearrange(y, "b c h w -> b (h w) c")  # (b, n, c)
        y = self.block(y, context)  # (b, n, c)
        y = rearrange(y, "b (h w) c -> b c h w", h=x.shape[2])  # (b, c, h, w)
        return x + self.out(y)


class Down(nn.Module):
    """x (b, c, h, w) -> (b, c, h/2, w/2) by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, t_emb: object = None, context: object = None) -> Tensor:
        return self.conv(x)


class Up(nn.Module):
    """x (b, c, h, w) -> (b, c, 2h, 2w): nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t_emb: object = None, context: object = None) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
