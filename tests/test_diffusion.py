"""X8 and the schedule: identities that need no network. For Gaussian data the exact eps is a closed form."""

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
    seeded,
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
