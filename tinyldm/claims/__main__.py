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
    """Where trained arms are kept. An interrupted run goes on from there, and nothing is trained twice."""
    out: Path | None = None
    """The report, by default docs/RESULTS.md, with --quick RESULTS.md in --folder; its figures come into `results` beside it."""
    device: str = "auto"


if __name__ == "__main__":  # before torch is imported: --help and mistakes answer at once
    config = run_command(lambda: parse(ClaimsConfig))

import platform
import time

import torch
from tqdm import tqdm

from tinyldm.claims import report
from tinyldm.claims.all import CLAIMS
from tinyldm.claims.lab import QUICK, Lab, Settings, commit
from tinyldm.errors import UserError


def chosen(only: str) -> list:
    """The claims named, in order. Raises UserError for one that is not there."""
    names = [name.strip().upper() for name in only.split(",") if name.strip()] or [claim.id for claim in CLAIMS]
    known = {claim.id: claim for claim in CLAIMS}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--only {','.join(unknown)}: no such claim here; there are {', '.join(known)}")
    return [known[name] for name in names]


def about(config: ClaimsConfig, seeds: list[int], seconds: float) -> str:
    """What the numbers belong to: commit, seeds, time, machine."""
    quick = " **--quick: the verdicts mean nothing.**" if config.quick else ""
    return (
        f"Written by `python -m tinyldm.claims`, commit {commit()}, seeds {', '.join(map(str, seeds))}, {seconds / 3600:.2f} "
        f"hours in this sitting, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads.{quick}"
    )


def main(config: ClaimsConfig) -> None:
    """Run claim by claim; the report is written anew after each."""
    claims = chosen(config.only)
    if config.seeds < 1:
        raise UserError(f"--seeds {config.seeds}: must be at least 1")
    seeds = [0] if config.quick else list(range(config.seeds))
    lab = Lab(config.folder, QUICK if config.quick else Settings(), config.device)
    found, start = [], time.perf_counter()
    out = config.out or (config.folder if config.quick else Path("docs")) / "RESULTS.md"
    for claim in (bar := tqdm(claims, desc="claims")):
        bar.set_postfix_str(claim.id)
        began = time.perf_counter()
        finding = claim.run(lab, seeds)
        found.append((claim, finding, time.perf_counter() - began))
        report.write(out, about(config, seeds, time.perf_counter() - start), found, seeds)
        tqdm.write(f"{claim.id}: {finding.number}")
    print(out)


if __name__ == "__main__":
    run_command(lambda: main(config))
