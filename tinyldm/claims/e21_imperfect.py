"""E21: hints that are not as those of the training."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from tinyldm.claims.claim import Claim, Finding, Row
from tinyldm.claims.hints import broken, hand_drawn, shifted, thickened
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import ControlArm
from tinyldm.data.conditions import canny

Damage = Callable[[Tensor], Tensor]  # of edges bool (n, 1, H, W)
DAMAGES: dict[str, list[tuple[float, Damage]]] = {
    "shifted, pixels": [(k, partial(shifted, pixels=k)) for k in (1, 2, 4)],
    "thickened, pixels": [(k, partial(thickened, pixels=k)) for k in (3, 5)],
    "broken, share": [(k, partial(broken, share=k)) for k in (0.25, 0.5, 0.75)],
    "hand-drawn, pixels": [(k, partial(hand_drawn, pixels=k)) for k in (1.0, 2.0, 4.0)],
}
THRESHOLDS = ((50, 100), (200, 400))


def worn(lab: Lab) -> dict[tuple[str, str], Tensor]:
    """(Damage, dose) -> hints of the panel."""
    edges, images = lab.panel.hints, lab.panel.data.images
    found = {("none", ""): edges}
    for name, doses in DAMAGES.items():
        found |= {(name, f"{dose:g}"): damage(edges) for dose, damage in doses}
    for low, high in THRESHOLDS:
        found["Canny thresholds", f"{low}, {high}"] = canny(images, low, high)
    return found


def run(lab: Lab) -> Finding:
    rows, pictures = list[Row](), {}
    for (name, dose), hints in worn(lab).items():
        sweep, none = (
            lab.sweep(ControlArm(), prompts, hints=[hints])
            for prompts in (None, [""] * len(lab.panel))
        )
        given = sweep.panel.edge_f1(sweep.x, hints).mean().item()
        row: Row = {"damage": name, "dose": dose, "EF0 to the true edges": sweep.ef0}
        row |= {"EF0 to the hint": given, "ACC_e": sweep.acc, "ACC_e without prompt": none.acc}
        rows.append(row)
        pictures[f"{name} {dose}: hints"] = hints
        pictures[f"{name} {dose}"] = sweep.x
    whole, half = (row["EF0 to the true edges"].mean for row in (rows[0], rows[7]))
    return Finding(
        {},
        {},
        f"EF0 to the true edges {whole:.2f} with whole hints, {half:.2f} with half of the edges "
        "missing",
        rows,
        pictures=pictures,
    )


CLAIM = Claim(
    id="E21",
    title="Imperfect hints",
    sentence="Edges that are shifted, thick, broken, drawn by hand or found with other thresholds "
    "still steer.",
    source="[CN, Fig. 1 and 4.4]",
    criteria=(),
    preconditions=(),
    setting="the ControlNet of each seed, trained on whole Canny edges; true captions, guidance 2",
    run=run,
    before="",
)
