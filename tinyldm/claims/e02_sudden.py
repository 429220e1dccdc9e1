"""E2: control does not grow, it switches on within a few steps."""

import torch
from torch import Tensor

from tinyldm.claims.arms import progress
from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import Lab

ARMS = (("adamw", 3e-4), ("adamw", 1e-3), ("adamw", 3e-3), ("muon", 8e-3))
JUDGED = ARMS[1]


def curve(lab: Lab, seed: int, optimizer: str, lr: float) -> tuple[Tensor, Tensor]:
    """Steps (s,) and the panel's EF0 (s, panel) during a training."""
    lines = progress(lab, seed, lr, optimizer=optimizer)
    return torch.tensor([line["step"] for line in lines]), torch.tensor([line["ef0"] for line in lines])


def sharpness(steps: Tensor, ef0: Tensor) -> Tensor:
    """(t90 - t10) / t50 of each image's rise (images that rise by 0.1 or more,): a ramp from step 0 scores 1.6."""
    smooth = torch.stack([ef0[max(0, i - 1) : i + 2].median(0).values for i in range(len(ef0))])
    rise = smooth[-1] - smooth[0]
    level = ((smooth - smooth[0]) / rise.clamp(min=1e-6)).cummax(0).values[:, rise >= 0.1]
    t10, t50, t90 = (steps[(level >= q).int().argmax(0)].double() for q in (0.1, 0.5, 0.9))
    return (t90 - t10) / t50


def run(lab: Lab, seeds: list[int]) -> Finding:
    rows, medians, curves = [], [], {}
    for seed in seeds:
        for arm in ARMS:
            steps, ef0 = curve(lab, seed, *arm)
            sharp = sharpness(steps, ef0)
            median = sharp.median().item() if len(sharp) else float("inf")
            mean = sharpness(steps, ef0.mean(1, keepdim=True))
            row = {
                "seed": seed,
                "optimizer": arm[0],
                "learning rate": arm[1],
                "median sharpness": median,
                "images that rise": len(sharp),
            }
            row["sharpness of the mean"] = mean.item() if len(mean) else None
            rows.append({**row, "EF0 first": ef0[0].mean().item(), "EF0 last": ef0[-1].mean().item()})
            curves[seed, arm] = steps, ef0
            if arm == JUDGED:
                medians.append(median)
    ramp = sharpness(torch.arange(1, 101), torch.linspace(0.3, 0.6, 100)[:, None]).item()

    def draw(figure) -> None:
        for ax, arm in zip(figure.subplots(1, 4, sharey=True), ARMS, strict=True):
            for seed in seeds:
                steps, ef0 = curves[seed, arm]
                ax.plot(steps, ef0[:, :12], color="0.8", linewidth=0.6)
                ax.plot(steps, ef0.mean(1), color="black", linewidth=1.5)
            ax.set(title=f"{arm[0]}, learning rate {arm[1]:g}", xlabel="optimizer step", ylabel="EF0")

    good = sum(m < 0.5 for m in medians)
    return Finding(
        passed=good >= 2 / 3 * len(seeds),
        number=f"median sharpness {', '.join(f'{m:.2f}' for m in medians)} at learning rate {JUDGED[1]:g}",
        rows=rows,
        control=f"a linear ramp scores {ramp:.2f} (1.6 expected), so the measure tells a ramp from a jump",
        draw=draw,
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
