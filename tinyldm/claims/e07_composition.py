"""E7: several ControlNets compose by adding their residuals."""

import torch
from torch import Tensor

from tinyldm.claims.claim import Claim, Finding, Row, listed
from tinyldm.claims.lab import RESOLUTION, BaseArm, ControlArm, Lab, Model
from tinyldm.claims.sweep import shuffled
from tinyldm.data.conditions import canny, silhouette
from tinyldm.data.dataset import to_uint8
from tinyldm.evaluate.metrics import edge_f1, estimate

CONDITIONS = ("canny", "silhouette")
ARMS = {"edges alone": [0], "silhouette alone": [1], "both, added": [0, 1], "none": []}
LEFT = torch.arange(RESOLUTION) < RESOLUTION // 2
F1, IOU = "edge F1, left half", "silhouette IoU, right half"


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (n,) of two masks bool (n, 1, H, W)."""
    return (a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3)).clamp(min=1)


def samples(lab: Lab, seed: int, hints: list[Tensor], used: list[int]) -> Tensor:
    """Images (n, k, H, W), without prompts, of the base with the ControlNets used."""
    base = lab.base(BaseArm(), seed)
    models = [lab.control(ControlArm(condition=CONDITIONS[i]), seed) for i in used]
    keys = (*base.key, *(model.key[-1] for model in models))
    both = Model(base.ldm, tuple(model.nets[0] for model in models), keys)
    return lab.sample(both, [""] * len(lab.panel), [hints[i] for i in used])


def run(lab: Lab) -> Finding:
    other = silhouette(lab.panel.data.images)[shuffled(len(lab.panel), seed=1)]
    hints = [lab.panel.hints & LEFT, other & ~LEFT]
    arms = [(seed, arm) for seed in lab.seeds for arm in ARMS]
    found = {(seed, arm): samples(lab, seed, hints, ARMS[arm]) for seed, arm in arms}
    rows: list[Row] = []
    for (seed, arm), x in found.items():
        edges, mask = canny(to_uint8(x)) & LEFT, silhouette(to_uint8(x)) & ~LEFT
        fidelity = {F1: estimate(edge_f1(edges, hints[0])), IOU: estimate(iou(mask, hints[1]))}
        rows.append({"seed": seed, "arm": arm, **fidelity})
    scores = torch.tensor([[row[F1].mean, row[IOU].mean] for row in rows], dtype=torch.float64)
    edges_alone, mask_alone, both, none = scores.unflatten(0, (-1, len(ARMS))).unbind(1)
    alone = torch.stack([edges_alone[:, 0], mask_alone[:, 1]], dim=1)  # (seeds, 2), as the others
    kept, net = both / alone, (both - none) / (alone - none)
    return Finding(
        passed=bool(((kept >= 0.9) & (alone > 0)).all()),
        number="share of the solo fidelity kept (edges, silhouette): "
        + "; ".join(map(listed, kept.tolist())),
        rows=rows,
        control='without control both are at chance (rows "none"); of what each alone gains over '
        "chance, both together keep " + "; ".join(map(listed, net.tolist())),
        notes=[
            "An empty half is a condition too: it says that nothing is there. On the left, F1 "
            f"without control is {none[:, 0].mean():.2f}, and {mask_alone[:, 0].mean():.2f} "
            "with the silhouette alone, whose left half is empty: the two hints contradict each "
            "other, which two whole hints of one picture would not"
        ],
        pictures={"the two hints": hints[0] | hints[1]}
        | {arm: found[lab.seeds[0], arm] for arm in ARMS},
    )


CLAIM = Claim(
    id="E7",
    title="Composing controls by adding",
    sentence="The outputs of several ControlNets can be added without weighting or further "
    "training.",
    source="[CN, 3.4 and Fig. 6]",
    criterion="each fidelity in its half of the picture >= 90 % of what its ControlNet reaches "
    "alone there, in every seed",
    setting="edges of one image on the left half, the silhouette of another on the right half, no "
    "prompt; each ControlNet was trained on whole hints",
    run=run,
)
