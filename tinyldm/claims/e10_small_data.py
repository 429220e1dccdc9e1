"""E10: ControlNet can be trained on few images."""

from functools import partial

import torch
from torch import Tensor

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, Plot, Row, found, line, where
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm, ControlArm
from tinyldm.claims.sweep import Sweep, fd_ratio
from tinyldm.claims.verdict import Criterion, Noise, Precondition
from tinyldm.data.dataset import to_float
from tinyldm.evaluate.metrics import gain

SIZES = (100, 300, 1_000, 0)  # 0 is all
TUNED = (100, 1_000)  # of the arm that is fine-tuned as a whole
FOLLOWS, GOOD = "GAIN with 1,000 images", "FD with 1,000 images over the base's"
IMAGES, OVER, CHANCE = (
    "training images",
    "FD over the base's",
    "GAIN of the base, which sees no hints",
)


def nearest(x: Tensor, train: Tensor) -> float:
    """Median root mean square distance of x (n, k, H, W) in [-1, 1] to the nearest of the training images."""
    x, y = x.flatten(1), to_float(train).flatten(1)
    return (torch.cdist(x, y).min(1).values / y.shape[1] ** 0.5).median().item()


def row_of(lab: Lab, arm: ControlArm, sweep: Sweep, base: Sweep) -> Row:
    """One number of images, as a row of the table."""
    train = lab.data["train"].images[lab.chosen(arm)]
    n = len(lab.panel)
    return {
        "trained": "ControlNet" if arm.edit == "zero" else "the whole base",
        IMAGES: arm.images or len(train),
        "GAIN": sweep.gain,
        OVER: fd_ratio(sweep, base).estimate,
        "KD": sweep.kd,
        "ACC_t": sweep.acc,
        "distance to the nearest training image": nearest(sweep.x[:n], train),
        "that of real test images": nearest(to_float(lab.wide.data.images[:n]), train),
    }


def run(lab: Lab) -> Finding:
    """GAIN of ControlNets and of whole bases trained on fewer images, and FD over the base's."""
    draw = partial(lab.sweep, panel=lab.wide)
    base = draw(BaseArm())
    arms = [ControlArm(images=size) for size in SIZES]
    arms += [ControlArm(images=size, edit="fine-tuned") for size in TUNED]
    swept = {arm: draw(arm) for arm in arms}
    rows = [row_of(lab, arm, sweep, base) for arm, sweep in swept.items()]
    thousand = swept[ControlArm(images=1_000)]
    columns = thousand.ef0s, thousand.chs, thousand.ces
    measured = {FOLLOWS: thousand.measure(*columns, statistic=gain), GOOD: fd_ratio(thousand, base)}
    checks = {**common(lab, [ControlArm(images=1_000)]), CHANCE: base.gain.mean}
    drawn = {"ControlNet": "ko-", "the whole base": "ks--"}
    plots = [
        Plot(
            IMAGES,
            y,
            [line(where(rows, trained=t), IMAGES, y, style, t) for t, style in drawn.items()],
            "log",
        )
        for y in ("GAIN", OVER)
    ]
    pictures = {
        "hints": lab.wide.hints,
        **{f"{arm.edit}, {arm.images or 'all'} images": s.x for arm, s in swept.items()},
    }
    return Finding(measured, checks, found(measured), rows, plots=plots, pictures=pictures)


CLAIM = Claim(
    id="E10",
    title="Few training images",
    sentence="The training does not collapse with 1,000 images.",
    source="[CN, 4.4 and Fig. 10]",
    criteria=(
        Criterion(FOLLOWS, low=0.1, holds=0.3, fails=0.0, noise=Noise(0.25, 0.015, 113, 3)),
        Criterion(GOOD, high=1.2, holds=1.0, fails=1.5, noise=Noise(0.15, 0.03, 20, 3)),
    ),
    preconditions=(*COMMON, Precondition(CHANCE, low=-0.1, high=0.1)),
    setting="100, 300, 1,000 and all 6,292 images, equal optimizer steps; beside it the base "
    "fine-tuned as a whole, which sees the hint by concatenation; true captions; the base saw all "
    "images",
    run=run,
    before="PASS, but weakly: no arm was there that might have collapsed",
)
