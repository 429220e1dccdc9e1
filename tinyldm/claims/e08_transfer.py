"""E8: a ControlNet works on other bases of its family without retraining."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, Plot, Row, column, found
from tinyldm.claims.hints import rolled
from tinyldm.claims.lab import ControlFn, Lab, Model, distance
from tinyldm.claims.settings import BaseArm, ControlArm
from tinyldm.claims.sweep import Sweep, net_ratio
from tinyldm.claims.verdict import Criterion, Measured, Noise, Precondition
from tinyldm.data.dataset import to_uint8

RATES = {0.02: 2.3e-4, 0.05: 7e-4, 0.1: 1.6e-3, 0.2: 3.5e-3}  # distance meant -> learning rate
JUDGED = (0.05, 0.1)
STEPS = 300
STYLE, STRANGER = (
    "colour as asked in the style of B, from the second distance on",
    "GAIN plugged into a stranger over own",
)
ROOM, TAKEN = "GAIN of the retrained", "colour as asked in B's style"


def far_of(meant: float) -> str:
    return f"distance of B over the {meant:g} that is meant"


def of(meant: float) -> str:
    return f"GAIN plugged in over retrained, distance about {meant:g}"


def base_b(lab: Lab, meant: float) -> BaseArm:
    """A, fine-tuned on images whose channels are changed in turn: red is green, green blue, blue red."""
    steps = min(STEPS, lab.settings.base_fit.steps)
    fit = replace(lab.settings.control_fit, lr=RATES[meant], batch_size=32, steps=steps)
    return BaseArm(fit, style="rolled", start=BaseArm())


def shuffled_channels(net: ControlFn) -> ControlFn:
    """Plugged into A with the channels of its features in another order: the same function, another basis."""

    def residuals(*inputs: Tensor) -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        return [r[:, torch.randperm(r.shape[1], generator=draw)] for r in net(*inputs)]

    return residuals


def over(a: Sweep, b: Sweep) -> Measured:
    """GAIN of one over GAIN of the other; the ceiling cancels."""
    return a.measure(a.ef0s, a.chs, b.ef0s, b.chs, statistic=net_ratio, family=len(JUDGED))


def taken(lab: Lab, sweep: Sweep) -> float:
    """Share of samples whose colour is the asked one after their channels are changed back."""
    label = list(lab.panel.labels)[1]
    back = rolled(rolled(to_uint8(sweep.images))).float() / 127.5 - 1
    asked = lab.panel.labels[label].repeat(len(sweep.samples))
    return (lab.panel.judge(back)[1][label] == asked).double().mean().item()


class Transferred(NamedTuple):
    """What a base B shows of A's ControlNets."""

    row: Row
    plugged: Sweep
    over: Measured  # GAIN plugged in over retrained


def transferred(lab: Lab, own: Sequence[Model], meant: float) -> Transferred:
    """A's ControlNets `own` on bases about that far from A, against those that are trained on them."""
    b = base_b(lab, meant)
    bases = [lab.base(b, seed) for seed in lab.seeds]
    pairs = list(zip(own, bases, strict=True))
    plugged = lab.sweep([a._replace(ldm=base.ldm, key=(*base.key, *a.key)) for a, base in pairs])
    far = [distance(a.ldm.unet, base.ldm.unet) for a, base in pairs]
    retrained = lab.sweep(ControlArm(b))
    row = {
        "distance of B from A": sum(far) / len(far),
        "GAIN plugged in": plugged.gain,
        "GAIN retrained on B": retrained.gain,
        "ratio": over(plugged, retrained).estimate,
        TAKEN: taken(lab, lab.sweep(bases)),
    }
    return Transferred(row, plugged, over(plugged, retrained))


def run(lab: Lab) -> Finding:
    """GAIN of A's ControlNet on fine-tuned bases, over that of ones retrained there."""
    own = lab.models(ControlArm())
    every = {meant: transferred(lab, own, meant) for meant in RATES}
    measured = {of(meant): every[meant].over for meant in JUDGED}
    rows, drawn_own = [each.row for each in every.values()], lab.sweep(own)
    strange = lab.sweep([a.steered("shuffled channels", shuffled_channels) for a in own])
    checks = common(lab, [ControlArm()]) | {
        **{far_of(d): every[d].row["distance of B from A"] / d for d in JUDGED},
        STYLE: min(row[TAKEN] for row in rows[1:]),
        STRANGER: over(strange, drawn_own).estimate.mean,
        ROOM: min(row["GAIN retrained on B"].mean for row in rows),
    }
    points = ("ko-", "", column(rows, "distance of B from A"), column(rows, "ratio"))
    return Finding(
        measured,
        checks,
        found(measured),
        rows,
        notes=[
            "Distance is |B - A| / |A| over all weights of the U-Net. The stranger is A itself "
            "with the channels of its features in another order, which draws the same pictures: "
            "its residuals must not fit"
        ],
        plots=[Plot("distance of B from A", "GAIN plugged in over retrained", [points])],
        pictures={
            "hints": lab.panel.hints,
            "A": drawn_own.x,
            "plugged into the farthest B": every[max(RATES)].plugged.x,
        },
    )


NOISE = Noise(0.25, 0.03, 113, 3)
CLAIM = Claim(
    id="E8",
    title="Transfer to another base",
    sentence="A trained ControlNet can be used with other models of the same family without "
    "training.",
    source="[CN, Fig. 12]",
    criteria=tuple(
        Criterion(of(meant), low=0.6, holds=0.85, fails=0.3, noise=NOISE, family=len(JUDGED))
        for meant in JUDGED
    ),
    preconditions=(
        *COMMON,
        *(Precondition(far_of(meant), low=0.67, high=1.5) for meant in JUDGED),
        Precondition(STYLE, low=0.5),
        Precondition(STRANGER, high=0.3),
        Precondition(ROOM, low=0.2),
    ),
    setting=f"B is A, fine-tuned by AdamW for {STEPS} steps at four rates on images with their "
    "colours changed in turn, a style that the autoencoder knows; true captions",
    run=run,
    before="FAIL: B drew swapped tones, which the autoencoder had never seen (its ceiling was .35 "
    "where chance is .31), and stood far from A, by one fast fine-tuning",
)
