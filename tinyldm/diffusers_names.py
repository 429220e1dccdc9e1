"""What every weight of ours is called in diffusers' UNet2DConditionModel, ControlNetModel and AutoencoderKL."""

from collections.abc import Iterator

from torch import nn

from tinyldm.controlnet import ControlNet
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAEConfig

Pairs = Iterator[tuple[str, str]]  # our module, theirs

RES_BLOCK = [
    *((n, n) for n in ("norm1", "conv1", "norm2", "conv2")),
    ("time", "time_emb_proj"),
    ("skip", "conv_shortcut"),
]
ATTENTION = [("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")]
TRANSFORMER = [
    *[("norm", "norm"), ("into", "proj_in"), ("out", "proj_out")],
    *[(f"block.{n}", f"transformer_blocks.0.{n}") for n in ("norm1", "norm2", "norm3")],
    *[(f"block.self_attention.{a}", f"transformer_blocks.0.attn1.{b}") for a, b in ATTENTION],
    *[(f"block.cross_attention.{a}", f"transformer_blocks.0.attn2.{b}") for a, b in ATTENTION],
    ("block.feed_forward.into", "transformer_blocks.0.ff.net.0.proj"),
    ("block.feed_forward.out", "transformer_blocks.0.ff.net.2"),
]
SELF_ATTENTION = [("norm", "group_norm"), *((f"attention.{a}", b) for a, b in ATTENTION)]


def under(ours: str, theirs: str, table: list[tuple[str, str]]) -> Pairs:
    yield from ((f"{ours}.{a}", f"{theirs}.{b}") for a, b in table)


def encoder_pairs(config: UNetConfig) -> Pairs:
    """What a U-Net and its ControlNet share: time embedding, stem, encoder with the middle."""
    yield from [("time_embed.mlp.0", "time_embedding.linear_1"), ("time_embed.mlp.2", "time_embedding.linear_2")]
    yield "stem", "conv_in"
    n = 0
    for i in range(len(config.widths)):
        for j in range(config.res_blocks):
            yield from under(f"encoder.blocks.{n}.parts.0", f"down_blocks.{i}.resnets.{j}", RES_BLOCK)
            if config.attention[i]:
                yield from under(f"encoder.blocks.{n}.parts.1", f"down_blocks.{i}.attentions.{j}", TRANSFORMER)
            n += 1
        if i < len(config.widths) - 1:
            yield f"encoder.blocks.{n}.parts.0.conv", f"down_blocks.{i}.downsamplers.0.conv"
            n += 1
    yield from under(f"encoder.blocks.{n}.parts.0", "mid_block.resnets.0", RES_BLOCK)
    yield from under(f"encoder.blocks.{n}.parts.1", "mid_block.attentions.0", TRANSFORMER)
    yield from under(f"encoder.blocks.{n}.parts.2", "mid_block.resnets.1", RES_BLOCK)


def unet_pairs(config: UNetConfig) -> Pairs:
    """What a ControlNet copies, then the decoder and the head."""
    yield from encoder_pairs(config)
    n = 0
    for k, i in enumerate(reversed(range(len(config.widths)))):
        for j in range(config.res_blocks + 1):
            yield from under(f"decoder.blocks.{n}.parts.0", f"up_blocks.{k}.resnets.{j}", RES_BLOCK)
            if config.attention[i]:
                yield from under(f"decoder.blocks.{n}.parts.1", f"up_blocks.{k}.attentions.{j}", TRANSFORMER)
            if i and j == config.res_blocks:
                yield f"decoder.blocks.{n}.parts.{1 + config.attention[i]}.conv", f"up_blocks.{k}.upsamplers.0.conv"
            n += 1
    yield from [("head.0", "conv_norm_out"), ("head.2", "conv_out")]


def controlnet_pairs(config: UNetConfig, hint_convs: int, zero_convs: int) -> Pairs:
    yield from encoder_pairs(config)
    hint = "controlnet_cond_embedding"
    theirs = ["conv_in", *(f"blocks.{i}" for i in range(hint_convs - 2)), "conv_out"]
    yield from ((f"hint_encoder.{2 * i}", f"{hint}.{name}") for i, name in enumerate(theirs))
    yield from ((f"zero_convs.{i}", f"controlnet_down_blocks.{i}") for i in range(zero_convs - 1))
    yield f"zero_convs.{zero_convs - 1}", "controlnet_mid_block"


def vae_middle_pairs(ours: str, theirs: str) -> Pairs:
    yield from under(f"{ours}.0", f"{theirs}.mid_block.resnets.0", RES_BLOCK)
    yield from under(f"{ours}.1", f"{theirs}.mid_block.attentions.0", SELF_ATTENTION)
    yield from under(f"{ours}.2", f"{theirs}.mid_block.resnets.1", RES_BLOCK)


def vae_pairs(config: VAEConfig) -> Pairs:
    """Encoder, then decoder, from the outside in and back."""
    levels, n = len(config.widths), 1
    yield from [("encoder.0", "encoder.conv_in"), ("quant", "quant_conv"), ("post_quant", "post_quant_conv")]
    for i in range(levels):
        for j in range(config.res_blocks):
            yield from under(f"encoder.{n}", f"encoder.down_blocks.{i}.resnets.{j}", RES_BLOCK)
            n += 1
        if i < levels - 1:
            yield f"encoder.{n}.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv"
            n += 1
    yield from vae_middle_pairs(f"encoder.{n}", "encoder")
    yield from [(f"encoder.{n + 1}.0", "encoder.conv_norm_out"), (f"encoder.{n + 1}.2", "encoder.conv_out")]
    yield "decoder.0", "decoder.conv_in"
    yield from vae_middle_pairs("decoder.1", "decoder")
    n = 2
    for k, i in enumerate(reversed(range(levels))):
        for j in range(config.res_blocks + 1):
            yield from under(f"decoder.{n}", f"decoder.up_blocks.{k}.resnets.{j}", RES_BLOCK)
            n += 1
        if i:
            yield f"decoder.{n}.conv", f"decoder.up_blocks.{k}.upsamplers.0.conv"
            n += 1
    yield from [(f"decoder.{n}.0", "decoder.conv_norm_out"), (f"decoder.{n}.2", "decoder.conv_out")]


def table_of(network: nn.Module, config: UNetConfig | VAEConfig) -> dict[str, str]:
    """Our key -> diffusers' key, for every weight of a UNet, ControlNet (with its U-Net's config) or VAE."""
    if isinstance(network, UNet):
        pairs = dict(unet_pairs(config))
    elif isinstance(network, ControlNet):
        convs = sum(isinstance(layer, nn.Conv2d) for layer in network.hint_encoder)
        pairs = dict(controlnet_pairs(config, convs, len(network.zero_convs)))
    else:
        pairs = dict(vae_pairs(config))
    keys = [key for key in network.state_dict() if key != "scale"]
    return {key: f"{pairs[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}" for key in keys}
