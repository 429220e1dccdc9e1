"""E10: ControlNet can be trained on few images."""

from itertools import pairwise

import torch
from torch import Tensor

from tinyldm.claims.claim import Claim, Finding, Plot, Row, column, line
from tinyldm.claims.lab import BaseArm, ControlArm, Lab, Sweep
from tinyldm.claims.sweep import ratios
from tinyldm.data.dataset import to_float
from tinyldm.evaluate.metrics import spread

SIZES = (100, 1_000, 10_000, 0)  # 0 is all
IMAGES, OVER = "training images", "FD over the base's"


def nearest(x: Tensor, train: Tensor) -> float:
    """Median root mean square distance of x (n, k, H, W) in [-1, 1] to the nearest of the training images."""
    x, y = x.flatten(1), to_float(train).flatten(1)
    return (torch.cdist(x, y).min(1).values / y.shape[1] ** 0.5).median().item()


def diversity(a: Sweep, b: Sweep) -> float:
    """Mean distance of two samples of one hint, from different noise."""
    return (a.images - b.images).square().mean((1, 2, 3)).sqrt().mean().item()


def run(lab: Lab) -> Finding:
    base, rows, pictures = lab.sweep(BaseArm()), [], {"hints": lab.panel.hints}
    for size in SIZES:
        arm, train = ControlArm(images=size), lab.data["train"].images[: size or None]
        sweep = lab.sweep(arm)
        row: Row = {
            IMAGES: size or len(train),
            "GAIN": sweep.gain,
            OVER: spread(ratios(sweep.fds, base.fds)),
            "DIV": diversity(sweep, lab.sweep(arm, seed=1_000_000)),
            "NN": nearest(sweep.x, train),
            "NN of real test images": nearest(to_float(lab.panel.data.images), train),
        }
        rows.append(row)
        pictures[f"{row[IMAGES]} training images"] = sweep.x
    gain, ratio = rows[1]["GAIN"], rows[1][OVER]
    rising = all(more.high >= fewer.low for fewer, more in pairwise(column(rows, "GAIN")))
    gains, fds = line(rows, IMAGES, "GAIN"), line(rows, IMAGES, OVER, "ks--")
    return Finding(
        passed=gain.low > 0 and ratio.high <= 1.2 and rising,
        number=f"GAIN with 1,000 images {gain}, FD at most {ratio.high:.2f} x the base's",
        rows=rows,
        control="NN is the median distance to the nearest of the training images used: samples "
        "far below real test images would be copies",
        plots=[
            Plot(IMAGES, "GAIN, true captions", [gains], "log"),
            Plot(IMAGES, "FD over the base's, all seeds", [fds], "log"),
        ],
        pictures=pictures,
    )


CLAIM = Claim(
    id="E10",
    title="Few training images",
    sentence="The training does not collapse with 1,000 images.",
    source="[CN, 4.4 and Fig. 10]",
    criterion="GAIN(1,000) > 0 (interval) with FD <= 1.2 x the base's in every seed; GAIN does "
    "not fall with more images, within intervals",
    setting="100, 1,000, 10,000 and all images, equal optimizer steps; the base saw all of them",
    run=run,
)
