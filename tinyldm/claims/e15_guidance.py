"""E15: guidance buys fidelity with diversity."""

import torch
from torch import Tensor

from tinyldm.claims.checks import base_ratio, learnt, small
from tinyldm.claims.claim import BASE_GOOD, Claim, Finding, Plot, Row, found, line
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm
from tinyldm.claims.sweep import Sweep, fd_ratio, ratio, shuffled, stacked
from tinyldm.claims.verdict import Criterion, Noise, Precondition

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
BEST, STRONG = 2.0, 5.0
MODERATE, TOO_MUCH = f"FD at w = {BEST:g} over w = 1", f"FD at w = {STRONG:g} over w = {BEST:g}"
FIDELITY = f"ACC_t at w = {STRONG:g} less w = 1"
DIVERSITY = f"distance between samples of one caption, w = {STRONG:g} over w = 1"
DISTANCE = "distance between samples of one caption"
TEXT = "ACC_t less that of shuffled prompts"


def diversity(sweep: Sweep) -> Tensor:
    """Root mean square distance (s, n) of each sample to the next one of its caption, else to the next."""
    captions, n = sweep.panel.captions, len(sweep.panel)
    later = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    partner = [0] * n
    for i in reversed(range(n)):
        partner[i], later[captions[i]] = later[captions[i]], i
    other = torch.tensor([j if j != i else (i + 1) % n for i, j in enumerate(partner)])
    return stacked([(s.x - s.x[other]).square().mean((1, 2, 3)).sqrt() for s in sweep.samples])


def run(lab: Lab) -> Finding:
    """FD, classes as asked and the distance between samples of one caption, at each guidance."""
    lab = small(lab)
    panel = learnt(lab)
    models, captions = lab.models(BaseArm()), panel.captions
    swept = {w: lab.sweep(models, guidance=w, panel=panel) for w in SCALES}
    one, strong = swept[1.0], swept[STRONG]
    rows: list[Row] = [
        {
            "guidance": w,
            "FD": s.fd,
            "KD": s.kd,
            "ACC_t": s.acc,
            DISTANCE: s.measure(diversity(s)).estimate,
        }
        for w, s in swept.items()
    ]
    measured = {
        MODERATE: fd_ratio(swept[BEST], one),
        FIDELITY: one.measure(strong.hits("class") - one.hits("class")),
        TOO_MUCH: fd_ratio(strong, swept[BEST]),
        DIVERSITY: one.measure(diversity(strong), diversity(one), statistic=ratio),
    }
    labels = panel.labels["class"][shuffled(len(captions))]
    checks = {
        BASE_GOOD.name: base_ratio(lab),
        TEXT: (swept[BEST].hits("class") - swept[BEST].hits("class", labels)).mean().item(),
    }
    plots = [
        Plot("guidance w", label, [line(rows, "guidance", y)])
        for y, label in {"FD": "FD, all seeds", "ACC_t": "ACC_t", DISTANCE: DISTANCE}.items()
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
        Criterion(FIDELITY, low=0.03, holds=0.12, fails=-0.05, noise=Noise(0.15, 0.01, 113, 3)),
        Criterion(TOO_MUCH, low=1.05, holds=1.4, fails=0.9, noise=Noise(0.12, 0.02, 20, 3)),
        Criterion(DIVERSITY, high=0.95, holds=0.8, fails=1.05, noise=Noise(0.2, 0.01, 113, 3)),
    ),
    preconditions=(BASE_GOOD, Precondition(TEXT, low=0.1)),
    setting="three bases at 32 px, 2,000 samples of captions of the training split, to which FD "
    "is taken too",
    run=run,
    before="PASS by means alone, at n = 300",
)
