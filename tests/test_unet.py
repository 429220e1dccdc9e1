"""Every block against torch's functions, written out once more, and the sizes that a configuration takes."""

import math
from dataclasses import astuple
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise
from torch import Tensor, nn

from tinyldm.blocks import (
    Attention,
    Down,
    FeedForward,
    ResBlock,
    SpatialTransformer,
    TimeEmbedding,
    TransformerBlock,
    Up,
    check,
    head,
)
from tinyldm.controlnet import ControlNetConfig
from tinyldm.text import TextConfig
from tinyldm.unet import Block, Encoder, UNet, UNetConfig
from tinyldm.vae import VAEConfig

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random(module: nn.Module) -> nn.Module:
    """The module with weights that are no longer zero anywhere, and without gradients."""
    return randomise(module, std=0.3).requires_grad_(False)


def convolved(x: Tensor, conv: nn.Module, padding: int = 1, stride: int = 1) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    return F.conv2d(x, conv.weight, conv.bias, stride, padding)


def normed(x: Tensor, norm: nn.Module, groups: int, eps: float) -> Tensor:
    assert isinstance(norm, nn.GroupNorm)
    return F.group_norm(x, groups, norm.weight, norm.bias, eps)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_the_time_embedding_is_cosines_then_sines_of_t_minus_1(t):
    embedding, seen = TimeEmbedding(8), []
    embedding.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert embedding(torch.tensor([t, 3])).shape == (2, 32)
    angles = [(t - 1) * 10_000 ** (-i / 4) for i in range(4)]
    expected = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)])
    torch.testing.assert_close(seen[0][0], expected, rtol=0, atol=2e-4)
    assert [layer.out_features for layer in embedding.mlp[::2]] == [32, 32]


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_a_head_is_a_norm_silu_and_a_convolution(eps):
    module = random(head(8, 3, 4) if eps == 1e-5 else head(8, 3, 4, eps))
    x = 0.01 * noise(2, 8, 5, 6)  # small, so that eps is seen
    expected = convolved(F.silu(normed(x, module[0], 4, eps)), module[2])
    torch.testing.assert_close(module(x), expected, **CLOSE)
    assert expected.shape == (2, 3, 5, 6) and module[2].kernel_size == (3, 3)


@pytest.mark.parametrize("c_out", [4, 6])
@pytest.mark.parametrize("t_width", [0, 10])
def test_a_res_block_adds_two_convolutions_and_the_time_to_its_input(c_out, t_width):
    block = random(ResBlock(4, c_out, 2, t_width) if t_width else ResBlock(4, c_out, 2))
    x, t_emb = 0.01 * noise(2, 4, 5, 6), noise(2, 10, seed=1)
    y = convolved(F.silu(normed(x, block.norm1, 2, 1e-5)), block.conv1)
    if t_width:
        time = F.linear(F.silu(t_emb), block.time.weight, block.time.bias)
        y = y + time[:, :, None, None]
    y = convolved(F.silu(normed(y, block.norm2, 2, 1e-5)), block.conv2)
    skip = x if c_out == 4 else convolved(x, block.skip, padding=0)
    torch.testing.assert_close(block(x, t_emb) if t_width else block(x), skip + y, **CLOSE)
    assert (block.time is None) == (t_width == 0)
    assert block.conv1.kernel_size == block.conv2.kernel_size == (3, 3)


def test_the_second_norm_of_a_res_block_has_the_same_eps():
    block = random(ResBlock(4, 4, 2, eps=0.5))
    assert block.norm1.eps == block.norm2.eps == 0.5 and ResBlock(4, 4, 2).norm2.eps == 1e-5


