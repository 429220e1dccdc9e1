"""E7: several ControlNets compose by adding their residuals."""

import torch
from torch import Tensor

from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import HINTS, BaseArm, ControlArm, Lab
from tinyldm.conditions import canny
from tinyldm.dataset import to_float
from tinyldm.ldm import bind_hint
from tinyldm.metrics import edge_f1, interval
from tinyldm.pictures import hint_image


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (n,) of two masks (n, 1, H, W)."""
    return (a * b).sum((1, 2, 3)) / (a + b).clamp(max=1).sum((1, 2, 3)).clamp(min=1)


def solo_of(scores: dict[str, tuple[float, float]]) -> tuple[float, float]:
    return scores["edges alone"][0], scores["silhouette alone"][1]


def run(lab: Lab, seeds: list[int]) -> Finding:
    half = lab.hints.shape[-1] // 2
    left, right = torch.zeros_like(lab.hints), torch.zeros_like(lab.hints)
    left[..., :half], right[..., half:] = 1, 1
    order = torch.randperm(len(lab.test), generator=torch.Generator().manual_seed(1))
    edges, silhouettes = lab.hints * left, HINTS["silhouette"](to_float(lab.test.images))[order] * right
    prompts, rows, kept, net = [""] * len(lab.test), [], [], []
    pictures = [("the two hints", list(hint_image((edges + silhouettes)[:10])))]
    for seed in seeds:
        ldm = lab.base(BaseArm(seed))
        nets = [lab.control(ControlArm(BaseArm(seed), seed, condition=c)) for c in ("canny", "silhouette")]
        on = [h.to(lab.device) for h in (edges, silhouettes)]
        arms = {"edges alone": (0,), "silhouette alone": (1,), "both, added": (0, 1), "none": ()}
        scores = {}
        for name, used in arms.items():
            bound = lambda p, used=used, nets=nets, on=on: [bind_hint(nets[i], on[i][p]) for i in used]  # noqa: E731
            x = lab.sample(ldm, prompts, bound, ("halves", *(nets[i].kept_as for i in used)))
            f1, overlap = edge_f1(canny(x) * left, edges), iou(HINTS["silhouette"](x) * right, silhouettes)
            scores[name] = f1.mean().item(), overlap.mean().item()
            row = {"seed": seed, "arm": name, "edge F1, left half": scores[name][0]}
            row["silhouette IoU, right half"] = scores[name][1]
            rows.append({**row, "interval of F1": "[{:.2f}, {:.2f}]".format(*interval(f1))})
            if seed == seeds[0]:
                pictures.append((name, list(x[:10])))
        triples = list(zip(scores["both, added"], solo_of(scores), scores["none"], strict=True))
        kept.append([both / solo for both, solo, _ in triples])
        net.append([(both - chance) / (solo - chance) for both, solo, chance in triples])

    def left_f1(name: str) -> float:
        return sum(row["edge F1, left half"] for row in rows if row["arm"] == name) / len(seeds)

    return Finding(
        passed=all(k >= 0.9 for pair in kept for k in pair),
        number="share of the solo fidelity kept (edges, silhouette): "
        + "; ".join(f"{a:.2f}, {b:.2f}" for a, b in kept),
        rows=rows,
        control='without control both are at chance (rows "none"); of what each alone gains over chance, both together keep '
        + "; ".join(f"{a:.2f}, {b:.2f}" for a, b in net),
        notes=[
            "An empty half is a condition too: it says that nothing is there. On the left, F1 without control is "
            f"{left_f1('none'):.2f}, and {left_f1('silhouette alone'):.2f} with the silhouette alone, whose left half is empty: "
            "the two hints contradict each other, which two whole hints of one picture would not"
        ],
        pictures=pictures,
    )


CLAIM = Claim(
    id="E7",
    title="Composing controls by adding",
    sentence="The outputs of several ControlNets can be added without weighting or further training.",
    source="[CN, 3.4 and Fig. 6]",
    criterion="each fidelity in its half of the picture >= 90 % of what its ControlNet reaches alone there, in every seed",
    setting="edges of one image on the left half, the silhouette of another on the right half, no prompt; each ControlNet was "
    "trained on whole hints",
    run=run,
)
