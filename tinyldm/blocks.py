"""The modules that every network here is made of, with the layout of Stable Diffusion 1.5.

Letters: b batch, c channels, h w height and width, n positions (= h w), d width of a token, l context tokens.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def zero(module: nn.Module) -> nn.Module:
    """Set every parameter of a module to zero and return it: a residual branch that ends in it starts as identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """h (b, c, h, w) -> h, normalised in fp32 also where h is bf16: PyTorch's bf16 kernel is 3 to 4 times slower on CPUs."""

    def forward(self, h: Tensor) -> Tensor:
        return F.group_norm(h.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(h.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (b, heads, n, d); in fp32 on CPUs, where the bf16 kernel's gradient is 10 times slower."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class TimeEmbedding(nn.Module):
    """Timesteps t (b,) in 1..T -> t_emb (b, 4 c): sinusoids, then a two-layer MLP [DDPM, appendix B].

    The sinusoids see t - 1, so that trained weights mean the same as in Stable Diffusion, which counts from 0.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))

    def sinusoids(self, t: Tensor) -> Tensor:
        exponents = torch.arange(self.half, dtype=torch.float32, device=t.device) / self.half
        angles = (t - 1).float()[:, None] * torch.exp(-math.log(10_000) * exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (b, c)

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.sinusoids(t).to(self.mlp[0].weight.dtype))


class ResBlock(nn.Module):
    """h (b, c_in, h, w), t_emb (b, t_width) -> (b, c_out, h, w). Without t_width it is the VAE's block, and ignores t_emb."""

    def __init__(self, c_in: int, c_out: int, groups: int, t_width: int = 0, eps: float = 1e-5):
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(t_width, c_out) if t_width else None
        self.norm2 = GroupNorm(groups, c_out, eps)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, h: Tensor, t_emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        x = self.conv1(F.silu(self.norm1(h)))
        if self.time is not None:
            x = x + self.time(F.silu(t_emb))[:, :, None, None]
        return self.skip(h) + self.conv2(F.silu(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head attention from x (b, n, d) to context (b, l, d_context), by default to x itself [LDM, eq. of 3.3]."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(context_width or width, width, bias=bias)
        self.v = nn.Linear(context_width or width, width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.q(x), self.k(context), self.v(context)
        q, k, v = (rearrange(y, "b n (heads d) -> b heads n d", heads=self.heads) for y in (q, k, v))
        x = attend(q, k, v)
        return self.out(rearrange(x, "b heads n d -> b n (heads d)"))


class FeedForward(nn.Module):
    """x (b, n, d) -> (b, n, d): GEGLU, a linear layer to 4 d gated by another, then back to d."""

    def __init__(self, width: int):
        super().__init__()
        self.into = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.into(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """x (b, n, d), context (b, l, d_context) -> x: self-attention, cross-attention, feed-forward, each pre-LN."""

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
    """h (b, c, h, w), context (b, l, d) -> h: the positions of a feature map as tokens [LDM, appendix E.2.1]."""

    def __init__(self, channels: int, groups: int, heads: int, context_width: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.into = nn.Conv2d(channels, channels, 1)
        self.block = TransformerBlock(channels, heads, context_width)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor, t_emb: Tensor, context: Tensor) -> Tensor:
        x = self.into(self.norm(h))
        x = rearrange(x, "b c h w -> b (h w) c")
        x = self.block(x, context)
        x = rearrange(x, "b (h w) c -> b c h w", h=h.shape[2])
        return h + self.out(x)


class Down(nn.Module):
    """h (b, c, h, w) -> (b, c, h/2, w/2) by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, t_emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return self.conv(h)


class Up(nn.Module):
    """h (b, c, h, w) -> (b, c, 2h, 2w): nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, t_emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