def test_what_is_added_to_a_skip_is_zero_at_first():
    x = noise(2, 4, 6, 6)
    assert torch.equal(ResBlock(4, 4, 2)(x), x)
    transformer = SpatialTransformer(4, 2, 2, 3)
    assert torch.equal(transformer(x, noise(1), noise(2, 5, 3)), x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("context_width", [None, 6])
def test_attention_is_torchs_multi_head_attention(bias, context_width):
    kwargs = {"bias": True} if bias else {}
    attention = random(Attention(8, 2, context_width, **kwargs))
    x, context = noise(3, 5, 8), noise(3, 7, context_width or 8, seed=1)
    q, k, v = (layer.weight for layer in (attention.q, attention.k, attention.v))
    layers = (attention.q, attention.k, attention.v)
    assert all((layer.bias is not None) == bias for layer in layers)
    biases = torch.cat([layer.bias for layer in layers]) if bias else None
    expected, _ = F.multi_head_attention_forward(
        *(y.transpose(0, 1) for y in (x, context, context)),
        *(8, 2, None, biases, None, None, False, 0.0),
        *(attention.out.weight, attention.out.bias),
        use_separate_proj_weight=True,
        q_proj_weight=q,
        k_proj_weight=k,
        v_proj_weight=v,
    )
    torch.testing.assert_close(attention(x, context), expected.transpose(0, 1), **CLOSE)
    if context_width is None:
        torch.testing.assert_close(attention(x), attention(x, x))


def test_feed_forward_is_a_geglu_four_times_as_wide():
    layer, x = random(FeedForward(3)), noise(2, 5, 3)
    value, gate = (x @ layer.into.weight.T + layer.into.bias).split(12, dim=-1)
    expected = (value * F.gelu(gate)) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_a_transformer_block_attends_to_itself_then_to_the_context_then_feeds_forward():
    block, x, context = random(TransformerBlock(8, 2, 6)), noise(2, 5, 8), noise(2, 3, 6, seed=1)
    norms = [
        lambda y, n=n: F.layer_norm(y, (8,), n.weight, n.bias)
        for n in (block.norm1, block.norm2, block.norm3)
    ]
    y = x + block.self_attention(norms[0](x))
    y = y + block.cross_attention(norms[1](y), context)
    y = y + block.feed_forward(norms[2](y))
    torch.testing.assert_close(block(x, context), y, **CLOSE)


def test_a_spatial_transformer_takes_the_positions_row_by_row_as_tokens():
    module = random(SpatialTransformer(4, 2, 2, 6))
    x, context = 0.01 * noise(2, 4, 3, 5), noise(2, 7, 6, seed=1)
    y = convolved(normed(x, module.norm, 2, 1e-6), module.into, padding=0)
    tokens = y.flatten(2).transpose(1, 2)  # (b, n, c)
    y = module.block(tokens, context).transpose(1, 2).reshape(x.shape)
    expected = x + convolved(y, module.out, padding=0)
    torch.testing.assert_close(module(x, noise(1), context), expected, **CLOSE)


def test_down_is_every_second_position_of_a_convolution_and_up_repeats_each():
    down, up, x = random(Down(3)), random(Up(3)), noise(2, 3, 6, 8)
    torch.testing.assert_close(down(x), convolved(x, down.conv)[:, :, ::2, ::2], **CLOSE)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(up(x), convolved(repeated, up.conv), **CLOSE)
    assert down.conv.kernel_size == up.conv.kernel_size == (3, 3)


# ---------------------------------------------------------------- the U-Net


def test_a_block_passes_its_parts_in_order_with_time_and_context():
    def part(x, t_emb, context):
        return 2 * x + 10 * t_emb + context

    class Part(nn.Module):
        def forward(self, x, t_emb, context):
            return part(x, t_emb, context)

    x, t_emb, context = noise(2, 3), noise(2, 3, seed=1), noise(2, 3, seed=2)
    expected = part(part(x, t_emb, context), t_emb, context)
    torch.testing.assert_close(Block(Part(), Part())(x, t_emb, context), expected)
    assert torch.equal(Block()(x, t_emb, context), x)


def test_features_halve_between_the_levels_and_the_middle_has_a_transformer():
    encoder = Encoder(UNetConfig(4, (8, 16), 2, (False, True), 2, 6))
    features = encoder(noise(1, 8, 4, 8), noise(1, 32), noise(1, 3, 6))
    sizes = [tuple(feature.shape[1:]) for feature in features]
    assert sizes == [(8, 4, 8)] * 3 + [(8, 2, 4)] + [(16, 2, 4)] * 3
    assert encoder.channels == [c for c, *_ in sizes]
    kinds = [[type(part) for part in block.parts] for block in encoder.blocks]
    first, second = [[ResBlock]] * 2 + [[Down]], [[ResBlock, SpatialTransformer]] * 2
    assert kinds == [*first, *second, [ResBlock, SpatialTransformer, ResBlock]]


def test_a_fresh_unet_predicts_zero_noise():
    unet = UNet(UNetConfig(4, (8, 16), 1, (False, True), 2, 6))
    z_t = noise(2, 4, 4, 4)
    assert torch.equal(unet(z_t, torch.tensor([1, 7]), noise(2, 3, 6)), torch.zeros_like(z_t))


# ---------------------------------------------------------------- sizes


def test_a_number_may_be_its_smallest_and_no_less():
    check(SimpleNamespace(a=1, b=(3, 2), c=-1), a=1, b=2, c=-1)
    for name, value in (("a", 0), ("b", (3, 1)), ("b", ())):
        with pytest.raises(ValueError, match=f"^{name} "):
            check(SimpleNamespace(**{"a": 1, "b": (2,), name: value}), a=1, b=2)
    with pytest.raises(ValueError, match=r"^b \(\): must be"):
        check(SimpleNamespace(b=()), b=0)  # nothing is less than anything


def test_a_number_may_be_its_largest_and_no_more_and_there_are_16_at_most():
    check(SimpleNamespace(a=65_536, b=(2, 65_536), c=(1,) * 16), a=1, b=1, c=1)
    check(SimpleNamespace(a=7, b=(7,)), most=7, a=1, b=1)
    for name, value in (("a", 65_537), ("b", (2, 65_537)), ("c", (1,) * 17)):
        with pytest.raises(ValueError, match=f"^{name} .*: must be 1 to 65536$"):
            check(SimpleNamespace(**{name: value}), **{name: 1})
    with pytest.raises(ValueError, match=r"^a 8: must be 3 to 7$"):
        check(SimpleNamespace(a=8), most=7, a=3)


@pytest.mark.parametrize(
    ("config", "name", "most"),
    [
        *((UNetConfig, name, 65_536) for name in ("channels", "context_width")),
        *((VAEConfig, name, 65_536) for name in ("image_channels", "latent_channels")),
        *((TextConfig, name, 65_536) for name in ("length", "width")),
        (ControlNetConfig, "hint_channels", 65_536),
        *(
            (UNetConfig, "res_blocks", 64),
            (VAEConfig, "res_blocks", 64),
            (TextConfig, "layers", 64),
        ),
    ],
)
def test_the_largest_sizes_are_allowed_and_larger_ones_are_named(config, name, most):
    assert getattr(config(**{name: most}), name) == most
    with pytest.raises(ValueError, match=f"^{name} {most + 1}: must be . to {most}$"):
        config(**{name: most + 1})


@pytest.mark.parametrize(
    ("config", "name"),
    [(UNetConfig, "widths"), (VAEConfig, "widths"), (ControlNetConfig, "hint_widths")],
)
def test_a_network_has_16_levels_at_most(config, name):
    def sizes(levels):
        more = {"attention": (False,) * levels} if config is UNetConfig else {}
        return {name: (4,) * levels, **more}

    config(**sizes(16))
    with pytest.raises(ValueError, match=f"^{name} "):
        config(**sizes(17))


SMALLEST = {
    UNetConfig: {
        **{"channels": 1, "widths": (2,), "res_blocks": 1, "attention": (True,), "heads": 1},
        "context_width": 1,
    },
    VAEConfig: {"image_channels": 1, "latent_channels": 1, "widths": (1,), "res_blocks": 1},
    TextConfig: {"vocabulary": 0, "length": 1, "width": 2, "layers": 1, "heads": 1},
    ControlNetConfig: {"hint_channels": 1, "hint_widths": (1,)},
}
TOO_SMALL = [
    (config, name, (value[0] - 1,) if isinstance(value, tuple) else value - 1)
    for config, sizes in SMALLEST.items()
    for name, value in sizes.items()
    if name not in ("attention", "vocabulary")
]


@pytest.mark.parametrize("config", SMALLEST)
def test_the_smallest_sizes_are_allowed(config):
    config(**SMALLEST[config])


@pytest.mark.parametrize(("config", "name", "value"), TOO_SMALL)
def test_smaller_ones_are_named(config, name, value):
    with pytest.raises(ValueError, match=f"^{name} .*: must be "):
        config(**{**SMALLEST[config], name: value})


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"widths": (8, 16), "attention": (True,)}, "attention .* one for each"),
        ({"widths": (3, 4), "attention": (True, True)}, "first must be even"),
        ({"widths": (4, 6), "attention": (True, True), "heads": 4}, "heads 4: must divide"),
    ],
)
def test_sizes_of_a_unet_that_do_not_fit_together_are_named(sizes, words):
    with pytest.raises(ValueError, match=words):
        UNetConfig(**{**SMALLEST[UNetConfig], **sizes})


