"""The noise schedule, the loss, the samplers and guidance. Knows no network: everything takes `eps_fn(z_t, t) -> eps`.

Timesteps run 1..T and alphas_cumprod[0] = 1 is the clean image, as in the DDPM paper, so no step is a special case.
alpha_t = sqrt(alphas_cumprod[t]), sigma_t = sqrt(1 - alphas_cumprod[t]), z_t = alpha_t z_0 + sigma_t eps.

[DDPM] arXiv 2006.11239, [DDIM] arXiv 2010.02502, [DPM-Solver++] arXiv 2211.01095, [CFG] arXiv 2207.12598.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

EpsFn = Callable[[Tensor, Tensor], Tensor]


class Schedule(nn.Module):
    """Noise schedule with sqrt(beta) linear in t ("scaled linear", as in Stable Diffusion), 0 < beta_1 <= beta_T < 1."""

    def __init__(self, T: int = 1000, beta_1: float = 0.00085, beta_T: float = 0.012):
        super().__init__()
        self.T = T
        self.settings = {"T": T, "beta_1": beta_1, "beta_T": beta_T}
        betas = torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2
        alphas_cumprod = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)  # (T + 1,), float64

    def alpha_sigma(self, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, float32, of t's shape; an index (b,) is given as (b, 1, 1, 1) to multiply images."""
        a = self.alphas_cumprod[t]
        a = a[:, None, None, None] if a.ndim else a
        return a.sqrt().float(), (1 - a).sqrt().float()

    def q_sample(self, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """z_t ~ q(z_t | z_0) for z_0 and eps (b, c, h, w) and t (b,) in 1..T [DDPM, eq. 4]."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha * z_0 + sigma * eps

    def timesteps(self, steps: int) -> list[int]:
        """[T, ..., 0]: steps + 1 strictly falling integers, evenly spaced. Raises ValueError unless 1 <= steps <= T."""
        if not 1 <= steps <= self.T:
            raise ValueError(f"steps must be in 1..{self.T}, got {steps}")
        return [round(self.T * i / steps) for i in range(steps, -1, -1)]


def uniform(T: int, number: int, device: torch.device) -> Tensor:
    """Timesteps (number,), each of 1..T as likely as any other [DDPM, algorithm 1]."""
    return torch.randint(1, T + 1, (number,), device=device)


def logit_normal(T: int, number: int, device: torch.device, mean: float = 0.5, std: float = 1.0) -> Tensor:
    """Timesteps (number,) of which the middle, and with mean > 0 what is above it, is drawn most (arXiv 2403.03206, 3.1)."""
    u = torch.sigmoid(mean + std * torch.randn(number, device=device))  # in (0, 1)
    return 1 + (u * T).long().clamp(max=T - 1)


TIMESTEPS: dict[str, Callable[[int, int, torch.device], Tensor]] = {"uniform": uniform, "logit-normal": logit_normal}


def diffusion_loss(schedule: Schedule, eps_fn: EpsFn, z_0: Tensor, timesteps: str = "uniform") -> Tensor:
    """|| eps - eps_fn(z_t, t) ||^2 for one random t and eps per image of z_0 (b, c, h, w), averaged to () [DDPM, eq. 14]."""
    t = TIMESTEPS[timesteps](schedule.T, len(z_0), z_0.device)
    eps = torch.randn_like(z_0)
    return F.mse_loss(eps_fn(schedule.q_sample(z_0, t, eps), t).float(), eps)


def guided(eps_fn: EpsFn, null_fn: EpsFn, scale: float) -> EpsFn:
    """Classifier-free guidance: null + scale (eps - null), so that scale = 1 is off and costs one pass [CFG, eq. 6]."""
    if scale == 1:
        return eps_fn

    def eps_guided(z_t: Tensor, t: Tensor) -> Tensor:
        null = null_fn(z_t, t)
        return null + scale * (eps_fn(z_t, t) - null)

    return eps_guided


def steps_of(schedule: Schedule, z_T: Tensor, steps: int) -> Iterator[tuple[Tensor, int, int]]:
    """Pairs of timesteps (t, s) from t = T down to s = 0, with t once more as the tensor (b,) that eps_fn takes."""
    for t, s in pairwise(schedule.timesteps(steps)):
        yield torch.full((len(z_T),), t, device=z_T.device), t, s


def ddim(
    schedule: Schedule, eps_fn: EpsFn, z_T: Tensor, steps: int, eta: float = 0.0, generator: Generator | None = None
) -> Iterator[Tensor]:
    """Yield `steps` tensors, the last z_0, from z_T (b, c, h, w) [DDIM, eq. 12 and 16]; eta = 0 is deterministic."""
    z = z_T
    for ts, t, s in steps_of(schedule, z_T, steps):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        a_t, a_s = schedule.alphas_cumprod[t], schedule.alphas_cumprod[s]
        std = (eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()).float()
        eps = eps_fn(z, ts)
        z_0 = (z - sigma_t * eps) / alpha_t
        z = alpha_s * z_0 + (sigma_s**2 - std**2).clamp(min=0).sqrt() * eps
        if eta:
            z = z + std * torch.randn(z.shape, generator=generator).to(z)
        yield z


def ddpm(
    schedule: Schedule, eps_fn: EpsFn, z_T: Tensor, steps: int, generator: Generator | None = None
) -> Iterator[Tensor]:
    """Ancestral sampling with the posterior's variance [DDPM, algorithm 2], which is DDIM at eta = 1 [DDIM, 4.1]."""
    return ddim(schedule, eps_fn, z_T, steps, eta=1.0, generator=generator)


def dpm_solver_pp(schedule: Schedule, eps_fn: EpsFn, z_T: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield `steps` tensors, the last z_0 [DPM-Solver++, algorithm 2, multistep 2M]; first and last step are first order.

    Deterministic. lambda_t = log(alpha_t / sigma_t) is half the log signal-to-noise ratio.
    """
    z, last_z_0, last_h = z_T, None, None
    for ts, t, s in steps_of(schedule, z_T, steps):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        z_0 = (z - sigma_t * eps_fn(z, ts)) / alpha_t
        h = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()  # infinite at s = 0, where exp(-h) = 0
        d = z_0 if last_z_0 is None or s == 0 else z_0 + h / (2 * last_h) * (z_0 - last_z_0)
        z = sigma_s / sigma_t * z - alpha_s * torch.expm1(-h) * d
        last_z_0, last_h = z_0, h
        yield z


SAMPLERS: dict[str, Callable[..., Iterator[Tensor]]] = {"ddpm": ddpm, "ddim": ddim, "dpm++": dpm_solver_pp}
