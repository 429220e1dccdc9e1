"""E16: DDIM needs few steps."""

from tinyldm.claims.checks import base_ratio, learnt, small
from tinyldm.claims.claim import BASE_GOOD, Claim, Finding, Plot, Row, found, line, where
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm
from tinyldm.claims.sweep import fd_ratio
from tinyldm.claims.verdict import Criterion, Noise, Precondition

ARMS = (
    *(("ddim", n, 0.0) for n in (3, 10, 25, 50, 250)),
    *(("dpm++", n, 0.0) for n in (3, 10, 15, 50)),
    ("ddim", 50, 1.0),
)
MANY, FIFTY, FEW = ("ddim", 250, 0.0), ("ddim", 50, 0.0), ("ddim", 3, 0.0)
DPM, DPM_MANY = ("dpm++", 15, 0.0), ("dpm++", 50, 0.0)
ENOUGH, SOLVER = "FD, DDIM 50 over DDIM 250", "FD, DPM-Solver++ 15 over 50"
SEEN = "FD, DDIM 3 over DDIM 250"
DRAWN = (("ko-", "ddim", 0.0), ("ks--", "dpm++", 0.0))


def run(lab: Lab) -> Finding:
    """FD at each number of steps of each sampler."""
    lab = small(lab)
    panel = learnt(lab)
    models, rows, swept = lab.models(BaseArm()), list[Row](), {}
    for arm in ARMS:
        how: Row = dict(zip(("sampler", "steps", "eta"), arm, strict=True))
        swept[arm] = lab.sweep(models, panel=panel, **how)
        rows.append({**how, "FD": swept[arm].fd, "KD": swept[arm].kd, "ACC_t": swept[arm].acc})
    measured = {
        ENOUGH: fd_ratio(swept[FIFTY], swept[MANY]),
        SOLVER: fd_ratio(swept[DPM], swept[DPM_MANY]),
    }
    checks = {
        BASE_GOOD.name: base_ratio(lab),
        SEEN: fd_ratio(swept[FEW], swept[MANY]).estimate.mean,
    }
    lines = [
        line(where(rows, sampler=sampler, eta=eta), "steps", "FD", style, sampler)
        for style, sampler, eta in DRAWN
    ]
    return Finding(
        measured,
        checks,
        found(measured),
        rows,
        plots=[Plot("steps", "FD, all seeds", lines, "log")],
    )


CLAIM = Claim(
    id="E16",
    title="Few sampling steps",
    sentence="A few dozen DDIM steps give nearly the quality of many more; DPM-Solver++ needs 15 "
    "to 20.",
    source="[LDM, Fig. 7], [DPM-Solver++]",
    criteria=tuple(
        Criterion(name, high=1.1, holds=1.0, fails=1.4, noise=Noise(0.1, 0.02, 20, 3))
        for name in (ENOUGH, SOLVER)
    ),
    preconditions=(BASE_GOOD, Precondition(SEEN, low=1.5)),
    setting="three bases at 32 px, 2,000 samples of captions of the training split, to which FD "
    "is taken too, guidance 2; steps of one sampler compared",
    run=run,
    before="FAIL, by comparing an ODE's sampler with an SDE's on a base so poor that fresh noise "
    "mended it, at w = 1; 5 and 15 steps could not be told apart",
)
