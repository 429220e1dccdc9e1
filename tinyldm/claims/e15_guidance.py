"""E15: guidance buys fidelity with diversity."""

import torch

from tinyldm.claims.checks import base_ratio, small
from tinyldm.claims.claim import BASE_GOOD, Claim, Finding, Plot, Row, found, line
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm
from tinyldm.claims.sweep import Sweep, fd_ratio, shuffled
from tinyldm.claims.verdict import Criterion, Noise, Precondition, measure
from tinyldm.evaluate.metrics import Estimate, precision_recall, spread

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
BEST, STRONG = 2.0, 5.0
MODERATE = f"FD at w = {BEST:g} over w = 1"
FIDELITY, DIVERSITY = f"ACC_t at w = {STRONG:g} less w = 1", f"recall at w = {STRONG:g} less w = 1"
TEXT = "ACC_t less that of shuffled prompts"


def recall(sweep: Sweep) -> Estimate:
    """Of each seed."""
    reference = sweep.panel.reference
    return spread([precision_recall(s.features, reference)[1] for s in sweep.samples])


def recalls(sweep: Sweep) -> torch.Tensor:
    """As columns (s, blocks)."""
    return sweep.pseudo_fds(lambda x, reference: precision_recall(x, reference)[1])


def run(lab: Lab) -> Finding:
    lab = small(lab)
    models, captions = lab.models(BaseArm()), lab.wide.captions
    swept = {w: lab.sweep(models, guidance=w, wide=True) for w in SCALES}
    one, strong = swept[1.0], swept[STRONG]
    rows: list[Row] = [
        {"guidance": w, "FD": s.fd, "KD": s.kd, "ACC_t": s.acc, "recall": recall(s)}
        for w, s in swept.items()
    ]
    measured = {
        MODERATE: fd_ratio(swept[BEST], one),
        FIDELITY: one.measure(strong.hits("class") - one.hits("class")),
        DIVERSITY: measure(recalls(strong) - recalls(one)),
    }
    labels = lab.wide.labels["class"][shuffled(len(captions))]
    checks = {
        BASE_GOOD.name: base_ratio(lab),
        TEXT: (swept[BEST].hits("class") - swept[BEST].hits("class", labels)).mean().item(),
    }
    plots = [
        Plot("guidance w", label, [line(rows, "guidance", y)])
        for y, label in {
            "FD": "FD, all seeds",
            "ACC_t": "ACC_t",
            "recall": "recall, all seeds",
        }.items()
    ]
    return Finding(measured, checks, found(measured), rows, plots=plots)


CLAIM = Claim(
    id="E15",
    title="Guidance trades diversity for fidelity",
    sentence="Classifier-free guidance improves fidelity, best at a moderate scale, at the price "
    "of diversity.",
    source="[LDM, Tab. 10]",
    criteria=(
        Criterion(MODERATE, high=0.95, holds=0.75, fails=1.15, noise=Noise(0.12, 0.03, 20, 3)),
        Criterion(FIDELITY, low=0.03, holds=0.1, fails=-0.05, noise=Noise(0.15, 0.02, 113, 3)),
        Criterion(DIVERSITY, high=-0.03, holds=-0.15, fails=0.05, noise=Noise(0.1, 0.02, 20, 3)),
    ),
    preconditions=(BASE_GOOD, Precondition(TEXT, low=0.1)),
    setting="three bases at 32 px, 2,000 samples of test captions",
    run=run,
    before="PASS by means alone, at n = 300",
)
