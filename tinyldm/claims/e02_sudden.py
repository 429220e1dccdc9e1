"""E2: control does not grow, it switches on within a few steps."""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from tinyldm.claims.cascade import cascade
from tinyldm.claims.claim import Claim, Finding, Plot, Row, column, listed, named, where
from tinyldm.claims.lab import Lab
from tinyldm.claims.watch import PANEL, SHOWN, progress_of, seen_during
from tinyldm.evaluate.tables import table

ARMS = (("adamw", 3e-4), ("adamw", 1e-3), ("adamw", 3e-3), ("muon", 8e-3))
JUDGED = ARMS[1]
RATE, T50 = "learning rate", "median t50"
Curve = tuple[Tensor, Tensor]  # steps (s,), and the panel's EF0 (s, images) at them


def curve(lab: Lab, seed: int, optimizer: str, lr: float) -> Curve:
    """What is seen during a training."""
    lines = progress_of(lab, seed, lr, optimizer=optimizer)
    steps, ef0 = ([line[key] for line in lines] for key in ("step", "ef0"))
    return torch.tensor(steps), torch.tensor(ef0)


def levels(ef0: Tensor) -> Tensor:
    """Share of its rise that EF0 (s, images) has made (s, images that rise by 0.1 or more).

    EF0 is smoothed by medians of three against noise.
    """
    smooth = torch.stack([ef0[max(0, i - 1) : i + 2].median(0).values for i in range(len(ef0))])
    made, rise = smooth - smooth[0], smooth[-1] - smooth[0]
    return (made / rise).cummax(0).values[:, rise >= 0.1]


def moments(steps: Tensor, ef0: Tensor) -> Tensor:
    """t10, t50, t90 (3, images that rise): steps at which EF0 (s, images) has made that share of its rise."""
    made = levels(ef0)
    return torch.stack([steps[(made >= q).int().argmax(0)].double() for q in (0.1, 0.5, 0.9)])


def sharpness(steps: Tensor, ef0: Tensor) -> Tensor:
    """(t90 - t10) / t50 of each image's rise: a ramp from step 0 scores 1.6."""
    t10, t50, t90 = moments(steps, ef0)
    return (t90 - t10) / t50


def row_of(seed: int, optimizer: str, lr: float, steps: Tensor, ef0: Tensor) -> Row:
    """A training's row; the median of nothing that rises is nan."""
    sharp = sharpness(steps, ef0)
    return {
        "seed": seed,
        "optimizer": optimizer,
        RATE: lr,
        "images that rise": len(sharp),
        "median sharpness": sharp.median().item(),
        "largest jump, median": levels(ef0).diff(dim=0).amax(0).median().item(),
        "sharpness of the mean": sharpness(steps, ef0.mean(1, keepdim=True)).median().item(),
        T50: moments(steps, ef0)[1].median().item(),
        "EF0 first": ef0[0].mean().item(),
        "EF0 last": ef0[-1].mean().item(),
    }


def slope(rates: Sequence[float], times: Sequence[float]) -> float:
    """a of the least squares line log(time) = b - a log(rate)."""
    x, y = ([math.log(value) for value in values] for values in (rates, times))
    return -statistics.linear_regression(x, y).slope


def when(lab: Lab, rows: Sequence[Row]) -> str:
    """How the step of the rise depends on the learning rate; "" where too few images rise."""
    risen = [row for row in rows if row["images that rise"] >= PANEL / 2]
    adamw = [where(risen, seed=seed, optimizer="adamw") for seed in lab.seeds]
    exponents = [slope(column(a, RATE), column(a, T50)) for a in adamw if len(a) > 1]
    if not exponents:
        return ""
    shown = {}
    for optimizer, lr in ARMS:
        times = column(where(risen, optimizer=optimizer, **{RATE: lr}), T50)
        shown[f"{optimizer} {lr:g}:"] = listed(times, 0) or "does not come"
    return (
        "\n\n**When the rise comes.** Median t50 of the seeds in which half of the panel rises, by "
        f"optimizer and learning rate: {named(shown, '; ')}. A fit t50 ~ rate^-a to AdamW's gives "
        f"a = {listed(exponents)}: 1 would mean that only the product of rate and steps counts, 0 "
        "that the rate does not matter once it is enough. (It falls along a cosine.)"
    )


def plot(optimizer: str, lr: float, curves: Sequence[Curve]) -> Plot:
    """Each seed's mean in black, over 12 images of its panel in grey."""
    grey = [("0.8", "", steps, ef0[:, i]) for steps, ef0 in curves for i in range(12)]
    black = [("k", "", steps, ef0.mean(1)) for steps, ef0 in curves]
    return Plot(f"optimizer step, {optimizer} {lr:g}", "EF0", grey + black)


def run(lab: Lab) -> Finding:
    curves = {arm: [curve(lab, seed, *arm) for seed in lab.seeds] for arm in ARMS}
    rows = [row_of(s, *arm, *curves[arm][i]) for i, s in enumerate(lab.seeds) for arm in ARMS]
    medians = [sharpness(*found).median().item() for found in curves[JUDGED]]
    ramp = sharpness(torch.arange(1, 101), torch.linspace(0.3, 0.6, 100)[:, None]).item()
    looks = len(curves[JUDGED][0][0])
    return Finding(
        passed=sum(m < 0.5 for m in medians) >= 2 / 3 * len(medians),
        number=f"median sharpness {listed(medians)} at learning rate {JUDGED[1]:g}",
        rows=rows,
        control=f"a linear ramp scores {ramp:.2f} (1.6 expected), so the measure tells a ramp "
        "from a jump",
        notes=[
            "In the figure each grey line is one image of the panel (12 a seed), each black one a "
            "seed's mean",
            "`largest jump` is the largest share of its rise that an image makes between two "
            f"looks, of which there are {looks}: a jump would be near 1, a ramp {1 / looks:.2f}",
        ],
        plots=[plot(*arm, found) for arm, found in curves.items()],
        pictures={"hints": lab.panel.hints[:SHOWN], **seen_during(lab, JUDGED[1])},
        lesson="**The network wakes up from its output backwards.** A zero convolution passes no "
        "gradient on until it has left zero, and there are two of them in a row: at step 0 only "
        "the outputs have a gradient, at step 1 the copy and the hint encoder's last convolution, "
        "from step 2 on all. So the hint reaches the picture only after two steps; the norms of "
        f"the gradients of seed 0:\n\n{table(cascade(lab))}{when(lab, rows)}",
    )


CLAIM = Claim(
    id="E2",
    title="Sudden convergence",
    sentence="The model does not learn the condition gradually: it suddenly succeeds in following "
    "it.",
    source="[CN, 3.3 and Fig. 4]",
    paper="at step 6133, usually below 10 K steps, with Stable Diffusion and learning rate 1e-5",
    criterion="median per-image sharpness (t90 - t10) / t50 of EF0 < 0.5 in at least 2/3 of the "
    "seeds, middle learning rate",
    setting="AdamW, t drawn evenly, no warm-up, no averaging; a fixed panel of 48 hints, captions "
    "and z_T; rates x 1/3, 1, 3; beside it the default recipe (Muon, logit-normal t), not judged",
    run=run,
)
