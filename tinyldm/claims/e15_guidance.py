"""E15: guidance buys fidelity with diversity."""

from tinyldm.claims.claim import Claim, Finding, Plot, column, line
from tinyldm.claims.lab import BaseArm, Lab, Sweep
from tinyldm.claims.sweep import shuffled
from tinyldm.evaluate.metrics import Estimate, precision_recall, spread

SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
LABELS = {"FD": "FD, all seeds", "ACC_t": "ACC_t", "recall": "recall, all seeds"}


def recall(lab: Lab, sweep: Sweep) -> Estimate:
    reference = lab.panel.reference
    return spread([precision_recall(s.features, reference)[1] for s in sweep.samples])


def run(lab: Lab) -> Finding:
    models, captions = lab.models(BaseArm()), lab.panel.captions
    sweeps = {w: lab.sweep(models, guidance=w) for w in SCALES}
    rows = [
        {"guidance": w, "FD": s.fd, "ACC_t": s.acc, "recall": recall(lab, s)}
        for w, s in sweeps.items()
    ]
    best = min(SCALES, key=lambda w: sweeps[w].fd.mean)
    (acc, *_, last_acc), (rec, *_, last_rec) = (
        [found.mean for found in column(rows, measure)] for measure in ("ACC_t", "recall")
    )
    chance = lab.sweep(models, [captions[i] for i in shuffled(len(captions))]).acc.mean
    return Finding(
        passed=best > 1 and last_acc > acc and last_rec < rec,
        number=f"smallest FD at w = {best:g}; ACC_t {acc:.2f} to {last_acc:.2f}, recall "
        f"{rec:.2f} to {last_rec:.2f} from w = 1 to {SCALES[-1]:g}",
        rows=rows,
        control=f"shuffled prompts score {chance:.2f} (chance about 0.1)",
        plots=[
            Plot("guidance w", label, [line(rows, "guidance", y)]) for y, label in LABELS.items()
        ],
    )


CLAIM = Claim(
    id="E15",
    title="Guidance trades diversity for fidelity",
    sentence="Classifier-free guidance improves fidelity, best at a moderate scale, at the price "
    "of diversity.",
    source="[LDM, Tab. 10]",
    criterion="smallest FD at w > 1; ACC_t higher and recall lower at the largest w than at w = 1",
    setting="the base alone, test captions",
    run=run,
)
