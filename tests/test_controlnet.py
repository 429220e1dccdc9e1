"""The ControlNet identities: X1, X3, X4, X5 and X7 of the paper's section 3.

A fresh Stable-Diffusion-style U-Net ends in a zero convolution: its output is 0 whatever the control does,
and the obvious test of "the controlled output equals the base's" passes on it without testing anything.
So every base here is randomised, its output is checked to be non-zero, and every identity has a control
that breaks it.
"""

import copy
import hashlib

import pytest
import torch
from conftest import (
    SD15_CONTROLNET,
    SD15_UNET,
    randomise,
    small_controlnet,
    small_inputs,
    small_unet,
)
from torch import nn

from tinyldm.claims.cascade import gradient_groups
from tinyldm.controlnet import ControlNet, ControlNetConfig, resolution_weighted, weighted
from tinyldm.diffusion import Schedule, ddim, diffusion_loss, guided
from tinyldm.ldm import Control, bind
from tinyldm.unet import UNet, UNetConfig, add_controls


def checksum(module: nn.Module) -> str:
    content = b"".join(p.detach().numpy().tobytes() for p in module.state_dict().values())
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- X1: identity at the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_x1_untrained_controlnet_leaves_the_output_exactly_the_bases(dtype, batch, training):
    unet = small_unet().to(dtype).train(training)
    controlnet = small_controlnet(unet).to(dtype).train(training)
    for seed in range(3):
        z_t, t, context, hint = small_inputs(batch, seed)
        z_t, context, hint = z_t.to(dtype), context.to(dtype), hint.to(dtype)
        y = unet(z_t, t, context)
        assert y.abs().max() > 0.1  # otherwise this test is empty
        assert torch.equal(unet(z_t, t, context, controlnet(z_t, t, context, hint)), y)


@pytest.mark.parametrize("t", [1, 2, 500, 999, 1000])
def test_x1_holds_at_every_timestep(unet, t):
    z_t, _, context, hint = small_inputs()
    ts = torch.full((2,), t)
    residuals = small_controlnet(unet)(z_t, ts, context, hint)
    assert torch.equal(unet(z_t, ts, context, residuals), unet(z_t, ts, context))


@torch.no_grad()
def test_x1_holds_along_a_whole_ddim_trajectory(unet):
    z_T, _, context, hint = small_inputs()
    control = Control(small_controlnet(unet), hint)
    plain = list(ddim(Schedule(), bind(unet, context), z_T, steps=10))
    controlled = list(ddim(Schedule(), bind(unet, context, [control]), z_T, steps=10))
    assert all(torch.equal(a, b) for a, b in zip(plain, controlled, strict=True))
    assert not torch.equal(plain[-1], z_T)


@torch.no_grad()
def test_x1_features_of_the_copy_are_the_bases(unet):
    z_t, t, context, hint = small_inputs()
    controlnet = small_controlnet(unet)
    seen = []
    controlnet.encoder.register_forward_hook(lambda module, args, output: seen.extend(output))
    controlnet(z_t, t, context, hint)
    features = unet.encoder(unet.stem(z_t), unet.time_embed(t), context)
    assert len(seen) == len(features) > 0
    assert all(torch.equal(a, b) for a, b in zip(seen, features, strict=True))


@pytest.mark.parametrize("i", range(5))
@torch.no_grad()
def test_x1_control_nudging_any_output_zero_conv_changes_the_output(unet, i):
    z_t, t, context, hint = small_inputs()
    controlnet = small_controlnet(unet)
    assert len(controlnet.zero_convs) == 5
    controlnet.zero_convs[i].weight.add_(0.01)
    assert not torch.equal(
        unet(z_t, t, context, controlnet(z_t, t, context, hint)), unet(z_t, t, context)
    )


@torch.no_grad()
def test_x1_control_nudging_only_the_hint_encoders_zero_conv_changes_nothing(unet):
    z_t, t, context, hint = small_inputs()
    controlnet = small_controlnet(unet)
    controlnet.hint_encoder[-1].weight.add_(0.01)
    assert controlnet.hint_encoder(hint).abs().max() > 0
    assert torch.equal(
        unet(z_t, t, context, controlnet(z_t, t, context, hint)), unet(z_t, t, context)
    )


@torch.no_grad()
def test_x1_the_obvious_test_is_empty_on_a_fresh_base():
    unet = UNet(small_unet().config)
    z_t, t, context, hint = small_inputs()
    controlnet = randomise(small_controlnet(unet), std=1.0)  # anything but the identity
    assert torch.equal(
        unet(z_t, t, context, controlnet(z_t, t, context, hint)), torch.zeros_like(z_t)
    )


# ---------------------------------------------------------------- X3: the cascade of gradients


def alive(group: list[nn.Parameter]) -> list[bool]:
    return [bool(p.grad.abs().max() > 0) for p in group]


