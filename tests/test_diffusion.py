"""X8 and the schedule: identities that need no network. For Gaussian data the exact eps is a closed form."""

from inspect import signature
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyldm.diffusion import (
    DENSITIES,
    SAMPLERS,
    Schedule,
    ddim,
    ddpm,
    diffusion_loss,
    dpm_solver_pp,
    guided,
    logit_normal,
    seeded,
    uniform,
    walk,
)
from tinyldm.ldm import last

SCHEDULE = Schedule()
MEAN, STD = 0.7, 0.5  # of the Gaussian data


def exact_eps(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[eps | z_t] for z_0 ~ N(MEAN, STD^2): sigma (z_t - alpha MEAN) / (alpha^2 STD^2 + sigma^2)."""
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    return sigma * (z_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def noise(n: int = 20_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed))


def test_schedule_is_stable_diffusions():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert SCHEDULE.alphas_cumprod.shape == (1001,)
    assert SCHEDULE.alphas_cumprod[0] == 1
    torch.testing.assert_close(SCHEDULE.alphas_cumprod[1:], torch.cumprod(1 - betas, 0))
    assert (
        abs(SCHEDULE.alphas_cumprod[1000].sqrt().item() - 0.0683) < 1e-4
    )  # not zero: see SD's known offset


def test_a_schedule_by_hand():
    schedule = Schedule(T=3, beta_1=0.04, beta_T=0.36)
    betas = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64) ** 2  # sqrt(beta) is linear
    expected = torch.tensor([1, 0.96, 0.96 * 0.84, 0.96 * 0.84 * 0.64], dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(1 - betas, expected[1:] / expected[:-1])
    assert Schedule() == Schedule(T=1000, beta_1=0.00085, beta_T=0.012)


def test_a_schedule_may_have_one_step_and_equal_betas():
    schedule = Schedule(1, 0.25, 0.25)
    torch.testing.assert_close(schedule.alphas_cumprod.tolist(), [1.0, 0.75])
    assert schedule.timesteps(1) == [1, 0]


@pytest.mark.parametrize(
    "wrong", [(0, 0.1, 0.2), (9, 0.0, 0.2), (9, 0.2, 0.1), (9, 0.1, 1.0), (9, -0.1, 0.2)]
)
def test_a_schedule_without_steps_or_with_betas_outside_0_to_1_is_an_error(wrong):
    with pytest.raises(ValueError, match="0 < beta_1 <= beta_T < 1, got"):
        Schedule(*wrong)


def test_alpha_and_sigma_are_scalars_of_an_int_and_broadcast_over_images_of_a_tensor():
    ts = torch.tensor([0, 1, 1000])
    for values in SCHEDULE.alpha_sigma(ts):
        assert values.shape == (3, 1, 1, 1) and values.dtype == torch.float32
    for i, t in enumerate(ts.tolist()):
        for one, many in zip(SCHEDULE.alpha_sigma(t), SCHEDULE.alpha_sigma(ts), strict=True):
            assert one.shape == () and torch.equal(one, many[i, 0, 0, 0])
    assert [value.item() for value in SCHEDULE.alpha_sigma(0)] == [1, 0]


def test_q_sample_keeps_unit_variance_and_inverts():
    z_0, eps = noise(seed=1), noise(seed=2)
    for t in (1, 300, 1000):
        ts = torch.full((len(z_0),), t)
        z_t = SCHEDULE.q_sample(z_0, ts, eps)
        alpha, sigma = SCHEDULE.alpha_sigma(t)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.tensor(1.0))
        torch.testing.assert_close((z_t - sigma * eps) / alpha, z_0, atol=1e-4, rtol=1e-4)
        assert abs(z_t.std().item() - 1) < 0.02


@given(st.integers(1, 1000))
@settings(deadline=None)
def test_timesteps_fall_strictly_from_T_to_0(steps):
    timesteps = SCHEDULE.timesteps(steps)
    assert len(timesteps) == steps + 1
    assert timesteps[0] == 1000 and timesteps[-1] == 0
    assert all(a > b for a, b in pairwise(timesteps))


def test_timesteps_are_rounded_evenly():
    assert Schedule(T=10).timesteps(3) == [10, 7, 3, 0]
    assert Schedule(T=4).timesteps(4) == [4, 3, 2, 1, 0]
    assert SCHEDULE.timesteps(4) == [1000, 750, 500, 250, 0]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_too_few_or_too_many_steps_are_an_error(steps):
    with pytest.raises(ValueError, match="steps must be in"):
        SCHEDULE.timesteps(steps)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 27, 30, 36, 333])
def test_samplers_yield_exactly_steps_finite_tensors(name, steps):
    zs = list(SAMPLERS[name](SCHEDULE, exact_eps, noise(10), steps))
    assert len(zs) == steps
    assert all(z.shape == (10, 1, 1, 1) and z.isfinite().all() for z in zs)


@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    [("ddpm", 1000, 0.02), ("ddim", 250, 0.02), ("dpm++", 250, 0.02)],
)
def test_x8_samplers_recover_mean_and_std_of_gaussian_data(name, steps, tolerance):
    z_T = (
        noise() * SCHEDULE.alpha_sigma(1000)[1]
    )  # the true z_T has mean alpha_T MEAN and this spread, nearly
    z_0 = last(
        SAMPLERS[name](SCHEDULE, exact_eps, z_T + SCHEDULE.alpha_sigma(1000)[0] * MEAN, steps)
    )
    assert abs(z_0.mean().item() - MEAN) < tolerance
    assert abs(z_0.std().item() - STD) < tolerance


def test_x8_control_a_wrong_eps_is_noticed():
    z_0 = last(ddim(SCHEDULE, lambda z, t: 0.9 * exact_eps(z, t), noise(), 250))
    assert abs(z_0.std().item() - STD) > 0.05


def exact_flow(z_T: torch.Tensor, t: int) -> torch.Tensor:
    """The flow of Gaussian data keeps the standardised value: z_T -> z_t in closed form [DDIM, 4.3]."""

    def moments(t):
        alpha, sigma = SCHEDULE.alpha_sigma(t)
        return alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()

    (mean_T, std_T), (mean_t, std_t) = moments(1000), moments(t)
    return mean_t + std_t * (z_T - mean_T) / std_T


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm++", 2)])
def test_x8_samplers_converge_to_the_exact_flow_at_their_order(name, order):
    """Twice the steps, 2 ** order times less error, at t = 500: the last step is always first order."""
    z_T = noise(100).double()
    errors = []
    for steps in (40, 80):
        z = list(SAMPLERS[name](SCHEDULE, exact_eps, z_T, steps))[steps // 2 - 1]
        errors.append((z - exact_flow(z_T, 500)).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)


def test_x8_ddpm_is_ddim_at_eta_1_with_the_posteriors_variance():
    """One step against DDPM's own formulas: posterior mean (eq. 7) and beta tilde."""
    t, s = 500, 499
    a_t, a_s = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[s]
    beta = 1 - a_t / a_s
    variance = (1 - a_s) / (1 - a_t) * beta
    z_t, eps = noise(5).double(), noise(5, 1).double()
    z_0 = (z_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()
    mean = a_s.sqrt() * beta / (1 - a_t) * z_0 + (1 - beta).sqrt() * (1 - a_s) / (1 - a_t) * z_t
    by_ddim = a_s.sqrt() * z_0 + (1 - a_s - variance).sqrt() * eps
    torch.testing.assert_close(by_ddim, mean)
    one = list(ddpm(SCHEDULE, exact_eps, noise(5), 7, seeded(3, 5)))
    two = list(ddim(SCHEDULE, exact_eps, noise(5), 7, seeded(3, 5), eta=1.0))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_samplers_are_deterministic_given_the_generator():
    for sampler in (ddim, dpm_solver_pp):
        assert torch.equal(*(last(sampler(SCHEDULE, exact_eps, noise(9), 10)) for _ in range(2)))
    runs = [last(ddpm(SCHEDULE, exact_eps, noise(9), 10, seeded(s, 9))) for s in (0, 0, 100)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_loss_of_the_exact_eps_is_the_conditional_variance_and_of_zero_is_one():
    torch.manual_seed(0)
    z_0 = MEAN + STD * noise(200_000)
    best, worst = (
        diffusion_loss(SCHEDULE, exact_eps, z_0),
        diffusion_loss(SCHEDULE, lambda z, t: 0 * z, z_0),
    )
    a = SCHEDULE.alphas_cumprod[1:]
    expected = (a * STD**2 / (a * STD**2 + 1 - a)).mean().item()  # Var[eps | z_t], averaged over t
    assert abs(best.item() - expected) < 0.01
    assert abs(worst.item() - 1) < 0.02


def test_timesteps_are_drawn_evenly_or_from_the_middle():
    torch.manual_seed(0)
    even, middle = (DENSITIES[name](1000, 100_000) for name in ("uniform", "logit-normal"))
    for t in (even, middle, DENSITIES["logit-normal"](2, 1000)):
        assert t.min() >= 1 and t.max() <= 1000 and t.dtype == torch.long
    assert abs(even.float().mean() - 500.5) < 3 and abs(even.float().std() - 1000 / 12**0.5) < 3
    logits = torch.logit((middle - 0.5) / 1000)
    assert abs(logits.mean() - 0.5) < 0.02 and abs(logits.std() - 1) < 0.02


@pytest.mark.parametrize("name", DENSITIES)
def test_every_timestep_from_1_to_T_is_drawn_and_no_other(name):
    torch.manual_seed(0)
    assert DENSITIES[name](3, 2000).unique().tolist() == [1, 2, 3]
    assert DENSITIES[name](1, 5).tolist() == [1] * 5


def test_uniform_timesteps_are_equally_likely():
    torch.manual_seed(0)
    shares = uniform(4, 100_000).bincount(minlength=5) / 100_000
    torch.testing.assert_close(shares, torch.tensor([0, 0.25, 0.25, 0.25, 0.25]), rtol=0, atol=0.01)


def test_logit_normal_timesteps_follow_their_mean_and_std_and_end_at_T():
    torch.manual_seed(0)
    t = logit_normal(10_000, 100_000, mean=-1.0, std=0.5)
    logits = torch.logit((t - 0.5) / 10_000)
    assert abs(logits.mean() + 1) < 0.01 and abs(logits.std() - 0.5) < 0.01
    assert logit_normal(10, 5, mean=50.0).tolist() == [10] * 5  # where the sigmoid rounds to 1
    assert logit_normal(10, 5, mean=-50.0).tolist() == [1] * 5


def test_the_loss_is_the_mean_square_of_what_is_missing_from_the_noise():
    """One timestep per image; the noise of z_t is the noise that is asked for."""
    z_0, seen = noise(6).expand(6, 2, 3, 3), []

    def eps_fn(z_t, t):
        seen.append((z_t, t))
        return torch.zeros_like(z_t, dtype=torch.bfloat16)

    torch.manual_seed(4)
    loss = diffusion_loss(SCHEDULE, eps_fn, z_0)
    (z_t, t), (alpha, sigma) = seen[0], SCHEDULE.alpha_sigma(seen[0][1])
    torch.manual_seed(4)
    torch.testing.assert_close(t, uniform(1000, 6))
    eps = torch.randn(z_0.shape)
    torch.testing.assert_close(z_t, alpha * z_0 + sigma * eps)
    torch.testing.assert_close(loss, eps.pow(2).mean())


def test_the_loss_is_drawn_and_computed_where_the_latents_are():
    """So that a CUDA graph can hold it; the tables of the schedule go there once."""
    schedule, seen = Schedule(), []

    def eps_fn(z_t, t):
        seen.append((z_t.device, t.device))
        return z_t

    meta, cpu = torch.device("meta"), torch.device("cpu")
    for density in DENSITIES:
        assert diffusion_loss(schedule, eps_fn, noise(2).to(meta), density).device == meta
    assert seen == [(meta, meta)] * len(DENSITIES)
    assert {*schedule.tables} == {meta} and schedule.tables[meta].device == meta
    for t in (0, 7, 1000):  # computed in float64, rounded once
        a = schedule.alphas_cumprod[t]
        expected = a.sqrt().float(), (1 - a).sqrt().float()
        for numbers in (schedule.alpha_sigma(t), schedule.alpha_sigma(torch.tensor([t, 1]))):
            assert all(
                torch.equal(x.flatten()[0], y) for x, y in zip(numbers, expected, strict=True)
            )
    assert {*schedule.tables} == {cpu, meta}


def test_the_loss_draws_its_timesteps_as_told():
    torch.manual_seed(0)
    seen = {}
    for name in DENSITIES:
        diffusion_loss(
            SCHEDULE,
            lambda z, t, name=name: seen.update({name: t.float().mean()}) or z,
            noise(50_000),
            name,
        )
    assert abs(seen["uniform"] - 500.5) < 5 and seen["logit-normal"] > 580


def test_guidance_interpolates_and_1_is_off():
    z, t = noise(4), torch.ones(4)
    cond, null = (lambda z, t: 2 * z), (lambda z, t: 5 * z)
    assert guided(cond, null, 1) is cond
    torch.testing.assert_close(guided(cond, null, 0)(z, t), 5 * z)
    torch.testing.assert_close(guided(cond, null, 3)(z, t), (5 + 3 * (2 - 5)) * z)


def test_x6_guidance_of_two_equal_passes_is_that_pass_for_every_scale():
    z, t = noise(50), torch.full((50,), 400)
    for scale in (0.0, 0.5, 2.0, 7.5):
        torch.testing.assert_close(
            guided(exact_eps, exact_eps, scale)(z, t), exact_eps(z, t), rtol=0, atol=0
        )


# ---------------------------------------------------------------- samplers, step by step


def test_a_walk_tells_each_timestep_to_every_image_and_the_next_one():
    steps = list(walk(Schedule(T=10), noise(2), 3))
    assert [(t, s) for _, t, s in steps] == [(10, 7), (7, 3), (3, 0)]
    assert [ts.tolist() for ts, *_ in steps] == [[10, 10], [7, 7], [3, 3]]


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_equation_12_of_its_paper(eta):
    """With noise of ones, so that what is added is the standard deviation itself."""
    z = z_T = noise(4).double()
    ours = list(ddim(SCHEDULE, exact_eps, z_T, 4, lambda shape: torch.ones(shape), eta))
    for z_s, (t, s) in zip(ours, pairwise([1000, 750, 500, 250, 0]), strict=True):
        a_t, a_s = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[s]
        std = eta * ((1 - a_s) / (1 - a_t)).sqrt() * (1 - a_t / a_s).sqrt()
        eps = exact_eps(z, torch.full((4,), t))
        z_0 = (z - (1 - a_t).sqrt() * eps) / a_t.sqrt()
        z = a_s.sqrt() * z_0 + (1 - a_s - std**2).sqrt() * eps + std
        torch.testing.assert_close(z_s, z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
def test_samplers_draw_no_noise_unless_they_are_told_to(sampler):
    def no_noise(shape):
        raise AssertionError("noise is drawn")

    last(sampler(SCHEDULE, exact_eps, noise(2), 5, no_noise))


def test_ddpm_takes_eta_1_whatever_it_is_told():
    one, two = (last(ddpm(SCHEDULE, exact_eps, noise(5), 5, seeded(3, 5), e)) for e in (0.0, 1.0))
    assert torch.equal(one, two)


def test_the_default_eta_tells_what_a_sampler_does():
    defaults = {name: signature(s).parameters["eta"].default for name, s in SAMPLERS.items()}
    assert defaults == {"ddpm": 1.0, "ddim": 0.0, "dpm++": 0.0}


def test_dpm_solver_is_algorithm_2_of_its_paper():
    z = z_T = noise(4).double()
    before, h_before = None, 0.0
    ours = list(dpm_solver_pp(SCHEDULE, exact_eps, z_T, 4))
    for z_s, (t, s) in zip(ours, pairwise([1000, 750, 500, 250, 0]), strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            (a.sqrt(), (1 - a).sqrt()) for a in SCHEDULE.alphas_cumprod[[t, s]]
        )
        x = (z - sigma_t * exact_eps(z, torch.full((4,), t))) / alpha_t
        if s == 0:
            z = x
        else:
            h = ((alpha_s / sigma_s) / (alpha_t / sigma_t)).log()
            ratio = h_before / h  # r_i of the paper
            d = x if before is None else (1 + 1 / (2 * ratio)) * x - 1 / (2 * ratio) * before
            z = sigma_s / sigma_t * z - alpha_s * ((-h).exp() - 1) * d
            before, h_before = x, h
        torch.testing.assert_close(z_s, z, rtol=1e-4, atol=1e-5)


def test_noise_of_an_image_is_that_of_its_own_generator():
    shape = torch.Size([3, 4, 2, 2])
    drawn = seeded(10, 3)(shape)
    for i in range(3):
        generator = torch.Generator().manual_seed(10 + i)
        assert torch.equal(drawn[i], torch.randn(shape[1:], generator=generator))
