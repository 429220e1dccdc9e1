"""E1: with zero convolutions the pictures stay good all through the training."""

from tinyldm.claims.claim import Claim, Finding, Line, Plot, Row, column, line, listed
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.claims.sweep import ratios
from tinyldm.claims.watch import MOMENTS, MOMENTS_RATE, progress_of

STYLES = {"zero": "k-", "gaussian": "k:"}  # edit -> its lines in the figure
OVER = "FD over the base's"


def curve(lab: Lab, seed: int, edit: str, base: float) -> list[Row]:
    """What was measured during a training whose base has this FD."""
    return [
        {"arm": edit, "seed": seed, "step": seen["step"], "FD": seen["fd"], "ACC_t": seen["acc"]}
        | {OVER: seen["fd"] / base}
        for seen in progress_of(lab, seed, MOMENTS_RATE, edit)
        if "fd" in seen
    ]


def lines(curves: dict[tuple[str, int], list[Row]], y: str) -> list[Line]:
    """What the figure shows of each curve, by edit and seed."""
    return [
        line(rows, "step", y, STYLES[edit], f"{edit}, seed {seed}")
        for (edit, seed), rows in curves.items()
    ]


def run(lab: Lab) -> Finding:
    own, *others = (lab.sweep(BaseArm(), seed=i * 1_000_000).fds for i in range(5))
    noise = [ratio for fds in others for ratio in ratios(fds, own)]
    curves = {
        (edit, seed): curve(lab, seed, edit, base)
        for seed, base in zip(lab.seeds, own, strict=True)
        for edit in STYLES
    }
    zero, gaussian = (
        [max(curves[edit, seed], key=lambda row: row[OVER]) for seed in lab.seeds]
        for edit in STYLES
    )
    return Finding(
        passed=all(ratio <= 1.1 for ratio in column(zero, OVER)),
        number="largest FD over the base's: " + listed(column(zero, OVER)),
        rows=[row for rows in curves.values() for row in rows],
        control="Gaussian instead of zero, whose noise the measure should see: "
        + listed(column(gaussian, OVER)),
        notes=[
            "What no training at all gives: the bases' own FD from other noise is "
            f"{min(noise):.2f} to {max(noise):.2f} of itself; so much the choice of "
            f"{lab.settings.n} samples alone does to it",
            f"FD is largest at step {listed(column(zero, 'step'), 0)} with zero convolutions, at "
            f"step {listed(column(gaussian, 'step'), 0)} with Gaussian ones",
        ],
        plots=[Plot("optimizer step", y, lines(curves, y), "log") for y in ("FD", "ACC_t")],
    )


CLAIM = Claim(
    id="E1",
    title="Good pictures all through the training",
    sentence="Since the zero convolutions add no noise, the model always predicts high-quality "
    "images during training.",
    source="[CN, 3.3 and Fig. 4]",
    criterion="largest FD over the steps <= 1.1 x the base's, in every seed",
    setting=f"as E2, learning rate {MOMENTS_RATE:g}; test captions and hints, at steps "
    f"{', '.join(map(str, MOMENTS))}",
    run=run,
)
