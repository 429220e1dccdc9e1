"""E13: past the sudden convergence, larger batches serve better than more steps."""

from dataclasses import replace

import torch

from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.e02_sudden import ARMS, RATE, curve, moments
from tinyldm.claims.lab import LEARNING_RATES, ControlArm, Lab


def run(lab: Lab) -> Finding:
    fit, rows, sweeps = lab.settings.control_fit, [], []
    few = replace(fit, batch_size=max(1, fit.batch_size // 4))
    short = replace(fit, steps=max(1, fit.steps // 4), warmup=fit.warmup // 4)
    for name, how in (("small batches", few), ("large batches", short)):
        arm = lab.tuned(ControlArm(fit=how))
        sweeps.append([lab.sweep([model]) for model in lab.models(arm)])
        row = {"arm": name, "batch": how.batch_size, "steps": how.steps, RATE: lab.fit_of(arm).lr}
        for seed, sweep in zip(lab.seeds, sweeps[-1], strict=True):
            rows.append({"seed": seed, **row, "GAIN": sweep.gain, "FD": sweep.fd.mean})
    wins = [
        large.gain.high >= small.gain.mean and large.fd.mean <= 1.05 * small.fd.mean
        for small, large in zip(*sweeps, strict=True)
    ]
    t90 = [moments(*curve(lab, seed, *ARMS[-1]))[2].median() for seed in lab.seeds]
    last, late = short.steps, torch.stack(t90).median().item()
    return Finding(
        passed=sum(wins) >= 2 / 3 * len(wins),
        number=f"large batches not worse in {sum(wins)} of {len(wins)} seeds",
        rows=rows,
        notes=[
            f"The arm of large batches ends at step {last}; with the default recipe an image "
            f"makes 90 % of its rise by step {late:.0f} (median, E2's last arm): that is "
            f"{'later' if late > last else 'earlier'}",
            f"Where a best rate is {max(LEARNING_RATES):g}, the largest of the three, a larger "
            "one might be better still",
        ],
        control="both arms see the same number of images, each at its own best of three learning "
        "rates (validation loss, seed 0)",
    )


CLAIM = Claim(
    id="E13",
    title="Larger batches rather than longer training",
    sentence="After convergence a larger batch improves the result more than more steps do.",
    source="[CN, repository, docs/train.md]",
    criterion="(4 B, N / 4) is not worse than (B, N) in GAIN (its interval reaches the other's "
    "mean) and FD (within 5 %), in at least 2/3 of the seeds",
    setting="B a quarter of the default batch and its steps, against the default batch and a "
    "quarter of its steps",
    run=run,
)
