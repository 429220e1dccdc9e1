"""What a claim is, what its run finds, and how a verdict follows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tinyldm.claims.lab import Lab
from tinyldm.metrics import gain, interval

SEEDS_FOR_A_VERDICT = 3
Row = dict[str, object]


@dataclass
class Finding:
    """What a run found. `passed` is None where the criterion asks for a report only."""

    passed: bool | None
    number: str  # the figure that decides, with its interval, for the table of all claims
    rows: list[Row]  # the table of the claim
    control: str  # what would show a broken measure, and what it showed
    notes: list[str] = field(default_factory=list)
    draw: Callable[[Any], None] | None = None  # on a matplotlib figure
    pictures: list[tuple[str, Sequence[Tensor]]] = field(default_factory=list)  # rows of a grid: label, images
    facts: dict[str, float] = field(default_factory=dict)  # what the lessons quote


@dataclass(frozen=True)
class Cost:
    """What a claim took: the arms it was the first to use, with the circumstances of their training, and the rest."""

    arms: list[dict]
    measuring: float  # seconds

    @property
    def training(self) -> float:
        return sum(arm["seconds"] for arm in self.arms)


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, and how it is tested; `criterion` was written before the first run."""

    id: str
    title: str
    sentence: str  # what is claimed, in our words
    source: str
    criterion: str
    setting: str
    run: Callable[[Lab, Sequence[int]], Finding]
    paper: str = ""  # the paper's own figures: not the same quantity as ours


def verdict(finding: Finding, seeds: Sequence[int]) -> str:
    """PASS or FAIL from three seeds on, UNDECIDED below; REPORTED where there is nothing to decide."""
    if finding.passed is None:
        return "REPORTED"
    if len(seeds) < SEEDS_FOR_A_VERDICT:
        return "UNDECIDED"
    return "PASS" if finding.passed else "FAIL"


def with_interval(mean: float, low_high: tuple[float, float], digits: int = 2) -> str:
    return f"{mean:.{digits}f} [{low_high[0]:.{digits}f}, {low_high[1]:.{digits}f}]"


def over_seeds(columns: Sequence[Tensor]) -> Tensor:
    """One column (n,) per seed -> their mean image by image, so that an interval resamples each test image once."""
    return torch.stack([column.double() for column in columns]).mean(0)


Estimate = tuple[float, tuple[float, float]]  # a mean and its interval


def spread(values: Sequence[float]) -> Estimate:
    """Mean over seeds, with the smallest and the largest."""
    return sum(values) / len(values), (min(values), max(values))


def errorbars(found: Sequence[Estimate]) -> tuple[list[float], list[list[float]]]:
    """Means, and their distances from the ends of their intervals, as matplotlib's errorbar takes them."""
    low, high = ([abs(ends[i] - mean) for mean, ends in found] for i in (0, 1))
    return [mean for mean, _ in found], [low, high]


def gain_of(lab: Lab, *samples: Any) -> Estimate:
    """GAIN of the mean over seeds, and its interval over images."""
    columns = [over_seeds([getattr(s, name) for s in samples]) for name in ("ef0", "ch")] + [lab.ce.double()]
    return gain(*(c.mean().item() for c in columns)), interval(*columns, statistic=gain)


def share_of(seen: Sequence[Tensor], wanted: Tensor) -> Estimate:
    """Share of labels (n,), one column per seed, that equal the wanted ones (n,); with its interval."""
    hit = over_seeds([column == wanted for column in seen])
    return hit.mean().item(), interval(hit)


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> Estimate:
    """Mean of a - b over seeds and images, one column (n,) per seed, paired image by image; with its interval."""
    gap = over_seeds(a) - over_seeds(b)
    return gap.mean().item(), interval(gap)
