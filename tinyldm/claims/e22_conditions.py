"""E22: other conditions than edges."""

from dataclasses import replace

from torch import Tensor

from tinyldm.claims.checks import common, last_quarter
from tinyldm.claims.claim import COMMON, Claim, Finding, Row, found
from tinyldm.claims.e07_composition import iou
from tinyldm.claims.hints import HINTS
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import ControlArm
from tinyldm.claims.sweep import Sweep, stacked
from tinyldm.claims.verdict import Criterion, Noise, Precondition
from tinyldm.data.conditions import canny
from tinyldm.data.dataset import to_uint8
from tinyldm.data.pictures import hint_image
from tinyldm.evaluate.metrics import edge_f1, gain

CONDITIONS = ("silhouette", "sparse", "blurred")
LONGER = {"sparse": 2}  # times as many steps: after the usual number its loss still falls


def score(condition: str, x: Tensor, source: Tensor) -> Tensor:
    """How well x (n, k, H, W) agrees in a condition with the images (n, k, H, W) that hints are of, (n,).

    silhouette: intersection over union. sparse: F1 of all edges. blurred: correlation of blurred edges.
    """
    images = to_uint8(x)
    if condition == "sparse":
        return edge_f1(canny(images), canny(source))
    a, b = HINTS[condition](images), HINTS[condition](source)
    if condition == "silhouette":
        return iou(a, b)
    a, b = (y.flatten(1) - y.flatten(1).mean(1, keepdim=True) for y in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)


def arm_of(lab: Lab, condition: str) -> ControlArm:
    """The training on hints of a condition."""
    usual = lab.settings.control_fit
    fit = replace(usual, steps=LONGER.get(condition, 1) * usual.steps)
    return ControlArm(condition=condition, fit=fit)


def named(condition: str) -> str:
    return f"share of the way from chance to ceiling, {condition}"


def room_of(condition: str) -> str:
    return f"ceiling minus chance, {condition}"


def run(lab: Lab) -> Finding:
    """ControlNets trained on each other condition, and how well their images obey it."""
    panel, images = lab.panel, lab.panel.data.images
    measured, rows, pictures = {}, list[Row](), dict[str, Tensor]()
    checks = common(lab, [arm_of(lab, c) for c in CONDITIONS])
    worn = lab.round_trip(images)
    for condition in CONDITIONS:
        arm, hints = arm_of(lab, condition), HINTS[condition](images)
        sweep: Sweep = lab.sweep(arm, hints=[hints])

        def column(shown: Tensor, of: Sweep = sweep, how: str = condition) -> Tensor:
            return stacked([score(how, s.x, shown) for s in of.samples])

        own, chance = column(images), column(images[panel.strangers])
        ceiling = score(condition, worn, images).double().expand_as(own)
        measured[named(condition)] = sweep.measure(
            own, chance, ceiling, statistic=gain, family=len(CONDITIONS)
        )
        checks[room_of(condition)] = (ceiling - chance).mean().item()
        row: Row = {"condition": condition, "score": sweep.measure(own).estimate}
        row |= {"chance": chance.mean().item(), "ceiling": ceiling.mean().item()}
        rows.append(
            {**row, "ACC_t": sweep.acc, "loss's fall in the last quarter": last_quarter(lab, [arm])}
        )
        pictures |= {f"{condition}: hints": hint_image(hints), condition: sweep.x}
    return Finding(measured, checks, found(measured), rows, pictures=pictures)


CLAIM = Claim(
    id="E22",
    title="Other conditions",
    sentence="The same architecture learns other conditions than edges.",
    source="[CN, Fig. 7]",
    criteria=tuple(
        Criterion(
            named(condition),
            low=0.15,
            holds=0.4,
            fails=0.0,
            noise=Noise(0.3, 0.01, 113, 3),
            family=len(CONDITIONS),
        )
        for condition in CONDITIONS
    ),
    preconditions=(
        *COMMON,
        *(Precondition(room_of(condition), low=0.2) for condition in CONDITIONS),
    ),
    setting="one ControlNet a condition and seed: silhouettes; a tenth of the edge pixels, for "
    "twice as many steps (after the usual 1,200 its loss still fell); edges blurred over 9 x 9 "
    "pixels; true captions, guidance 2; each against its own chance (a "
    "stranger's hint) and ceiling (autoencoder)",
    run=run,
    before="",
)