def test_x3_gradients_reach_the_copy_after_one_step_and_the_inner_hint_convs_after_two(frozen_unet):
    controlnet = small_controlnet(frozen_unet)
    groups = gradient_groups(controlnet)
    optimizer = torch.optim.SGD(controlnet.parameters(), lr=0.1)
    expected = [{"output zero convs"}, {"copy", "last hint conv"}, {"inner hint convs"}]
    awake: set[str] = set()
    for step, new in enumerate(expected):
        awake |= new
        z_0, _, context, hint = small_inputs(4, seed=step)
        eps_fn = bind(frozen_unet, context, [Control(controlnet, hint)])
        optimizer.zero_grad(set_to_none=True)
        diffusion_loss(Schedule(), eps_fn, z_0).backward()
        assert all(p.grad is not None for p in controlnet.parameters())
        for name, group in groups.items():
            assert (all if name in awake else any)(alive(group)) == (name in awake), (step, name)
        optimizer.step()


# ---------------------------------------------------------------- X4: the base is preserved


def test_x4_training_a_controlnet_leaves_the_base_bitwise_unchanged(frozen_unet):
    before = checksum(frozen_unet)
    z_0, t, context, hint = small_inputs(4)
    y = frozen_unet(z_0, t, context)
    controlnet = small_controlnet(frozen_unet)
    start = checksum(controlnet)
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=0.01)
    for _ in range(3):
        eps_fn = bind(frozen_unet, context, [Control(controlnet, hint)])
        diffusion_loss(Schedule(), eps_fn, z_0).backward()
        optimizer.step()
    residuals = controlnet(z_0, t, context, hint)
    assert checksum(controlnet) != start
    assert checksum(frozen_unet) == before
    assert all(p.grad is None for p in frozen_unet.parameters())
    assert torch.equal(frozen_unet(z_0, t, context), y)
    assert torch.equal(frozen_unet(z_0, t, context, weighted(residuals, 0)), y)
    assert not torch.equal(frozen_unet(z_0, t, context, residuals), y)


def test_x4_a_copy_of_a_frozen_base_is_trainable(frozen_unet):
    assert all(p.requires_grad for p in small_controlnet(frozen_unet).parameters())
    assert not any(p.requires_grad for p in frozen_unet.parameters())


# ---------------------------------------------------------------- X5: composition


@torch.no_grad()
def test_x5_controls_add_in_any_order_and_an_untrained_one_adds_nothing(unet):
    z_t, t, context, hint = small_inputs()
    one, two = (randomise(small_controlnet(unet), seed)(z_t, t, context, hint) for seed in (1, 2))
    nothing = small_controlnet(unet)(z_t, t, context, hint)
    summed = [a + b for a, b in zip(one, two, strict=True)]
    torch.testing.assert_close(unet(z_t, t, context, one, two), unet(z_t, t, context, summed))
    torch.testing.assert_close(unet(z_t, t, context, one, two), unet(z_t, t, context, two, one))
    assert torch.equal(unet(z_t, t, context, one, nothing), unet(z_t, t, context, one))
    assert not torch.allclose(unet(z_t, t, context, one, two), unet(z_t, t, context, one))


@torch.no_grad()
def test_adding_controls_leaves_the_callers_lists_alone(unet):
    z_t, t, context, hint = small_inputs()
    residuals = randomise(small_controlnet(unet))(z_t, t, context, hint)
    before = [r.clone() for r in residuals]
    unet(z_t, t, context, residuals)
    weighted(residuals, 0.5)
    assert len(residuals) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(residuals, before, strict=True))


def test_a_control_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        add_controls([torch.zeros(1), torch.zeros(1)], [[torch.zeros(1)]])


# ---------------------------------------------------------------- X6 (weights), X7: counts at SD 1.5's sizes


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_x7_unet_and_controlnet_have_the_parameter_counts_of_sd15():
    with torch.device("meta"):
        unet = UNet(SD15_UNET)
        controlnet = ControlNet(unet, SD15_CONTROLNET)
        z_t, t, context = torch.zeros(1, 4, 64, 64), torch.ones(1), torch.zeros(1, 77, 768)
        residuals = controlnet(z_t, t, context, torch.zeros(1, 3, 512, 512))
        assert unet(z_t, t, context, residuals).shape == (1, 4, 64, 64)
    assert parameters(unet) == 859_520_964
    assert parameters(controlnet) == 361_279_120
    assert parameters(controlnet.hint_encoder) == 1_086_480
    assert parameters(controlnet.zero_convs[:-1]) == 9_840_000
    assert parameters(controlnet.zero_convs[-1]) == 1_639_680
    assert len(residuals) == 12 + 1
    assert [r.shape[1] for r in residuals] == [320] * 4 + [640] * 3 + [1280] * 6
    assert [r.shape[2] for r in residuals] == [64] * 3 + [32] * 3 + [16] * 3 + [8] * 4


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0, 7.5])
@torch.no_grad()
def test_x6_without_a_prompt_and_with_control_in_both_passes_guidance_changes_nothing(unet, w):
    z_t, t, null, hint = small_inputs()
    control = Control(randomise(small_controlnet(unet)), hint)
    eps_fn = bind(unet, null, [control])
    assert torch.equal(guided(eps_fn, bind(unet, null, [control]), w)(z_t, t), eps_fn(z_t, t))
    only_conditional = guided(eps_fn, bind(unet, null), w)(
        z_t, t
    )  # the paper's setting of Figure 5
    assert torch.equal(only_conditional, eps_fn(z_t, t)) == (w == 1)


