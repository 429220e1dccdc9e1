"""E13: past the sudden convergence, larger batches serve better than more steps."""

from dataclasses import replace

import torch

from tinyldm.claims import e02_sudden as e02
from tinyldm.claims.arms import LEARNING_RATES, best_rate
from tinyldm.claims.claim import Claim, Finding, gain_of, with_interval
from tinyldm.claims.lab import BaseArm, ControlArm, Lab
from tinyldm.config import FitConfig
from tinyldm.metrics import frechet_distance


def loss(lab: Lab, fit: FitConfig) -> float:
    """Validation loss of seed 0."""
    arm = ControlArm(BaseArm(0), 0, fit)
    lab.control(arm)
    return lab.validation_loss(arm)


def run(lab: Lab, seeds: list[int]) -> Finding:
    fit, captions, rows, wins = lab.settings.control_fit, lab.test.captions.full(), [], []
    arms = {
        "small batches": replace(fit, batch_size=max(1, fit.batch_size // 4)),
        "large batches": replace(fit, steps=max(1, fit.steps // 4), warmup=fit.warmup // 4),
    }
    for name, settings in arms.items():
        arms[name] = replace(settings, lr=best_rate(lambda lr, settings=settings: loss(lab, replace(settings, lr=lr))))
    for seed in seeds:
        result = {}
        for name, settings in arms.items():
            sampled = lab.controlled(
                lab.base(BaseArm(seed)), lab.control(ControlArm(BaseArm(seed), seed, settings)), captions
            )
            result[name] = gain_of(lab, sampled), frechet_distance(sampled.features, lab.reference)
            row = {"seed": seed, "arm": name, "batch": settings.batch_size, "steps": settings.steps}
            row["learning rate"] = settings.lr
            rows.append({**row, "GAIN": with_interval(*result[name][0]), "FD": result[name][1]})
        (large, large_fd), (small, small_fd) = result["large batches"], result["small batches"]
        wins.append(large[1][1] >= small[0] and large_fd <= 1.05 * small_fd)
    last = arms["large batches"].steps
    late = (
        torch.stack([e02.moments(*e02.curve(lab, seed, *e02.ARMS[-1]))[2].median() for seed in seeds]).median().item()
    )
    return Finding(
        passed=sum(wins) >= 2 / 3 * len(seeds),
        number=f"large batches not worse in {sum(wins)} of {len(seeds)} seeds",
        rows=rows,
        notes=[
            f"The arm of large batches ends at step {last}; with the default recipe an image makes 90 % of its rise by "
            f"step {late:.0f} (median, E2's last arm): that is {'later' if late > last else 'earlier'}",
            f"Where a best rate is {max(LEARNING_RATES):g}, the largest of the three, a larger one might be better still",
        ],
        control="both arms see the same number of images, each at its own best of three learning rates (validation loss, seed 0)",
    )


CLAIM = Claim(
    id="E13",
    title="Larger batches rather than longer training",
    sentence="After convergence a larger batch improves the result more than more steps do.",
    source="[CN, repository, docs/train.md]",
    criterion="(4 B, N / 4) is not worse than (B, N) in GAIN (its interval reaches the other's mean) and FD (within 5 %), in at "
    "least 2/3 of the seeds",
    setting="B a quarter of the default batch and its steps, against the default batch and a quarter of its steps",
    run=run,
)
