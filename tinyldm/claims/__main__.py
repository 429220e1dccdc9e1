"""`python -m tinyldm.claims`: the empirical claims of the papers, each tested and reported."""

from dataclasses import dataclass
from pathlib import Path

from tinyldm.cli import parse, run_command


@dataclass(frozen=True)
class ClaimsConfig:
    """Train what the claims need, unless it is there from before, measure, and write the report."""

    only: str = ""
    """Claims to run, as in E2,E3; by default all."""
    seeds: int = 3
    """Training seeds; a verdict needs 3."""
    quick: bool = False
    """Seconds instead of hours: tiny networks, one seed; shows that the machinery runs, and decides nothing."""
    folder: Path = Path("runs/claims")
    """Where trained arms are kept. An interrupted run goes on from there, and nothing is trained twice; several of these
    commands, with different --only, may share it."""
    out: Path | None = None
    """The report, by default docs/RESULTS.md; RESULTS.md in --folder with --quick or --only. Its figures come into `results`
    beside it."""
    device: str = "auto"


if __name__ == "__main__":  # before torch is imported: --help and mistakes answer at once
    config = run_command(lambda: parse(ClaimsConfig))

import json
import time

from tqdm import tqdm

from tinyldm.claims import report
from tinyldm.claims.all import CLAIMS
from tinyldm.claims.claim import Claim, Cost, Finding
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import QUICK, Settings
from tinyldm.errors import UserError


def chosen(only: str) -> list[Claim]:
    """The claims named, in order. Raises UserError for one that is not there."""
    names = [name.strip().upper() for name in only.split(",") if name.strip()] or [claim.id for claim in CLAIMS]
    known = {claim.id: claim for claim in CLAIMS}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--only {','.join(unknown)}: no such claim here; there are {', '.join(known)}")
    return [known[name] for name in names]


def weights() -> dict[str, float]:
    """What part of the time each claim takes: its seconds in the committed report, equal parts without one."""
    path = report.DOCS / "results" / "results.json"
    entries = json.loads(path.read_text())["claims"] if path.exists() else []
    return {claim.id: 1.0 for claim in CLAIMS} | {e["id"]: sum(e["seconds"].values()) for e in entries}


def timed(lab: Lab, claim: Claim, seeds: list[int]) -> tuple[Finding, Cost]:
    """The claim's finding, and what it cost: its arms that no claim before it used, and the rest."""
    used, start, before = set(lab.trained), time.perf_counter(), sum(lab.aside)
    finding = claim.run(lab, seeds)
    seconds = time.perf_counter() - start - (sum(lab.aside) - before)
    arms = [lab.trained[folder] for folder in lab.trained if folder not in used]
    return finding, Cost(arms, lab.longest(f"measuring-{claim.id}", seconds))


def main(config: ClaimsConfig) -> None:
    """Run claim by claim; the report is written anew after each."""
    claims = chosen(config.only)
    if config.seeds < 1:
        raise UserError(f"--seeds {config.seeds}: must be at least 1")
    seeds = [0] if config.quick else list(range(config.seeds))
    out = config.out or (config.folder if config.quick or config.only else report.DOCS) / "RESULTS.md"
    report.make_folder(out)
    lab, found, weight = Lab(config.folder, QUICK if config.quick else Settings(), config.device), [], weights()
    left = "claims {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left{postfix}"
    with tqdm(total=sum(weight[claim.id] for claim in claims), bar_format=left, smoothing=0) as bar:
        for claim in claims:
            bar.set_postfix_str(claim.id)
            finding, cost = timed(lab, claim, seeds)
            found.append((claim, finding, cost))
            report.write(out, lab, found, seeds, config.quick)
            bar.update(weight[claim.id])
            tqdm.write(f"{claim.id}: {finding.number}")
    print(out)


if __name__ == "__main__":
    run_command(lambda: main(config))