def test_only_the_first_width_of_a_unet_must_be_even():
    assert UNetConfig(widths=(2, 3), attention=(True, True), heads=1).groups == 1


def test_the_heads_of_a_text_encoder_divide_its_width():
    TextConfig(width=6, heads=3)
    with pytest.raises(ValueError, match="heads 4: must divide the width 6"):
        TextConfig(width=6, heads=4)


@pytest.mark.parametrize(
    ("widths", "groups"), [((320, 640), 32), ((64,), 32), ((48, 64), 16), ((62,), 2), ((66,), 2)]
)
def test_groups_are_32_or_what_divides_the_widths(widths, groups):
    attention = (False,) * len(widths)
    assert UNetConfig(widths=widths, attention=attention, heads=1).groups == groups
    assert VAEConfig(widths=widths).groups == groups


@pytest.mark.parametrize(("levels", "f"), [(1, 1), (2, 2), (3, 4), (4, 8)])
def test_the_autoencoder_halves_the_image_between_its_levels(levels, f):
    assert VAEConfig(widths=(8,) * levels).f == f


def test_the_sizes_by_default_fit_together():
    vae, text, unet, control = VAEConfig(), TextConfig(), UNetConfig(), ControlNetConfig()
    assert unet.channels == vae.latent_channels == 4 and unet.context_width == text.width == 64
    assert control.hint_channels == vae.image_channels == 1
    assert len(control.hint_widths) == len(vae.widths) == 3  # both divide the image by 4


def test_the_published_numbers_are_of_these_sizes():
    assert astuple(VAEConfig()) == (1, 4, (8, 16, 32), 1)
    assert astuple(TextConfig()) == (0, 16, 64, 2, 4)
    assert astuple(UNetConfig()) == (4, (48, 64), 1, (False, True), 4, 64)
    assert astuple(ControlNetConfig()) == (1, (16, 32, 96))
