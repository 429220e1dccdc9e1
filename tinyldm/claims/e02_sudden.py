"""E2: control does not grow, it switches on within a few steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyldm.claims.arms import SHOWN, progress, seen_during
from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import Lab
from tinyldm.pictures import hint_image

ARMS = (("adamw", 3e-4), ("adamw", 1e-3), ("adamw", 3e-3), ("muon", 8e-3))
JUDGED = ARMS[1]


def curve(lab: Lab, seed: int, optimizer: str, lr: float) -> tuple[Tensor, Tensor]:
    """Steps (s,) and the panel's EF0 (s, panel) during a training."""
    lines = progress(lab, seed, lr, optimizer=optimizer)
    return torch.tensor([line["step"] for line in lines]), torch.tensor([line["ef0"] for line in lines])


def levels(ef0: Tensor) -> Tensor:
    """Share of its rise that EF0 (s, images) has made (s, images that rise by 0.1 or more); medians of three against noise."""
    smooth = torch.stack([ef0[max(0, i - 1) : i + 2].median(0).values for i in range(len(ef0))])
    rise = smooth[-1] - smooth[0]
    return ((smooth - smooth[0]) / rise.clamp(min=1e-6)).cummax(0).values[:, rise >= 0.1]


def moments(steps: Tensor, ef0: Tensor) -> Tensor:
    """t10, t50, t90 (3, images that rise): steps at which EF0 (s, images) has made that share of its rise."""
    return torch.stack([steps[(levels(ef0) >= q).int().argmax(0)].double() for q in (0.1, 0.5, 0.9)])


def sharpness(steps: Tensor, ef0: Tensor) -> Tensor:
    """(t90 - t10) / t50 of each image's rise: a ramp from step 0 scores 1.6."""
    t10, t50, t90 = moments(steps, ef0)
    return (t90 - t10) / t50


def row_of(seed: int, arm: tuple[str, float], steps: Tensor, ef0: Tensor) -> dict:
    sharp, (_, t50, _) = sharpness(steps, ef0), moments(steps, ef0)
    mean = sharpness(steps, ef0.mean(1, keepdim=True))
    row: dict = {"seed": seed, "optimizer": arm[0], "learning rate": arm[1], "images that rise": len(sharp)}
    row["median sharpness"] = sharp.median().item() if len(sharp) else float("inf")
    jump = levels(ef0).diff(dim=0).max(0).values if len(sharp) else None
    row["largest jump, median"] = None if jump is None else jump.median().item()
    row["sharpness of the mean"] = mean.item() if len(mean) else None
    row["median t50"] = t50.median().item() if len(t50) else None
    return {**row, "EF0 first": ef0[0].mean().item(), "EF0 last": ef0[-1].mean().item()}


def pictures_of(lab: Lab) -> list[tuple[str, Sequence[Tensor]]]:
    """The judged training of seed 0: the same hints, captions and z_T as it goes on."""
    shown = seen_during(lab, JUDGED[1])
    return [("hints", list(hint_image(lab.hints[:SHOWN]))), *((f"step {step}", list(x)) for step, x in shown.items())]


def run(lab: Lab, seeds: list[int]) -> Finding:
    curves = {(seed, arm): curve(lab, seed, *arm) for seed in seeds for arm in ARMS}
    rows = [row_of(seed, arm, *both) for (seed, arm), both in curves.items()]
    judged = [row for row in rows if row["learning rate"] == JUDGED[1]]
    medians = [row["median sharpness"] for row in judged]
    ramp = sharpness(torch.arange(1, 101), torch.linspace(0.3, 0.6, 100)[:, None]).item()

    def draw(figure) -> None:
        for ax, arm in zip(figure.subplots(1, len(ARMS), sharey=True), ARMS, strict=True):
            for seed in seeds:
                steps, ef0 = curves[seed, arm]
                ax.plot(steps, ef0[:, :12], color="0.8", linewidth=0.6)
                ax.plot(steps, ef0.mean(1), color="black", linewidth=1.5)
            ax.set(title=f"{arm[0]}, learning rate {arm[1]:g}", xlabel="optimizer step", ylabel="EF0")

    return Finding(
        passed=sum(m < 0.5 for m in medians) >= 2 / 3 * len(seeds),
        number=f"median sharpness {', '.join(f'{m:.2f}' for m in medians)} at learning rate {JUDGED[1]:g}",
        rows=rows,
        control=f"a linear ramp scores {ramp:.2f} (1.6 expected), so the measure tells a ramp from a jump",
        notes=[
            "In the figure each grey line is one image of the panel (12 a seed), each black one a seed's mean",
            f"`largest jump` is the largest share of its rise that an image makes between two looks, of which there are "
            f"{len(curves[seeds[0], JUDGED][0])}: a jump would be near 1, a ramp {1 / len(curves[seeds[0], JUDGED][0]):.2f}",
        ],
        draw=draw,
        pictures=pictures_of(lab),
    )


CLAIM = Claim(
    id="E2",
    title="Sudden convergence",
    sentence="The model does not learn the condition gradually: it suddenly succeeds in following it.",
    source="[CN, 3.3 and Fig. 4]",
    paper="at step 6133, usually below 10 K steps, with Stable Diffusion and learning rate 1e-5",
    criterion="median per-image sharpness (t90 - t10) / t50 of EF0 < 0.5 in at least 2/3 of the seeds, middle learning rate",
    setting="AdamW, t drawn evenly, no warm-up, no averaging; a fixed panel of 48 hints, captions and z_T; rates x 1/3, 1, 3; "
    "beside it the default recipe (Muon, logit-normal t), not judged",
    run=run,
)
