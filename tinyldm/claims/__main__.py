"""`python -m tinyldm.claims`: the empirical claims of the papers, each tested and reported."""

import time
from dataclasses import dataclass
from pathlib import Path

from tinyldm.claims import report
from tinyldm.claims.all import CLAIMS
from tinyldm.claims.claim import Claim, Cost, Finding
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import QUICK, Settings
from tinyldm.claims.store import Store
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.support.progress import progress
from tinyldm.training.machine import process

BAR = "claims {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left{postfix}"


@dataclass(frozen=True)
class ClaimsSettings:
    """Train what the claims need, unless it is there from before, measure, and write the report."""

    only: str = ""
    """Claims to run, as in E2,E3; by default all."""
    seeds: int = 3
    """Training seeds; a verdict needs 3."""
    quick: bool = False
    """Seconds instead of hours: tiny networks, one seed; shows that the machinery runs, and decides nothing."""
    folder: Path = Path("runs/claims")
    """Where trained arms are kept. An interrupted run is resumed from there, and nothing is trained twice;
    several of these commands, with different --only, may share it."""
    out: Path | None = None
    """The report, by default docs/RESULTS.md; RESULTS.md in --folder with --quick or --only. Its figures come
    into `results` beside it."""
    device: str = "auto"


def chosen(only: str) -> list[Claim]:
    """The claims named, in order. Raises UserError for one that is not there."""
    names = [name.strip().upper() for name in only.split(",") if name.strip()]
    known = {claim.id: claim for claim in CLAIMS}
    try:
        return [known[name] for name in names or known]
    except KeyError as error:
        there = f"no such claim here; there are {', '.join(known)}"
        raise UserError(f"--only {error.args[0]}: {there}") from error


def weights() -> dict[str, float]:
    """What each claim counts in the bar: its seconds in the committed report, the same without one."""
    path = report.DOCS / "results" / "results.json"
    entries = files.read_json(path, "delete it")["claims"] if path.exists() else []
    known = {entry["id"]: sum(entry["seconds"].values()) for entry in entries}
    return {claim.id: 1.0 for claim in CLAIMS} | known


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
    return finding, Cost(arms, store.remember(key, round(seconds, 1), max))


def main(settings: ClaimsSettings) -> None:
    """Run claim by claim; the report is written anew after each."""
    claims, in_part = chosen(settings.only), settings.quick or bool(settings.only)
    if settings.seeds < 1:
        raise UserError(f"--seeds {settings.seeds}: must be at least 1")
    seeds = [0] if settings.quick else list(range(settings.seeds))
    out = settings.out or (settings.folder if in_part else report.DOCS) / "RESULTS.md"
    report.check(out)
    weight = weights()
    total = sum(weight[claim.id] for claim in claims)
    bar = progress(total=total, bar_format=BAR, smoothing=0)
    with process(settings.device) as machine, bar:
        sizes = QUICK if settings.quick else Settings()
        lab = Lab(Store(settings.folder), sizes, machine, seeds)
        results = report.Report(out, lab)
        for claim in claims:
            bar.set_postfix_str(claim.id)
            finding, cost = timed(lab, claim)
            results.add(claim, finding, cost)
            bar.update(weight[claim.id])
            bar.write(f"{claim.id}: {finding.number}")
    print(out)


if __name__ == "__main__":
    run_command(lambda: main(parse(ClaimsSettings)))
