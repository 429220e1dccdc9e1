"""How a verdict follows from what was measured: preconditions, criteria, intervals over seeds and images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tinyldm.evaluate.metrics import Estimate

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
NOT_TESTED, REPORTED = "NOT TESTED", "REPORTED"
SEEDS = 3  # that a verdict needs
BLOCKS = 20  # of the jackknife
RESAMPLES = 4000
Statistic = Callable[..., Tensor]  # of the means of columns (r,) -> (r,)


class Noise(NamedTuple):
    """How much a quantity differs between images and between trainings, and how many there are of each."""

    images: float  # standard deviation over images, or over drawings, of a training's values
    seeds: float  # over trainings, of their means
    n: int
    trainings: int


class Measured(NamedTuple):
    """A quantity with its interval over seeds and images, and the noise that it was found in."""

    estimate: Estimate
    noise: Noise


@dataclass(frozen=True)
class Precondition:
    """What must hold before a verdict means anything: a number within bounds."""

    name: str
    low: float = -math.inf
    high: float = math.inf

    def met(self, value: float) -> bool:
        """Nothing is met by what could not be measured (nan)."""
        return self.low <= value <= self.high

    @property
    def bounds(self) -> str:
        """Its bounds in words."""
        low, high = f"at least {self.low:g}", f"at most {self.high:g}"
        given = [low] * (self.low > -math.inf) + [high] * (self.high < math.inf)
        return ", ".join(given)


@dataclass(frozen=True)
class Criterion(Precondition):
    """What a claim says of a quantity: its whole interval within the bounds passes, wholly outside fails.

    A lower bound below 0 is a margin of non-inferiority; two bounds round 0 are one of equivalence.
    """

    holds: float = 0.0  # the quantity in a world where the claim holds
    fails: float = 0.0  # and in one where it does not
    noise: Noise = Noise(0.1, 0.01, 113, SEEDS)  # that was expected before the run
    family: int = 1  # quantities judged together, each at level 1 - 0.05 / family (Bonferroni)
    same: float = 0.0  # an interval within this of 0 shows equivalence

    def decide(self, found: Estimate) -> str:
        """PASS, FAIL or INCONCLUSIVE."""
        if self.low <= found.low and found.high <= self.high:
            return PASS
        outside = found.high < self.low or found.low > self.high
        return FAIL if outside else INCONCLUSIVE

    def equal(self, found: Estimate) -> bool:
        """Is the quantity shown to be as good as 0?"""
        return -self.same <= found.low and found.high <= self.same and self.same > 0


def together(verdicts: Sequence[str]) -> str:
    """That of several criteria which must all hold."""
    if FAIL in verdicts:
        return FAIL
    return PASS if set(verdicts) == {PASS} else INCONCLUSIVE


def unmet(preconditions: Sequence[Precondition], checks: Mapping[str, float]) -> list[str]:
    """The preconditions that are not met, in words."""
    return [
        f"{each.name}: {checks[each.name]:.3g}, not {each.bounds}"
        for each in preconditions
        if not each.met(checks[each.name])
    ]


def identity(mean: Tensor) -> Tensor:
    return mean


def measure(
    *columns: Tensor,
    origins: Tensor | None = None,
    statistic: Statistic = identity,
    family: int = 1,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measured:
    """statistic(mean of each column) with its interval at level 1 - 0.05 / family, and the noise.

    Columns (s, n) hold s trainings' values of the same n images. Each resample draws images anew, all images
    of one origin (n,) together, and adds what the choice of trainings may do: Student's t of s - 1 degrees
    of freedom times the standard error between them, since a bootstrap of three has no tails.
    """
    values = torch.stack(columns).double()  # (k, s, n)
    s, n = values.shape[1:]
    origins = torch.arange(n) if origins is None else origins
    group = origins.unique(return_inverse=True)[1]
    counts = group.bincount().double()  # (m,)
    m, draw = len(counts), torch.Generator().manual_seed(seed)
    sums = torch.zeros(len(values), s, m).double().index_add_(2, group, values)
    weights = drawn(resamples, m, draw)  # (r, m)
    means = sums @ weights.T / (weights @ counts)  # (k, s, r)
    over_images = statistic(*means.mean(1))  # (r,)
    seeds = statistic(*values.mean(2)).std().item() if s > 1 else 0.0
    found = over_images + students_t(s - 1, resamples, draw) * seeds / math.sqrt(s)
    tail = 0.025 / family
    low, high = found.quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    mean = statistic(*values.mean((1, 2))[:, None]).item()
    images = over_images.std().item() * math.sqrt(m)
    return Measured(Estimate(mean, low, high), Noise(images, seeds, m, s))


def students_t(degrees: int, resamples: int, draw: torch.Generator) -> Tensor:
    """Draws (resamples,) of Student's t; 0 without a degree of freedom."""
    if not degrees:
        return torch.zeros(resamples).double()
    normal = torch.randn(1 + degrees, resamples, generator=draw).double()
    return normal[0] / normal[1:].square().mean(0).sqrt()


def drawn(resamples: int, m: int, draw: torch.Generator) -> Tensor:
    """How often each of m is drawn in m draws with replacement, (resamples, m)."""
    picks = torch.randint(m, (resamples, m), generator=draw)
    ones = torch.ones(1).double().expand(resamples, m)
    return torch.zeros(resamples, m).double().scatter_add_(1, picks, ones)


def pseudo_values(statistic: Callable[[Tensor], float], origins: Tensor) -> Tensor:
    """Of a statistic of a whole set of images, which need not be a mean: BLOCKS values that are as its columns.

    s + (B - 1) (mean s_b - s_b): s of all images, s_b without block b (the jackknife's pseudo-values, Tukey
    1958, about s, since leaving out drawings that the reference has too is no bias of order 1 / n to be taken
    away). `statistic` takes indices (m <= n); images of one origin (n,) are in one block.
    """
    group = origins.unique(return_inverse=True)[1]
    mixed = torch.randperm(int(group.max()) + 1, generator=torch.Generator().manual_seed(0))
    block = mixed[group] % BLOCKS
    whole = statistic(torch.arange(len(origins)))
    parts = torch.tensor(
        [statistic((block != b).nonzero()[:, 0]) for b in block.unique().tolist()]
    ).double()
    return whole + (len(parts) - 1) * (parts.mean() - parts)


def simulated(criterion: Criterion, effect: float, noise: Noise, seed: int) -> str:
    """The verdict in a world where the quantity is `effect`, measured with that noise."""
    draw = torch.Generator().manual_seed(seed)
    images = noise.images * torch.randn(1, noise.n, generator=draw)
    trainings = noise.seeds * torch.randn(noise.trainings, 1, generator=draw)
    found = measure(
        effect + images + trainings, family=criterion.family, seed=seed + 10**6, resamples=1000
    )
    return criterion.decide(found.estimate)


@lru_cache
def power(criterion: Criterion, noise: Noise, draws: int = 40) -> tuple[float, float]:
    """How often a world where the claim holds passes, and how often one where it fails does fail."""
    worlds = (criterion.holds, PASS), (criterion.fails, FAIL)
    right, left = (
        sum(simulated(criterion, effect, noise, seed) == verdict for seed in range(draws)) / draws
        for effect, verdict in worlds
    )
    return right, left
