"""E4: how faithful to the edges each way of conditioning is, and what it costs in the quality of pictures."""

from functools import partial

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, found
from tinyldm.claims.e03_ablation import arm_of
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm
from tinyldm.claims.sweep import fd_ratio
from tinyldm.claims.verdict import Criterion, Noise, Precondition

CLOSER, FOLLOWED = "EF0, zero - lite", "EF0 less the base's, zero"
PRICE, LITE_PRICE = "FD, zero over base", "FD, lite over zero"


def run(lab: Lab) -> Finding:
    """EF0 and FD of ControlNets "zero" and "lite", and of the base, with true captions."""
    draw = partial(lab.sweep, panel=lab.wide)
    base = draw(BaseArm())
    arm = arm_of(lab, "zero")
    zero, lite = draw(arm), draw(arm_of(lab, "lite"))
    measured = {
        CLOSER: zero.measure(zero.ef0s - lite.ef0s),
        PRICE: fd_ratio(zero, base),
        LITE_PRICE: fd_ratio(lite, zero),
    }
    checks = {**common(lab, [arm]), FOLLOWED: (zero.ef0s - base.ef0s).mean().item()}
    rows = [
        {"arm": name, "EF0": s.ef0, "GAIN": s.gain, "FD": s.fd, "KD": s.kd, "ACC_t": s.acc}
        for name, s in {"base": base, "zero": zero, "lite": lite}.items()
    ]
    return Finding(measured, checks, found(measured), rows)


CLAIM = Claim(
    id="E4",
    title="Fidelity and its price",
    sentence="ControlNet follows its condition more closely than the light one, and its pictures "
    "are worse than the base's, but better than the light one's.",
    source="[CN, Tab. 2 and 3]",
    paper="segmentation IoU .35 against .32 (lite); FID 6.09 base, 15.27 ControlNet, 17.92 lite",
    criteria=(
        Criterion(
            CLOSER, low=0.01, holds=0.04, fails=-0.01, noise=Noise(0.05, 0.003, 113, 3), same=0.01
        ),
        Criterion(PRICE, low=1.0, holds=1.3, fails=0.8, noise=Noise(0.15, 0.02, 20, 3)),
        Criterion(LITE_PRICE, low=1.0, holds=1.2, fails=0.85, noise=Noise(0.15, 0.02, 20, 3)),
    ),
    preconditions=(*COMMON, Precondition(FOLLOWED, low=0.1)),
    setting="arms of E3, true captions, guidance 2 in both passes, 2,000 samples",
    run=run,
    before="FAIL by bare orderings: a difference of .001 either way decided",
)
