"""E20: ControlNet keeps what the base knows where fine-tuning all of it forgets."""

import torch

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, Row, found
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm, ControlArm
from tinyldm.claims.sweep import Sweep
from tinyldm.claims.verdict import Criterion, Measured, Noise, Precondition, measure

IMAGES = 1_000
HALVES = {"the half that was trained on": 1, "the other half": 2}
KEEPS = "class as asked on the other half, ControlNet less base"
FORGETS = "class as asked on the other half, fine-tuned less base"
BETTER = "class as asked on the other half, ControlNet less fine-tuned"


def run(lab: Lab) -> Finding:
    """What a ControlNet and a fine-tuned U-Net have forgotten after training on half of the classes."""
    control, tuned = (ControlArm(images=IMAGES, half=1, edit=e) for e in ("zero", "fine-tuned"))
    blank = torch.zeros_like(lab.wide.hints)
    base = lab.sweep(BaseArm(), panel=lab.wide)
    swept: dict[tuple[str, str], Sweep] = {("base", "none"): base}
    for name, arm in (("ControlNet", control), ("fine-tuned", tuned)):
        swept[name, "empty"] = lab.sweep(arm, panel=lab.wide, hints=[blank])
        swept[name, "edges"] = lab.sweep(arm, panel=lab.wide)
    parity, label = lab.wide.labels["class"] % 2, list(lab.wide.labels)[1]
    other = parity == 0

    def hits(sweep: Sweep) -> torch.Tensor:
        return sweep.hits("class")[:, other]

    def of(a: tuple[str, str], b: tuple[str, str]) -> Measured:
        return measure(hits(swept[a]) - hits(swept[b]), origins=lab.wide.origins[other])

    control_edges, tuned_edges = ((name, "edges") for name in ("ControlNet", "fine-tuned"))
    measured = {KEEPS: of(control_edges, ("base", "none")), BETTER: of(control_edges, tuned_edges)}
    checks = {**common(lab, [control]), FORGETS: of(tuned_edges, ("base", "none")).estimate.mean}
    rows: list[Row] = [
        {
            "model": name,
            "hints": hints,
            "half": half,
            "class as asked": sweep.hits("class")[:, parity == number % 2].mean().item(),
            f"{label} as asked": sweep.hits(label)[:, parity == number % 2].mean().item(),
            "FD, both halves": sweep.fd,
        }
        for (name, hints), sweep in swept.items()
        for half, number in HALVES.items()
    ]
    return Finding(measured, checks, found(measured), rows)


CLAIM = Claim(
    id="E20",
    title="No forgetting",
    sentence="Locking the base keeps what it learnt from many images, which fine-tuning it on few "
    "forgets.",
    source="[CN, 1 and 3.1]",
    criteria=(
        Criterion(KEEPS, low=-0.05, holds=0.0, fails=-0.15, noise=Noise(0.1, 0.005, 55, 3)),
        Criterion(BETTER, low=0.03, holds=0.15, fails=-0.05, noise=Noise(0.15, 0.02, 55, 3)),
    ),
    preconditions=(*COMMON, Precondition(FORGETS, high=-0.05)),
    setting="trained on 1,000 images of every other kind; then captions and edges of the other "
    "kinds, which neither saw with a hint; against the base fine-tuned as a whole on the same "
    "images, the hint by concatenation. Rows with an empty hint beside: to a network that was "
    "trained on edges it says that nothing is there. With the control off a ControlNet is the "
    "base bit for bit",
    run=run,
    before="",
)
