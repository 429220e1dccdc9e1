"""E13: control comes after steps, not images; after it a larger batch is worth more than steps."""

from dataclasses import replace

import torch
from torch import Tensor

from tinyldm.claims.checks import base_ratio, room, small
from tinyldm.claims.claim import BASE_GOOD, Claim, Finding, Plot, Row, found
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import ControlArm
from tinyldm.claims.shape_of_rise import share_made, time_of
from tinyldm.claims.sweep import Sweep
from tinyldm.claims.verdict import Criterion, Measured, Noise, Precondition, measure, pseudo_values
from tinyldm.claims.watch import Curve, curve, watched

BATCHES = (4, 16, 64)
STEPS, EVERY, RATE = 2000, 40, 1e-3  # of the trainings that are watched, all at one rate
LARGE, SMALL = 64, 4
T50 = {b: f"t50 at batch {b} over t50 at batch 16" for b in (4, 64)}
BETTER = f"EF0, batch {LARGE} for {STEPS} steps less batch {SMALL} for {STEPS * LARGE // SMALL}"
LATE = "t90 at batch 64 over the steps of the large batch"
ROOM = "ceiling of EF0 less chance"


def arm_of(lab: Lab, batch: int) -> ControlArm:
    """A watched training of that batch, with fewer looks than E2's."""
    short = min(STEPS, 2 * lab.settings.control_fit.steps)
    size = min(batch, lab.settings.control_fit.batch_size * 4)
    every = min(EVERY, short // 4)
    return watched(lab, lr=RATE, batch_size=size, steps=short, preview_every=every)


def longer(lab: Lab, batch: int) -> ControlArm:
    """As many images as the large batch sees, in more steps of this batch; all else is the same."""
    arm = arm_of(lab, LARGE)
    fit = lab.fit_of(arm)
    steps = fit.steps * fit.batch_size // batch
    fit = replace(fit, batch_size=batch, steps=steps, preview_every=steps // 4)
    return replace(arm, fit=fit, watched=False)


def t50_columns(curves: list[Curve]) -> Tensor:
    """log t50 as columns (s, blocks) of drawings."""
    columns = []
    for t, ef0, _ in curves:
        y = ef0.mean(2)
        n = torch.arange(y.shape[1])
        of = lambda i, t=t, y=y: torch.tensor(time_of(t, y[:, i], 0.5)).clamp(min=1).log().item()  # noqa: E731
        columns.append(pseudo_values(of, n))
    return torch.stack(columns)


def exponential(mean: Tensor) -> Tensor:
    """The mean of logarithms as a ratio."""
    return mean.exp()


def watched_rows(lab: Lab, curves: dict[int, list[Curve]]) -> list[Row]:
    """When control comes in each watched training, as rows of the table."""
    return [
        {
            "batch": b,
            "seed": s,
            "t50": time_of(t, ef0.mean(2), 0.5),
            "t90": time_of(t, ef0.mean(2), 0.9),
            "EF0 at the end": ef0[-3:].mean().item(),
        }
        for b in BATCHES
        for s, (t, ef0, _) in zip(lab.seeds, curves[b], strict=True)
    ]


def end_row(lab: Lab, arm: ControlArm, swept: Sweep) -> Row:
    """What an arm reaches at its end, as a row of the table."""
    return {
        "batch": lab.fit_of(arm).batch_size,
        "steps": lab.fit_of(arm).steps,
        "EF0": swept.ef0,
        "movement of the copy": lab.moved(arm, lab.seeds[0]),
        "GAIN": swept.gain,
        "ACC_t": swept.acc,
    }


def run(lab: Lab) -> Finding:
    """When control comes at each batch size; then the large batch against as many images in small ones."""
    lab = small(lab)
    curves = {b: [curve(lab, s, arm_of(lab, b)) for s in lab.seeds] for b in BATCHES}
    columns = {b: t50_columns(each) for b, each in curves.items()}
    measured: dict[str, Measured] = {
        name: measure(columns[b] - columns[16], statistic=exponential, family=2)
        for b, name in T50.items()
    }
    ends = arm_of(lab, LARGE), longer(lab, SMALL)
    large, more = (lab.sweep(arm) for arm in ends)
    measured[BETTER] = large.measure(large.ef0s - more.ef0s)
    rows = watched_rows(lab, curves) + [
        end_row(lab, *end) for end in zip(ends, (large, more), strict=True)
    ]
    late = torch.tensor([time_of(t, ef0.mean(2), 0.9) for t, ef0, _ in curves[LARGE]])
    checks = {
        BASE_GOOD.name: base_ratio(lab),
        LATE: late.max().item() / lab.fit_of(ends[0]).steps,  # nan stays
        ROOM: room(large.ces, large.chs),
    }
    drawn = {4: "k:", 16: "k--", 64: "k-"}
    lines = [
        (style, f"batch {b}", t, share_made(t, ef0.mean(2)))
        for b, style in drawn.items()
        for t, ef0, _ in curves[b][:1]
    ]
    return Finding(
        measured,
        checks,
        found(measured),
        rows,
        plots=[Plot("optimizer step", "share of the mean's rise, seed 0", lines)],
    )


CLAIM = Claim(
    id="E13",
    title="Larger batches rather than longer training",
    sentence="The step at which control comes does not depend on the batch; after it a larger "
    "batch improves the result more than as many images in more steps.",
    source="[CN, repository, docs/train.md]",
    criteria=(
        *(
            Criterion(
                name,
                low=0.8,
                high=1.25,
                holds=1.0,
                fails=1.7,
                noise=Noise(0.15, 0.03, 20, 3),
                family=2,
            )
            for name in T50.values()
        ),
        Criterion(
            BETTER, low=0.0, holds=0.04, fails=-0.04, noise=Noise(0.06, 0.005, 113, 3), same=0.01
        ),
    ),
    preconditions=(BASE_GOOD, Precondition(LATE, high=0.75), Precondition(ROOM, low=0.2)),
    setting=f"at 32 px, three bases; one constant rate of AdamW for all, weights not averaged; t50 "
    f"of watched trainings of {STEPS} steps at batches 4, 16, 64; then that of batch {LARGE} against "
    f"batch {SMALL} for {STEPS * LARGE // SMALL} steps; control must have come to the large batch by "
    "three quarters of its steps",
    run=run,
    before="FAIL: the large batch was stopped before control came; and the documentation says "
    "something else than what was tested (equal compute, after convergence)",
)
