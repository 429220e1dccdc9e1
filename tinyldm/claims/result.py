"""What a claim's run found, as a file: eNN.json, from which the report is written."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tinyldm.benchmark.machine import load
from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import Lab
from tinyldm.claims.store import Store
from tinyldm.claims.verdict import (
    FAIL,
    INCONCLUSIVE,
    NOT_TESTED,
    PASS,
    REPORTED,
    Criterion,
    Measured,
    Noise,
    power,
    together,
    unmet,
)
from tinyldm.evaluate.metrics import Estimate
from tinyldm.evaluate.tables import plain
from tinyldm.support import files
from tinyldm.support.decode import decode

POWER = 0.8  # share of simulated worlds that must be told apart
REMEDY = "delete it, and run this claim again"


@dataclass(frozen=True)
class Quantity:
    """A measured quantity, flat."""

    mean: float | None
    low: float | None
    high: float | None
    noise: dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a claim took, and where."""

    commits: list[str]  # of its trainings and its measuring
    processors: list[str]
    threads: list[int]
    trainings: int  # that it was the first to use
    training: float  # seconds
    measuring: float
    load: list[float]  # the least and the largest


@dataclass(frozen=True)
class Result:
    """A finding, and the circumstances of it."""

    id: str
    seeds: list[int]
    checks: dict[str, float | None]
    measured: dict[str, Quantity]
    number: str
    rows: list[dict[str, Any]]
    notes: list[str]
    lesson: str
    figures: list[str]  # "", "-samples": the images that there are of it
    cost: Cost

    def found(self, name: str) -> Estimate:
        """A criterion's quantity; nan where there is none."""
        numbers = (self.measured[name].mean, self.measured[name].low, self.measured[name].high)
        return Estimate(*(math.nan if x is None else x for x in numbers))

    def noise(self, name: str) -> Noise:
        noise = self.measured[name].noise
        return Noise(**{key: math.nan if x is None else x for key, x in noise.items()})  # type: ignore[arg-type]


def finite(value: Any) -> Any:
    """JSON has no infinities and no nan: None instead."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def flat(measured: Mapping[str, Measured]) -> dict[str, Quantity]:
    """Measured quantities as they are written."""
    return {
        name: Quantity(*each.estimate, noise=each.noise._asdict())
        for name, each in measured.items()
    }


def cost_of(store: Store, arms: Sequence[Mapping[str, Any]], measuring: float) -> Cost:
    """What a claim took that was the first to use these arms, given their circumstances."""
    here = {
        "commit": store.commit,
        "processor": store.processor,
        "threads": torch.get_num_threads(),
        "load": load(),
    }
    every = [here, *arms]
    return Cost(
        commits=sorted({arm["commit"] for arm in every}),
        processors=sorted({arm["processor"] for arm in every}),
        threads=sorted({arm["threads"] for arm in every}),
        trainings=len(arms),
        training=round(sum(arm["seconds"] for arm in arms), 1),
        measuring=measuring,
        load=[min(arm["load"] for arm in every), max(arm["load"] for arm in every)],
    )


def result_of(claim: Claim, finding: Finding, lab: Lab, cost: Cost) -> Result:
    """What is written of a finding."""
    figures = [""] * bool(finding.plots) + ["-samples"] * bool(finding.pictures)
    return Result(
        claim.id,
        lab.seeds,
        dict(finding.checks),
        flat(finding.measured),
        finding.number,
        [plain(row) for row in finding.rows],
        finding.notes,
        finding.lesson,
        figures,
        cost,
    )


def path_of(folder: Path, claim: Claim) -> Path:
    return folder / f"e{int(claim.id[1:]):02d}.json"


def write(folder: Path, claim: Claim, result: Result) -> None:
    files.write_json(path_of(folder, claim), finite(asdict(result)))


def read(folder: Path, claim: Claim) -> Result | None:
    """The result of a claim, if there is one. Raises UserError for a file that is not one."""
    path = path_of(folder, claim)
    if not path.exists():
        return None
    content = files.read_json(path, REMEDY)
    with files.expecting("a result", path, REMEDY):
        result: Result = decode(Result, content)
        missing = {c.name for c in claim.criteria} - set(result.measured)
        missing |= {p.name for p in claim.preconditions} - set(result.checks)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return result


def reasons(claim: Claim, result: Result) -> list[str]:
    """Why a claim could not be tested; nothing if it could."""
    checks = {k: math.nan if v is None else v for k, v in result.checks.items()}
    few = f"{len(result.seeds)} trainings, not {claim.seeds}"
    return [few] * (len(result.seeds) < claim.seeds) + unmet(claim.preconditions, checks)


def decided(criterion: Criterion, result: Result) -> str:
    """What a criterion says: nothing if, with the noise that was found, it could not have said the opposite.

    A PASS needs that simulated worlds where the claim fails do fail, a FAIL that such where it holds do pass.
    """
    said = criterion.decide(result.found(criterion.name))
    right, left = power(criterion, result.noise(criterion.name))
    return said if {PASS: left, FAIL: right}.get(said, 1.0) >= POWER else INCONCLUSIVE


def verdict(claim: Claim, result: Result) -> str:
    """PASS, FAIL or INCONCLUSIVE; NOT TESTED where a precondition is not met; REPORTED without criteria."""
    if not claim.criteria:
        return REPORTED
    if reasons(claim, result):
        return NOT_TESTED
    return together([decided(each, result) for each in claim.criteria])
