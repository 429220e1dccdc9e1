"""What every weight of ours is called in diffusers' UNet2DConditionModel, ControlNetModel and AutoencoderKL."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from tinyldm.blocks import (
    Attention,
    Down,
    FeedForward,
    ResBlock,
    SpatialTransformer,
    TransformerBlock,
    Up,
)
from tinyldm.controlnet import ControlNet
from tinyldm.unet import UNet
from tinyldm.vae import VAE, SelfAttention
from tinyldm.vae import Down as VAEDown

Network = UNet | ControlNet | VAE
Parts = Sequence[tuple[str, nn.Module]]  # our name, module
Pairs = Iterator[tuple[str, str]]  # our name of a module, theirs

RENAMED: dict[type, dict[str, str]] = {  # our class -> our name of a child -> theirs, if it differs
    ResBlock: {"time": "time_emb_proj", "skip": "conv_shortcut"},
    SpatialTransformer: {"into": "proj_in", "block": "transformer_blocks.0", "out": "proj_out"},
    TransformerBlock: {"self_attention": "attn1", "cross_attention": "attn2", "feed_forward": "ff"},
    Attention: {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    FeedForward: {"into": "net.0.proj", "out": "net.2"},
    SelfAttention: {"norm": "group_norm", "attention": ""},  # its projections stand in it directly
}
PLACES = {  # our class -> the list that it stands in at each of diffusers' levels
    ResBlock: "resnets",
    SpatialTransformer: "attentions",
    SelfAttention: "attentions",
    Down: "downsamplers",
    VAEDown: "downsamplers",
    Up: "upsamplers",
}
MIDDLE = 3  # parts: a ResBlock, an attention, a ResBlock

FIXED = {  # what has the same name at all sizes
    "time_embed.mlp.0": "time_embedding.linear_1",
    "time_embed.mlp.2": "time_embedding.linear_2",
    "stem": "conv_in",
    "head.0": "conv_norm_out",
    "head.2": "conv_out",
    "quant": "quant_conv",
    "post_quant": "post_quant_conv",
    "encoder.0": "encoder.conv_in",
    "decoder.0": "decoder.conv_in",
}


def parts_of(module: nn.Module, name: str) -> Parts:
    """The modules of PLACES inside a module, from its input to its output; `name` is that of the module."""
    return [(n, part) for n, part in module.named_modules(prefix=name) if type(part) in PLACES]


def inside(module: nn.Module, ours: str, theirs: str) -> Pairs:
    """A module, whose names are given, and all modules in it."""
    yield ours, theirs
    for name, child in module.named_children():
        new = RENAMED.get(type(module), {}).get(name, name)
        yield from inside(child, f"{ours}.{name}", f"{theirs}.{new}".rstrip("."))


def numbered(parts: Parts, theirs: str) -> Pairs:
    """Each part in its list of its level. A Down or an Up ends a level, whose number is the {} in `theirs`."""
    level, seen = 0, Counter[str]()
    for ours, part in parts:
        place = PLACES[type(part)]
        yield from inside(part, ours, f"{theirs.format(level)}.{place}.{seen[place]}")
        seen[place] += 1
        if place.endswith("samplers"):
            level, seen = level + 1, Counter()


def encoder_pairs(network: Network, theirs: str = "") -> Pairs:
    """The levels of an encoder, and the middle."""
    parts = parts_of(network.encoder, "encoder")
    yield from numbered(parts[:-MIDDLE], theirs + "down_blocks.{}")
    yield from numbered(parts[-MIDDLE:], theirs + "mid_block")


def unet_pairs(unet: UNet) -> Pairs:
    """What a ControlNet copies, then the decoder."""
    yield from encoder_pairs(unet)
    yield from numbered(parts_of(unet.decoder, "decoder"), "up_blocks.{}")


def controlnet_pairs(controlnet: ControlNet) -> Pairs:
    """The copies, then the hint encoder and the zero convolutions, the middle's last."""
    yield from encoder_pairs(controlnet)
    inner = range(2 * len(controlnet.config.hint_widths) - 2)
    for i, name in enumerate(["conv_in", *(f"blocks.{i}" for i in inner), "conv_out"]):
        yield f"hint_encoder.{2 * i}", f"controlnet_cond_embedding.{name}"
    *down, middle = range(len(controlnet.zero_convs))
    yield from ((f"zero_convs.{i}", f"controlnet_down_blocks.{i}") for i in down)
    yield f"zero_convs.{middle}", "controlnet_mid_block"


def vae_pairs(vae: VAE) -> Pairs:
    """The encoder, the decoder, which starts with the middle, and the head of each."""
    yield from encoder_pairs(vae, "encoder.")
    parts = parts_of(vae.decoder, "decoder")
    yield from numbered(parts[:MIDDLE], "decoder.mid_block")
    yield from numbered(parts[MIDDLE:], "decoder.up_blocks.{}")
    for half in ("encoder", "decoder"):
        head = f"{half}.{len(getattr(vae, half)) - 1}"
        yield f"{head}.0", f"{half}.conv_norm_out"
        yield f"{head}.2", f"{half}.conv_out"


PAIRS: dict[type, Callable[[Any], Pairs]] = {
    UNet: unet_pairs,
    ControlNet: controlnet_pairs,
    VAE: vae_pairs,
}


def table_of(network: Network) -> dict[str, str]:
    """Our key -> diffusers' key, for every weight."""
    names = {**FIXED, **dict(PAIRS[type(network)](network))}
    keys = [key.rpartition(".") for key in network.state_dict() if key != "scale"]
    return {f"{ours}.{leaf}": f"{names[ours]}.{leaf}" for ours, _, leaf in keys}
