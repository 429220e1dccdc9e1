"""E21: hints that are not as those of the training."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, Row, found
from tinyldm.claims.hints import broken, hand_drawn, shifted, thickened
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import ControlArm
from tinyldm.claims.sweep import net_ratio, stacked
from tinyldm.claims.verdict import Criterion, Noise, Precondition
from tinyldm.data.conditions import canny

Damage = Callable[[Tensor], Tensor]  # of edges bool (n, 1, H, W)
DAMAGES: dict[str, list[tuple[float, Damage]]] = {
    "shifted, pixels": [(k, partial(shifted, pixels=k)) for k in (1, 2, 4)],
    "thickened, pixels": [(k, partial(thickened, pixels=k)) for k in (3, 5)],
    "broken, share": [(k, partial(broken, share=k)) for k in (0.25, 0.5, 0.75)],
    "hand-drawn, pixels": [(k, partial(hand_drawn, pixels=k)) for k in (1.0, 2.0, 4.0)],
}
JUDGED = {
    ("broken, share", "0.25"): "edges followed where a quarter is missing, over whole ones",
    ("hand-drawn, pixels", "1"): "edges followed where a hand shakes by a pixel, over whole ones",
}
ROOM = "EF0 less chance, whole edges"
THRESHOLDS = ((50, 100), (200, 400))


def worn(lab: Lab) -> dict[tuple[str, str], Tensor]:
    """(Damage, dose) -> hints of the panel."""
    edges, images = lab.panel.hints, lab.panel.data.images
    hints = {("none", ""): edges}
    for name, doses in DAMAGES.items():
        hints |= {(name, f"{dose:g}"): damage(edges) for dose, damage in doses}
    for low, high in THRESHOLDS:
        hints["Canny thresholds", f"{low}, {high}"] = canny(images, low, high)
    return hints


def run(lab: Lab) -> Finding:
    """EF0 under each kind and dose of damage to the hints."""
    rows, pictures, swept = list[Row](), {}, {}
    for (name, dose), hints in worn(lab).items():
        sweep, none = (
            lab.sweep(ControlArm(), prompts, hints=[hints])
            for prompts in (None, [""] * len(lab.panel))
        )
        own = stacked([lab.panel.edge_f1(s.x, hints) for s in sweep.samples])
        strange = hints[lab.panel.strangers]
        swept[name, dose] = own, stacked([lab.panel.edge_f1(s.x, strange) for s in sweep.samples])
        row: Row = {"damage": name, "dose": dose, "EF0 to the true edges": sweep.ef0}
        row |= {"EF0 to the hint": sweep.measure(own).estimate, "ACC_e": sweep.acc}
        rows.append(row | {"FD of 226": sweep.fd, "ACC_e without prompt": none.acc})
        pictures[f"{name} {dose}: hints"] = hints
        pictures[f"{name} {dose}"] = sweep.x
    whole = swept["none", ""]
    measured = {
        name: sweep.measure(*swept[which], *whole, statistic=net_ratio, family=len(JUDGED))
        for which, name in JUDGED.items()
    }
    checks = common(lab, [ControlArm()]) | {ROOM: (whole[0] - whole[1]).mean().item()}
    return Finding(measured, checks, found(measured), rows, pictures=pictures)


CLAIM = Claim(
    id="E21",
    title="Imperfect hints",
    sentence="Edges that are shifted, thick, broken, drawn by hand or found with other thresholds "
    "still steer.",
    source="[CN, Fig. 1 and 4.4]",
    criteria=tuple(
        Criterion(
            name, low=0.5, holds=0.8, fails=0.2, noise=Noise(0.3, 0.02, 113, 3), family=len(JUDGED)
        )
        for name in JUDGED.values()
    ),
    preconditions=(*COMMON, Precondition(ROOM, low=0.1)),
    setting="the ControlNet of each seed, trained on whole Canny edges; true captions, guidance "
    "2. The two damages that decide are of the kinds that drawings have; the others are reported "
    "dose by dose",
    run=run,
    before="",
)
