"""What a claim is, what its run finds, and how a verdict follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from tinyldm.claims.lab import Arm, Lab, Sweep
from tinyldm.evaluate.panel import prompt_settings

SEEDS_FOR_A_VERDICT = 3
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
    """What a run found. `passed` is None where the criterion asks for a report only.

    A row of pictures is of images or hints (n, k, H, W), or of groups of them (g, n, k, H, W).
    """

    passed: bool | None
    number: str  # the figure that decides, with its interval, for the table of all claims
    rows: list[Row]  # the table of the claim
    control: str  # what would show a broken measure, and what it showed
    notes: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)  # label -> a row
    lesson: str = ""  # what the run shows that the paper does not say, in Markdown


@dataclass(frozen=True)
class Cost:
    """What a claim took: the circumstances of the trainings that it was the first to use, and the rest."""

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
    run: Callable[[Lab], Finding]
    paper: str = ""  # the paper's own figures: not the same quantity as ours


def verdict(finding: Finding, seeds: Sequence[int]) -> str:
    """PASS or FAIL from three seeds on, UNDECIDED below; REPORTED where there is nothing to decide."""
    if finding.passed is None:
        return "REPORTED"
    if len(seeds) < SEEDS_FOR_A_VERDICT:
        return "UNDECIDED"
    return "PASS" if finding.passed else "FAIL"


def listed(values: Sequence[float], digits: int = 2) -> str:
    """Numbers side by side, one per seed."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def named(values: Mapping[str, object], between: str = ", ") -> str:
    """Names with their numbers."""
    return between.join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


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
    lab: Lab, arms: Mapping[Any, Arm], kinds: Sequence[str]
) -> dict[tuple[Any, str], Sweep]:
    """(arm, kind of prompts) -> samples of the arm with these of `prompt_settings`."""
    prompts = prompt_settings(lab.panel.data, 0)
    models = {name: lab.models(arm) for name, arm in arms.items()}
    return {(a, kind): lab.sweep(models[a], prompts[kind][0]) for a in arms for kind in kinds}
