"""Noise schedule, loss, samplers and guidance. No network here: all take `eps_fn(z_t, t) -> eps`.

Timesteps run 1..T and alphas_cumprod[0] = 1 is the clean image, as in the DDPM paper: no step is special.
z_t = alpha_t z_0 + sigma_t eps, alpha_t = sqrt(alphas_cumprod[t]), sigma_t = sqrt(1 - alphas_cumprod[t]).

[DDPM] 2006.11239, [DDIM] 2010.02502, [DPM-Solver++] 2211.01095, [CFG] 2207.12598, all on arXiv.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, randn

EpsFn = Callable[[Tensor, Tensor], Tensor]
NoiseFn = Callable[[torch.Size], Tensor]  # shape -> a standard normal tensor
Device = torch.device | str


@dataclass
class Schedule:
    """Noise schedule, sqrt(beta) linear in t, as in SD. Raises ValueError for betas that are not in (0, 1)."""

    T: int = 1000
    beta_1: float = 0.00085
    beta_T: float = 0.012

    def __post_init__(self) -> None:
        if not (1 <= self.T <= 100_000 and 0 < self.beta_1 <= self.beta_T < 1):
            raise ValueError(
                f"a schedule needs 1 <= T <= 100000, 0 < beta_1 <= beta_T < 1, got {self}"
            )
        betas = torch.linspace(self.beta_1**0.5, self.beta_T**0.5, self.T, dtype=torch.float64) ** 2
        alphas = torch.cat([torch.ones(1, dtype=torch.float64), 1 - betas])
        self.alphas_cumprod = alphas.cumprod(0)  # (T + 1,), float64, on the CPU
        self.tables: dict[torch.device, Tensor] = {}  # alpha and sigma (2, T + 1), float32, on each

    def alpha_sigma(self, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, float32: scalars on the CPU for an int; for t (b,) (b, 1, 1, 1), where t is."""
        device = t.device if isinstance(t, Tensor) else torch.device("cpu")
        if device not in self.tables:
            a = self.alphas_cumprod
            self.tables[device] = torch.stack([a.sqrt(), (1 - a).sqrt()]).float().to(device)
        alpha, sigma = self.tables[device][:, t]
        if isinstance(t, Tensor):
            return rearrange(alpha, "b -> b 1 1 1"), rearrange(sigma, "b -> b 1 1 1")
        return alpha, sigma

    def q_sample(self, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """z_t ~ q(z_t | z_0) for z_0 and eps (b, c, h, w) and t (b,) in 1..T [DDPM, eq. 4]."""
        alpha, sigma = self.alpha_sigma(t.to(z_0.device))
        return alpha * z_0 + sigma * eps

    def timesteps(self, steps: int) -> list[int]:
        """[T, ..., 0]: steps + 1 falling integers, evenly spaced. Raises ValueError unless 1 <= steps <= T."""
        if not 1 <= steps <= self.T:
            raise ValueError(f"steps must be in 1..{self.T}, got {steps}")
        return [round(self.T * i / steps) for i in range(steps, -1, -1)]


def uniform(T: int, number: int, device: Device = "cpu") -> Tensor:
    """t (number,), each of 1..T as likely as any other [DDPM, algorithm 1]."""
    return torch.randint(1, T + 1, (number,), device=device)


def logit_normal(
    T: int, number: int, device: Device = "cpu", mean: float = 0.5, std: float = 1.0
) -> Tensor:
    """t (number,), mostly from the middle of 1..T and, with mean > 0, above it (arXiv 2403.03206, 3.1)."""
    u = torch.sigmoid(mean + std * randn(number, device=device))  # in (0, 1)
    return 1 + (u * T).long().clamp(max=T - 1)


DENSITIES = {"uniform": uniform, "logit-normal": logit_normal}


def diffusion_loss(schedule: Schedule, eps_fn: EpsFn, z_0: Tensor, density="uniform") -> Tensor:
    """|| eps - eps_fn(z_t, t) ||^2, a mean over z_0 (b, c, h, w), to () [DDPM, eq. 14]; one t per image."""
    t = DENSITIES[density](schedule.T, len(z_0), z_0.device)
    eps = randn(z_0.shape, device=z_0.device)  # by shape, whatever the memory layout
    z_t = schedule.q_sample(z_0, t, eps)
    return F.mse_loss(eps_fn(z_t, t).float(), eps)


def guided(eps_fn: EpsFn, null_fn: EpsFn, w: float) -> EpsFn:
    """Classifier-free guidance: null + w (eps - null); w = 1 is off and costs one pass [CFG, eq. 6]."""
    if w == 1:
        return eps_fn

    def eps_guided(z_t: Tensor, t: Tensor) -> Tensor:
        null = null_fn(z_t, t)
        return null + w * (eps_fn(z_t, t) - null)

    return eps_guided


def walk(schedule: Schedule, z_T: Tensor, steps: int) -> Iterator[tuple[Tensor, int, int]]:
    """Pairs of timesteps (t, s) from t = T down to s = 0, with t also as the tensor (b,) of eps_fn."""
    for t, s in pairwise(schedule.timesteps(steps)):
        yield torch.full((len(z_T),), t, device=z_T.device), t, s


def ddim(
    schedule: Schedule, eps_fn: EpsFn, z_T: Tensor, steps: int, noise: NoiseFn = randn, eta=0.0
) -> Iterator[Tensor]:
    """Yield `steps` tensors, the last z_0, from z_T (b, c, h, w) [DDIM, eq. 12, 16]; eta = 0 draws no noise."""
    z = z_T
    for ts, t, s in walk(schedule, z_T, steps):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        a_t, a_s = schedule.alphas_cumprod[t], schedule.alphas_cumprod[s]
        std = (eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()).float()
        eps = eps_fn(z, ts)
        z_0 = (z - sigma_t * eps) / alpha_t
        z = alpha_s * z_0 + (sigma_s**2 - std**2).clamp(min=0).sqrt() * eps
        if eta:
            z = z + std * noise(z.shape).to(z)
        yield z


def ddpm(
    schedule: Schedule, eps_fn: EpsFn, z_T: Tensor, steps: int, noise: NoiseFn = randn, eta=1.0
) -> Iterator[Tensor]:
    """Ancestral sampling, posterior variance [DDPM, algorithm 2]: DDIM at eta = 1, always [DDIM, 4.1]."""
    return ddim(schedule, eps_fn, z_T, steps, noise, eta=1.0)


def dpm_solver_pp(
    schedule: Schedule, eps_fn: EpsFn, z_T: Tensor, steps: int, noise: NoiseFn = randn, eta=0.0
) -> Iterator[Tensor]:
    """Yield `steps` tensors, the last z_0 [DPM-Solver++, algorithm 2, multistep 2M]; draws no noise.

    The first and the last step are first order; r is a step of lambda_t = log(alpha_t / sigma_t).
    """
    z, before = z_T, None
    for ts, t, s in walk(schedule, z_T, steps):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        z_0 = (z - sigma_t * eps_fn(z, ts)) / alpha_t
        r = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()  # infinite at s = 0: exp(-r) = 0
        d = z_0
        if before and s > 0:
            last_z_0, last_r = before
            d = z_0 + r / (2 * last_r) * (z_0 - last_z_0)
        z = sigma_s / sigma_t * z - alpha_s * torch.expm1(-r) * d
        before = z_0, r
        yield z


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm++": dpm_solver_pp}


def seeded(seed: int, number: int) -> NoiseFn:
    """Noise for `number` images, image i by a generator of its own: seed + i, carried on from call to call."""
    generators = [Generator().manual_seed(seed + i) for i in range(number)]
    return lambda shape: torch.stack([randn(shape[1:], generator=g) for g in generators])