def test_x6_resolution_weights_are_64_over_h_on_a_64_px_latent():
    sizes = [64] * 3 + [32] * 3 + [16] * 3 + [8] * 4
    weighted = resolution_weighted([torch.ones(1, 1, size, size) for size in sizes])
    assert [w.unique().item() for w in weighted] == [1] * 3 + [2] * 3 + [4] * 3 + [8] * 4


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("widths", [(32,), (32, 64), (32, 64, 64)])
@pytest.mark.parametrize("res_blocks", [1, 2])
def test_one_residual_per_feature_map_at_any_depth(widths, res_blocks):
    levels = len(widths)
    config = UNetConfig(4, widths, res_blocks, (True,) * levels, heads=2, context_width=16)
    unet = UNet(config)
    z_t, t, context = torch.randn(3, 4, 8, 16), torch.tensor([1, 7, 1000]), torch.randn(3, 5, 16)
    residuals = ControlNet(unet, ControlNetConfig(3, (8, 16)))(
        z_t, t, context, torch.rand(3, 3, 16, 32)
    )
    features = unet.encoder(unet.stem(z_t), unet.time_embed(t), context)
    assert [r.shape for r in residuals] == [f.shape for f in features]
    assert len(residuals) == levels * (res_blocks + 1) + 1
    assert unet(z_t, t, context, residuals).shape == z_t.shape


def test_a_deepcopy_of_a_controlnet_is_independent(unet):
    controlnet = small_controlnet(unet)
    other = copy.deepcopy(controlnet)
    randomise(other)
    assert all(
        torch.equal(conv.weight, torch.zeros_like(conv.weight)) for conv in controlnet.zero_convs
    )


def test_the_hint_encoder_halves_between_its_widths_and_ends_in_zero(unet):
    encoder = small_controlnet(unet).hint_encoder
    hint = small_inputs()[3]
    assert torch.equal(encoder(hint), torch.zeros(2, 32, 8, 8))
    convs = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
    sizes = [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in convs]
    assert sizes == [(1, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 24, 2), (24, 32, 1)]
    assert all(conv.kernel_size == (3, 3) and conv.padding == (1, 1) for conv in convs)
    assert [type(layer) for layer in encoder] == [nn.Conv2d, nn.SiLU] * 5 + [nn.Conv2d]


@torch.no_grad()
def test_a_controlnet_is_equation_2_of_its_paper(unet):
    """Zero convolutions over the features of the copy, which sees z_t with the encoded hint added."""
    controlnet = randomise(small_controlnet(unet))
    z_t, t, context, hint = small_inputs()
    x = controlnet.stem(z_t) + controlnet.hint_encoder(hint)
    features = controlnet.encoder(x, controlnet.time_embed(t), context)
    residuals = controlnet(z_t, t, context, hint)
    for residual, feature, conv in zip(residuals, features, controlnet.zero_convs, strict=True):
        torch.testing.assert_close(residual, nn.functional.conv2d(feature, conv.weight, conv.bias))
        assert residual.abs().max() > 0
    controlled = unet(z_t, t, context, residuals)
    features = unet.encoder(unet.stem(z_t), unet.time_embed(t), context)
    summed = [a + b for a, b in zip(features, residuals, strict=True)]
    by_hand = unet.head(unet.decoder(summed, unet.time_embed(t), context))
    torch.testing.assert_close(controlled, by_hand)


def test_weights_multiply_every_residual():
    residuals = [torch.ones(1, 2, 4, 8), 3 * torch.ones(1, 2, 2, 4)]
    assert [r.unique().item() for r in weighted(residuals, 0.5)] == [0.5, 1.5]
    assert [r.unique().item() for r in resolution_weighted(residuals)] == [1, 6]
    tall = [torch.ones(1, 2, 12, 4), torch.ones(1, 2, 4, 2)]
    assert [r.unique().item() for r in resolution_weighted(tall)] == [1, 3]  # by height


def test_a_hint_has_one_channel_by_default_and_sizes_are_at_least_one():
    assert ControlNetConfig() == ControlNetConfig(1, (16, 32, 96))
    for sizes in ({"hint_channels": 0}, {"hint_widths": (8, 0)}):
        (name,) = sizes
        with pytest.raises(ValueError, match=f"^{name} "):
            ControlNetConfig(**sizes)
