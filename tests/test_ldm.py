"""The whole model: its loss, and that an image is a function of its seed alone, whatever its batch."""

import pytest
import torch
from conftest import randomise
from einops import rearrange

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.diffusion import DENSITIES, SAMPLERS, Schedule, ddim, diffusion_loss, guided, seeded
from tinyldm.ldm import Control, LatentDiffusion, generate, last
from tinyldm.text import TextConfig, Tokenizer
from tinyldm.unet import UNetConfig
from tinyldm.vae import VAE, VAEConfig, vae_loss

HOW = {"ddpm": {}, "ddim": {"eta": 0.7}, "dpm++": {}}


def control_of(ldm: LatentDiffusion, batch: int, weight: float = 1.0) -> Control:
    """A ControlNet of random weights with random hints, bool (b, 1, 32, 32)."""
    torch.manual_seed(5)
    controlnet = randomise(ControlNet(ldm.unet, ControlNetConfig(1, (8, 8, 16))), seed=1)
    return Control(controlnet, torch.rand(batch, 1, 32, 32) < 0.3, weight)


# ---------------------------------------------------------------- noise


@pytest.fixture
def in_float64():
    """Whatever a processor rounds otherwise for batches of another size, it does so far below 1e-9."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_i_depends_on_seed_plus_i_alone_for_every_sampler_and_batch(in_float64, ldm, sampler):
    def images(number, seed):
        prompts = ["a red circle"] * number
        return last(generate(ldm, prompts, sampler=sampler, steps=4, seed=seed, **HOW[sampler]))

    four, two, third = images(4, seed=5), images(2, seed=5), images(1, seed=7)
    assert four.dtype == torch.float64
    torch.testing.assert_close(four[:2], two, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(four[2:3], third, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(four[0], four[1], atol=0.1)


def test_the_noise_that_is_injected_is_never_the_noise_that_the_image_starts_from():
    drawn = []

    def noise(shape):
        drawn.append(seeded_noise(shape))
        return drawn[-1]

    seeded_noise = seeded(3, 2)
    z_T = noise(torch.Size([2, 4, 8, 8]))
    list(ddim(Schedule(), lambda z, t: 0 * z, z_T, 4, noise, eta=1.0))
    assert len(drawn) == 1 + 4
    for i, a in enumerate(drawn):
        assert not any(torch.equal(a[k], b[k]) for b in drawn[:i] for k in range(2))


def test_a_generator_is_carried_on_from_call_to_call():
    noise, reference = seeded(7, 1), torch.Generator().manual_seed(7)
    for _ in range(2):
        expected = torch.randn(4, 2, 2, generator=reference)
        assert torch.equal(noise(torch.Size([1, 4, 2, 2]))[0], expected)


# ---------------------------------------------------------------- the loss


def layouts(z: torch.Tensor) -> list[torch.Tensor]:
    return [z.contiguous(), z.to(memory_format=torch.channels_last)]


@pytest.mark.parametrize("density", DENSITIES)
def test_the_diffusion_loss_does_not_depend_on_the_memory_layout(density):
    z_0 = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    losses = []
    for z in layouts(z_0):
        torch.manual_seed(1)
        losses.append(diffusion_loss(Schedule(), lambda z_t, t: 0.5 * z_t, z, density))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("controlled", [False, True])
def test_the_loss_of_tokens_is_that_of_their_captions_bit_for_bit(ldm, density, controlled):
    captions = ["a red circle", "", "a blue unheard ring"]
    tokens, z_0 = ldm.tokenizer.encode(captions), torch.randn(3, *ldm.latent_shape)
    controls = [control_of(ldm, 3)] if controlled else []
    losses = []
    for given in (captions, tuple(captions), tokens, tokens[[1, 1, 1]]):
        torch.manual_seed(0)
        losses.append(ldm.loss(z_0, given, controls, density))
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    assert not torch.equal(losses[0], losses[3])
    assert torch.equal(ldm.context(captions), ldm.context(tokens))


def test_the_autoencoders_loss_does_not_depend_on_the_memory_layout():
    torch.manual_seed(0)
    vae, x = randomise(VAE(VAEConfig(widths=(8, 16)))), torch.rand(4, 1, 16, 16) * 2 - 1
    losses = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        vae.to(memory_format=memory_format)
        torch.manual_seed(1)
        losses.append(vae_loss(vae, x.to(memory_format=memory_format), 0.1))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_the_loss_sees_the_context_of_its_captions_and_the_residuals_of_its_controls(ldm):
    captions, seen = ["a red circle", "a blue ring", "a red circle"], []
    ldm.unet.register_forward_pre_hook(lambda module, args: seen.append(args[2:]))
    z_0, control = torch.randn(3, 4, 8, 8), control_of(ldm, 3)
    losses = []
    for controls in ([], [control], [control._replace(weight=0.0)]):
        torch.manual_seed(0)
        losses.append(ldm.loss(z_0, captions, controls))
    assert torch.equal(seen[0][0], ldm.context(captions))
    assert not torch.allclose(seen[0][0][0], seen[0][0][1])
    assert [len(args) for args in seen] == [1, 2, 2]
    assert losses[0] == losses[2] and not torch.allclose(losses[0], losses[1])


# ---------------------------------------------------------------- control and guidance


@torch.no_grad()
def by_hand(ldm, prompts, controls, null_controls, w):
    eps_fn = guided(ldm.eps_fn(prompts, controls), ldm.eps_fn([""] * 2, null_controls), w)
    z_T = seeded(0, 2)(torch.Size([2, *ldm.latent_shape]))
    return last(ddim(ldm.schedule, eps_fn, z_T, 3))


@pytest.mark.parametrize("prompts", [["a red circle", "a ring"], ["", ""]])
def test_control_acts_on_both_passes_or_on_the_prompted_one(ldm, prompts):
    control = control_of(ldm, 2)
    how = {"guidance": 3.0, "sampler": "ddim", "steps": 3, "controls": [control]}
    both = last(generate(ldm, prompts, **how))
    prompted = last(generate(ldm, prompts, control_passes="prompted", **how))
    torch.testing.assert_close(both, by_hand(ldm, prompts, [control], [control], 3.0))
    torch.testing.assert_close(prompted, by_hand(ldm, prompts, [control], [], 3.0))
    assert not torch.allclose(both, prompted, atol=0.01)


def test_without_a_prompt_and_with_control_in_both_passes_one_pass_is_enough(ldm):
    calls = []
    ldm.unet.register_forward_pre_hook(lambda module, args: calls.append(args))
    list(generate(ldm, ["", ""], guidance=3.0, steps=2, controls=[control_of(ldm, 2)]))
    assert len(calls) == 2
    list(generate(ldm, ["", ""], guidance=3.0, steps=2, control_passes="prompted"))
    assert len(calls) == 4  # no control, so both passes are equal here too


def test_a_control_is_its_controlnet_with_its_hint_at_its_weight(ldm):
    z_t, t, context = torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), ldm.context(["", "a ring"])
    full, half = control_of(ldm, 2), control_of(ldm, 2, weight=0.5)
    plain = full.controlnet(z_t, t, context, full.hint.float())
    for a, b, c in zip(full(z_t, t, context), half(z_t, t, context), plain, strict=True):
        assert torch.equal(a, c) and torch.equal(b, 0.5 * c)


def test_built_sizes_agree(ldm):
    assert ldm.text.config.vocabulary == len(ldm.tokenizer.vocabulary)
    assert ldm.unet.config.channels == ldm.vae.config.latent_channels
    assert ldm.unet.config.context_width == ldm.text.config.width
    z = ldm.vae.encode(torch.zeros(1, 1, 32, 32))
    assert rearrange(z, "1 c h w -> c h w").shape == ldm.latent_shape


# ---------------------------------------------------------------- what is passed on


@torch.no_grad()
def test_generate_hands_its_settings_to_the_sampler(ldm, monkeypatch):
    calls = []

    def sampler(schedule, eps_fn, z_T, steps, noise, eta):
        calls.append((schedule, eps_fn, z_T, steps, eta))
        yield noise(z_T.shape)

    monkeypatch.setitem(SAMPLERS, "dpm++", sampler)
    monkeypatch.setitem(SAMPLERS, "ddim", sampler)
    prompts, numbers = ["a red circle", "a ring"], seeded(9, 2)
    shape = torch.Size([2, *ldm.latent_shape])
    z = last(generate(ldm, prompts, sampler="ddim", steps=7, seed=9, eta=0.3, guidance=5.0))
    schedule, eps_fn, z_T, steps, eta = calls[0]
    assert schedule is ldm.schedule and (steps, eta) == (7, 0.3)
    assert torch.equal(z_T, numbers(shape)) and torch.equal(z, numbers(shape))
    t = torch.tensor([400, 400])
    prompted, null = (ldm.eps_fn(captions)(z_T, t) for captions in (prompts, ["", ""]))
    torch.testing.assert_close(eps_fn(z_T, t), null + 5 * (prompted - null))

    last(generate(ldm, prompts))  # dpm++ by default
    _, eps_fn, z_T, steps, eta = calls[1]
    assert (steps, eta) == (20, 0.0) and torch.equal(z_T, seeded(0, 2)(shape))
    prompted, null = (ldm.eps_fn(captions)(z_T, t) for captions in (prompts, ["", ""]))
    torch.testing.assert_close(eps_fn(z_T, t), null + 2 * (prompted - null))


def test_sizes_that_must_agree_are_taken_from_where_they_are_decided():
    vae = VAE(VAEConfig(latent_channels=3, widths=(8, 8)))
    tokenizer = Tokenizer.from_captions(["a red circle"], length=7)
    text = TextConfig(vocabulary=99, length=16, width=24, layers=1, heads=2)
    unet = UNetConfig(channels=4, widths=(8, 8), attention=(False, True), heads=2, context_width=9)
    ldm = LatentDiffusion.build(vae, tokenizer, text, unet, 16)
    assert (ldm.text.config.vocabulary, ldm.text.config.length) == (5, 7)
    assert (ldm.unet.config.channels, ldm.unet.config.context_width) == (3, 24)
    assert (ldm.resolution, ldm.latent_shape) == (16, (3, 8, 8))
    assert ldm.schedule == Schedule() and ldm.vae is vae and ldm.tokenizer is tokenizer
    assert last(generate(ldm, ["a circle"], steps=1)).shape == (1, 3, 8, 8)


def test_generating_needs_no_gradients(ldm):
    ldm.requires_grad_(True)
    assert not any(z.requires_grad for z in generate(ldm, ["a ring"], steps=2))
    ldm.vae.set_scale(ldm.vae.encode(torch.rand(2, 1, 32, 32)))
    assert not ldm.vae.scale.requires_grad


def test_one_prompt_among_empty_ones_is_enough_for_guidance(ldm):
    calls = []
    ldm.unet.register_forward_pre_hook(lambda module, args: calls.append(args))
    list(generate(ldm, ["", "a ring"], guidance=3.0, steps=2))
    assert len(calls) == 4


@torch.no_grad()
def test_the_weight_of_a_control_reaches_the_picture(ldm):
    def picture(*controls):
        return last(generate(ldm, ["a ring"], steps=3, controls=controls))

    control = control_of(ldm, 1)
    assert Control(control.controlnet, control.hint).weight == 1
    assert torch.equal(picture(control._replace(weight=0.0)), picture())
    full, half = picture(control), picture(control._replace(weight=0.5))
    assert not torch.allclose(full, half, atol=0.01)
    assert not torch.allclose(half, picture(), atol=0.01)
    halves = [control._replace(weight=0.5)] * 2
    torch.testing.assert_close(picture(*halves), full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("density", DENSITIES)
def test_the_models_loss_is_the_diffusion_loss_of_its_own_prediction(ldm, density):
    z_0, captions = torch.randn(3, 4, 8, 8), ["a red circle", "", "a ring"]
    control, losses = control_of(ldm, 3), []
    for loss in (
        lambda: ldm.loss(z_0, captions, [control], density),
        lambda: diffusion_loss(ldm.schedule, ldm.eps_fn(captions, [control]), z_0, density),
    ):
        torch.manual_seed(2)
        losses.append(loss())
    assert torch.equal(*losses)


def test_the_models_timesteps_are_uniform_unless_told_otherwise(ldm):
    z_0, losses = torch.randn(2, 4, 8, 8), []
    for settings in ({}, {"density": "uniform"}, {"density": "logit-normal"}):
        torch.manual_seed(2)
        losses.append(ldm.loss(z_0, ["", ""], **settings))
    assert losses[0] == losses[1] != losses[2]


def test_latents_are_smaller_than_images_by_the_factor_of_the_autoencoder(ldm):
    assert ldm.vae.config.f == 4 and ldm.resolution == 32 and ldm.latent_shape == (4, 8, 8)
    assert ldm.device == torch.device("cpu")
    assert ldm.context(["", "a ring"]).shape == (2, ldm.tokenizer.length, 16)
    assert ldm.text.config.length == ldm.tokenizer.length == 5


def test_the_last_of_a_sampler_is_its_last_tensor():
    assert last(iter([torch.tensor(1), torch.tensor(2), torch.tensor(3)])) == 3
