"""`python -m tinyldm.claims`: the empirical claims of the papers, each tested and reported."""

import time
from dataclasses import dataclass
from pathlib import Path

from tinyldm.claims import report, result
from tinyldm.claims.all import CLAIMS, IMPORTANCE
from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import Lab
from tinyldm.claims.result import Cost, Result
from tinyldm.claims.settings import TINY, Settings
from tinyldm.claims.store import Store
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.support.progress import progress
from tinyldm.training.machine import process
from tinyldm.training.run_folder import dataset_of

BAR = "claims {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left{postfix}"


@dataclass(frozen=True)
class ClaimsSettings:
    """Train what the claims need, unless it is there from before, measure, and write the report.

    What each claim found is a file, docs/results/eNN.json, from which docs/RESULTS.md is written.
    """

    only: str = ""
    """Claims to run, as in E2,E3; by default all, the most important first."""
    base: Path = Path("runs/emoji/base")
    """Run folder of the base that ControlNets are trained on: what 'make emoji' trains first."""
    seeds: int = 3
    """Trainings of each arm, at least; a verdict needs 3, and a claim whose verdict needs 5 has 5."""
    budget: float = 0.0
    """Hours after which no further claim is begun; 0 is without end. What is trained is kept."""
    report: bool = False
    """Only write the report anew, from what was found before; takes seconds."""
    quick: bool = False
    """Seconds instead of hours: tiny networks, one seed; shows that the machinery runs, and decides nothing."""
    folder: Path = Path("runs/claims")
    """Where trained arms are kept. An interrupted run is resumed from there, and nothing is trained twice;
    several of these commands, with different --only, may share it."""
    out: Path | None = None
    """The report, by default docs/RESULTS.md, with --quick RESULTS.md in --folder. What was found comes into
    `results` beside it."""
    device: str = "auto"
    threads: int = 0
    """Threads on a CPU; 0 is $OMP_NUM_THREADS, or as many as there are idle cores."""


def chosen(only: str) -> list[Claim]:
    """The claims named, in order. Raises UserError for one that is not there."""
    names = [name.strip().upper() for name in only.split(",") if name.strip()]
    known = {claim.id: claim for claim in CLAIMS}
    try:
        return [known[name] for name in names or IMPORTANCE]
    except KeyError as error:
        there = f"no such claim here; there are {', '.join(known)}"
        raise UserError(f"--only {error.args[0]}: {there}") from error


def timed(lab: Lab, claim: Claim) -> tuple[Finding, Cost]:
    """The claim's finding, and what it cost: its arms that no claim before it used, and the rest.

    The rest is the longest that it ever took: the first time, when its samples were not there yet.
    """
    store, start = lab.store, time.perf_counter()
    used, aside = len(store.trained), store.aside
    finding = claim.run(lab)
    seconds = time.perf_counter() - start - (store.aside - aside)
    arms = list(store.trained.values())[used:]
    key = {"kind": "measuring", "claim": claim.id, "settings": lab.settings, "seeds": lab.seeds}
    return finding, result.cost_of(store, arms, store.remember(key, round(seconds, 1), max))


def weights(folder: Path) -> dict[str, float]:
    """What each claim counts in the bar: its seconds when it was run before, else as much as the mean."""
    found = {claim.id: result.read(folder, claim) for claim in CLAIMS}
    known = {name: r.cost.training + r.cost.measuring for name, r in found.items() if r}
    mean = sum(known.values()) / len(known) if known else 1.0
    return {name: known.get(name, mean) for name in found}


def check_base(folder: Path, dataset: str) -> None:
    """Raise UserError unless the folder holds the base that ControlNets are to be trained on."""
    try:
        found = dataset_of(folder)
    except UserError as error:
        raise UserError(f"--base {folder}: {error}; 'make emoji' trains it") from error
    if found != dataset:
        raise UserError(
            f"--base {folder}: a base of {found}, not of {dataset}; 'make emoji' trains one"
        )


def run(settings: ClaimsSettings, claims: list[Claim], out: Path) -> None:
    """Run claim by claim; what each found is written at once, and the report anew."""
    weight, folder = weights(out.parent / "results"), out.parent / "results"
    bar = progress(total=sum(weight[claim.id] for claim in claims), bar_format=BAR, smoothing=0)
    start = time.monotonic()
    with process(settings.device, threads=settings.threads) as machine, bar:
        sizes, ground = (TINY, None) if settings.quick else (Settings(), settings.base)
        lab = Lab(Store(settings.folder, machine.device), sizes, machine, [0], ground)
        for claim in claims:
            if settings.budget and time.monotonic() - start > 3600 * settings.budget:
                bar.write(f"--budget {settings.budget:g}: over before {claim.id}")
                break
            bar.set_postfix_str(claim.id)
            if not settings.quick:
                lab.seeds = list(range(max(settings.seeds, claim.seeds)))
            finding, cost = timed(lab, claim)
            found: Result = result.result_of(claim, finding, lab, cost)
            report.draw_figures(folder, claim, finding)
            result.write(folder, claim, found)
            report.write(out, quick=settings.quick)
            bar.update(weight[claim.id])
            bar.write(f"{claim.id}: {result.verdict(claim, found)}: {finding.number}")


def main(settings: ClaimsSettings) -> None:
    """Run the claims, or only write the report."""
    claims = chosen(settings.only)
    out = settings.out or (settings.folder if settings.quick else report.DOCS) / "RESULTS.md"
    if settings.seeds < 1:
        raise UserError(f"--seeds {settings.seeds}: must be at least 1")
    if not settings.budget >= 0:
        raise UserError(f"--budget {settings.budget}: must be at least 0")
    report.check(out)
    if settings.report:
        report.write(out, quick=settings.quick)
    else:
        if not settings.quick:
            check_base(settings.base, Settings.dataset)
        run(settings, claims, out)
    print(out)


if __name__ == "__main__":
    run_command(lambda: main(parse(ClaimsSettings)))
