"""E7: several ControlNets compose by adding their residuals."""

from collections.abc import Callable

import torch
from torch import Tensor

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, Row, found
from tinyldm.claims.hints import silhouette
from tinyldm.claims.lab import ControlFn, Lab, Model
from tinyldm.claims.settings import BaseArm, ControlArm
from tinyldm.claims.sweep import shuffled, stacked
from tinyldm.claims.verdict import Criterion, Noise, Precondition, measure
from tinyldm.data.conditions import canny
from tinyldm.data.dataset import to_uint8
from tinyldm.evaluate.metrics import edge_f1, gain

CONDITIONS = ("canny", "silhouette")
ARMS = {"edges alone": [0], "silhouette alone": [1], "both, added": [0, 1], "none": []}
F1, IOU = "edge F1, left half", "silhouette IoU, right half"
KEPT = {F1: "share of the edges' fidelity kept", IOU: "share of the silhouette's fidelity kept"}
ALONE = {F1: "edge F1 alone less chance", IOU: "silhouette IoU alone less chance"}


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (n,) of two masks bool (n, 1, H, W)."""
    return (a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3)).clamp(min=1)


def left(width: int) -> Tensor:
    """Which columns (W,) are in the left half."""
    return torch.arange(width) < width // 2


def half(side: str) -> Callable[[ControlFn], ControlFn]:
    """A ControlNet that acts on one half of the picture only: elsewhere its residuals are 0."""

    def masked(net: ControlFn) -> ControlFn:
        def residuals(*inputs: Tensor) -> list[Tensor]:
            found = net(*inputs)
            masks = [left(r.shape[-1]).to(r.device) for r in found]
            return [r * (m if side == "left" else ~m) for r, m in zip(found, masks, strict=True)]

        return residuals

    return masked


def samples(lab: Lab, seed: int, hints: list[Tensor], used: list[int]) -> Tensor:
    """Images (n, k, H, W), without prompts, of the base with the ControlNets used, each on its half."""
    base = lab.base(BaseArm(), seed)
    models = [lab.control(ControlArm(condition=CONDITIONS[i]), seed) for i in used]
    halves = [model.steered(s, half(s)) for i, model in zip(used, models, strict=True)
              for s in [("left", "right")[i]]]  # fmt: skip
    keys = (*base.key, *(part for model in halves for part in model.key[1:]))
    both = Model(base.ldm, tuple(model.nets[0] for model in halves), keys)
    return lab.sample(both, [""] * len(lab.panel), [hints[i] for i in used])


def scores(lab: Lab, x: Tensor, hints: list[Tensor]) -> dict[str, Tensor]:
    """How faithful x (n, k, H, W) is to the edges on the left and the silhouette on the right, (n,) each."""
    at = left(lab.settings.resolution)
    edges, mask = canny(to_uint8(x)), silhouette(to_uint8(x))
    return {F1: edge_f1(edges & at, hints[0] & at), IOU: iou(mask & ~at, hints[1] & ~at)}


def run(lab: Lab) -> Finding:
    """The share of its fidelity that each of two ControlNets keeps when both are added."""
    other = silhouette(lab.panel.data.images)[shuffled(len(lab.panel), seed=1)]
    hints = [lab.panel.hints, other]
    x = {arm: [samples(lab, s, hints, ARMS[arm]) for s in lab.seeds] for arm in ARMS}
    seen = {arm: [scores(lab, each, hints) for each in x[arm]] for arm in ARMS}

    def columns(arm: str, name: str) -> Tensor:
        return stacked([score[name] for score in seen[arm]])

    solo = {F1: "edges alone", IOU: "silhouette alone"}
    measured, checks = {}, common(lab, [ControlArm(condition=c) for c in CONDITIONS])
    for name, arm in solo.items():
        both, none, alone = (columns(each, name) for each in ("both, added", "none", arm))
        measured[KEPT[name]] = measure(both, none, alone, origins=lab.panel.origins, statistic=gain)
        checks[ALONE[name]] = (alone - none).mean().item()
    rows: list[Row] = [
        {"arm": arm}
        | {
            name: measure(columns(arm, name), origins=lab.panel.origins).estimate
            for name in (F1, IOU)
        }
        for arm in ARMS
    ]
    pictures = {"edges (left half counts)": hints[0], "silhouette (right half counts)": hints[1]}
    return Finding(
        measured,
        checks,
        found(measured),
        rows,
        pictures=pictures | {arm: x[arm][0] for arm in ARMS},
    )


NOISE = Noise(0.3, 0.01, 113, 3)
CLAIM = Claim(
    id="E7",
    title="Composing controls by adding",
    sentence="The outputs of several ControlNets can be added without weighting or further "
    "training.",
    source="[CN, 3.4 and Fig. 6]",
    criteria=tuple(
        Criterion(name, low=0.9, holds=1.0, fails=0.7, noise=NOISE) for name in KEPT.values()
    ),
    preconditions=(*COMMON, *(Precondition(name, low=0.1) for name in ALONE.values())),
    setting="whole edges of one image and the whole silhouette of another, each ControlNet's "
    "residuals masked to its half of the picture, no prompt; fidelity net of chance, against that "
    "of each alone",
    run=run,
    before="FAIL: each ControlNet was given a hint whose other half was zero, which says that "
    "nothing is there, so that the two contradicted each other",
)
