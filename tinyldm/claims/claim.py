"""What a claim is, and what its run finds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from tinyldm.claims.lab import Arm, Lab
from tinyldm.claims.sweep import Sweep
from tinyldm.claims.verdict import Criterion, Measured, Precondition
from tinyldm.evaluate.panel import prompt_settings

Row = dict[str, Any]  # heading -> value; Estimates are shown with their intervals
Line = tuple[str, str, Any, Any]  # style, label, x, numbers or Estimates


class Plot(NamedTuple):
    """A panel of a claim's figure."""

    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    xscale: str = "linear"
    ticks: Sequence[str] = ()  # names of x = 0, 1, ...


@dataclass
class Finding:
    """What a run found: a quantity for each criterion, a number for each precondition, and what is shown.

    A row of pictures is of images or hints (n, k, H, W), or of groups of them (g, n, k, H, W).
    """

    measured: Mapping[str, Measured]  # by the names of the criteria
    checks: Mapping[str, float]  # by the names of the preconditions
    number: str  # the figures that decide, in words, for the table of all claims
    rows: list[Row]  # the table of the claim
    notes: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)  # label -> a row
    lesson: str = ""  # what the run shows that the paper does not say, in Markdown


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, and how it is tested; criteria and preconditions were committed before the run."""

    id: str
    title: str
    sentence: str  # what is claimed, in our words
    source: str
    criteria: Sequence[Criterion]  # all of them must hold; none: there is nothing to decide
    preconditions: Sequence[Precondition]
    setting: str
    run: Callable[[Lab], Finding]
    before: str  # what was wrong with the criterion of the first edition
    paper: str = ""  # the paper's own figures: not the same quantity as ours
    seeds: int = 3  # trainings that a verdict needs


BASE_GOOD = Precondition("FD of the base over its floor", high=2)
COPY_KEPT = Precondition("movement of the copy", high=0.3)
CONVERGED = Precondition("share of the loss's fall in the last quarter", high=0.1)
COMMON = (BASE_GOOD, COPY_KEPT, CONVERGED)


def listed(values: Sequence[float], digits: int = 2) -> str:
    """Numbers side by side, one per seed."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def named(values: Mapping[Any, object], between: str = ", ") -> str:
    """Names with their numbers."""
    return between.join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def found(measured: Mapping[str, Measured]) -> str:
    """Quantities with their intervals, in words."""
    return named({name: each.estimate for name, each in measured.items()}, "; ")


def column(rows: Sequence[Row], heading: str) -> list[Any]:
    """What stands under a heading of a table."""
    return [row[heading] for row in rows]


def where(rows: Sequence[Row], **values: object) -> list[Row]:
    """The rows of a table that have these values under these headings."""
    return [row for row in rows if values.items() <= row.items()]


def line(rows: Sequence[Row], x: str, y: str, style: str = "ko-", label: str = "") -> Line:
    """One column of a table over another, for a figure."""
    return style, label, column(rows, x), column(rows, y)


def under_prompts(
    lab: Lab, arms: Mapping[Any, Arm], kinds: Sequence[str], **settings: Any
) -> dict[tuple[Any, str], Sweep]:
    """(arm, kind of prompts) -> samples of the arm with these of `prompt_settings`."""
    prompts = prompt_settings(lab.panel.data, 0)
    models = {name: lab.models(arm) for name, arm in arms.items()}
    return {
        (a, kind): lab.sweep(models[a], prompts[kind][0], **settings)
        for a in arms
        for kind in kinds
    }
