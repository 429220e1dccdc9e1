"""What the runs show that the papers do not say: a page of the report, every number in it computed."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import nn

from tinyldm.claims.arms import PANEL
from tinyldm.claims.claim import Finding
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.conditions import canny
from tinyldm.controlnet import ControlNet
from tinyldm.runs import encode_all, hints_of
from tinyldm.stages import ControlStage
from tinyldm.tables import table

CASCADE_STEPS = (0, 1, 2, 5, 20)
Findings = dict[str, Finding]


def groups(controlnet: ControlNet) -> dict[str, list[nn.Parameter]]:
    """The parts of a ControlNet, from its output back to its hint."""
    hint = list(controlnet.hint_encoder)
    return {
        "output zero convolutions": list(controlnet.zero_convs.parameters()),
        "the copy": [*controlnet.stem.parameters(), *controlnet.encoder.parameters()],
        "the hint encoder's last convolution": list(hint[-1].parameters()),
        "the rest of the hint encoder": [p for layer in hint[:-1] for p in layer.parameters()],
    }


@lru_cache(maxsize=1)
def cascade(lab: Lab) -> list[dict]:
    """Norm of the gradient in each part of a fresh ControlNet, at the first optimizer steps (AdamW, 1e-3)."""
    ldm, captions = lab.base(BaseArm(0)), lab.data("train").captions.full()[:64]
    controlnet = lab.new_control(ldm, 0).to(lab.device, memory_format=torch.channels_last)
    stage = ControlStage(ldm, controlnet, captions, 0.5).to(lab.device)
    images = lab.data("train").images[:64]
    batch = encode_all(lab.vae, images, lab.device).to(lab.device), hints_of(canny, images).to(lab.device), captions
    optimizer, rows = torch.optim.AdamW(controlnet.parameters(), lr=1e-3), []
    for step in range(CASCADE_STEPS[-1] + 1):
        optimizer.zero_grad()
        stage(*batch).backward()
        if step in CASCADE_STEPS:
            norms = {
                name: torch.stack([p.grad.norm() for p in part]).norm().item()
                for name, part in groups(controlnet).items()
            }
            rows.append({"optimizer step": step, **norms})
        optimizer.step()
    return rows


def wake_up(lab: Lab, found: Findings) -> str:
    """The cascade, in words and numbers."""
    return (
        "**The network wakes up from its output backwards.** A zero convolution passes no gradient on until it has left zero, "
        "and there are two of them in a row: at step 0 only the outputs have a gradient, at step 1 the copy and the hint "
        "encoder's last convolution, from step 2 on all. So the hint reaches the picture only after two steps; the "
        f"norms of the gradients of seed 0:\n\n{table(cascade(lab))}"
    )


def slope(rates: Sequence[float], times: Sequence[float]) -> float:
    """a of the least squares line log(time) = b - a log(rate)."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (rates, times))
    return -(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def when(lab: Lab, found: Findings) -> str | None:
    """How the step of the rise depends on the learning rate."""
    rows = [row for row in found["E2"].rows if row["images that rise"] >= PANEL / 2]
    exponents = []
    for seed in sorted({row["seed"] for row in rows}):
        pairs = [(r["learning rate"], r["median t50"]) for r in rows if r["seed"] == seed and r["optimizer"] == "adamw"]
        if len(pairs) > 1:
            exponents.append(slope(*zip(*pairs, strict=True)))
    if not exponents:
        return None
    arms: dict[str, list[str]] = {f"{row['optimizer']} {row['learning rate']:g}": [] for row in found["E2"].rows}
    for row in rows:
        arms[f"{row['optimizer']} {row['learning rate']:g}"].append(f"{row['median t50']:.0f}")
    times = "; ".join(f"{name}: {', '.join(values) or 'does not come'}" for name, values in arms.items())
    return (
        "**When the rise comes.** Median t50 of the seeds in which half of the panel rises, by optimizer and learning rate: "
        f"{times}. A fit t50 ~ rate^-a to AdamW's gives a = {', '.join(f'{a:.2f}' for a in exponents)}: 1 would mean that "
        "only the product of rate and steps counts, 0 that the rate does not matter once it is enough. (It falls along a cosine.)"
    )


def copied(lab: Lab, found: Findings) -> str:
    """What the copied weights are worth, where the paper only removes the copy's depth."""
    facts = found["E3"].facts
    arms = ("zero", "random copy", "lite", "concat")
    gains = {name: [facts[f"GAIN {name}, {p}"] for p in ("none", "perfect")] for name in arms}
    shown = "; ".join(f"{name} {none:.2f} and {perfect:.2f}" for name, (none, perfect) in gains.items())
    return (
        "**What the copy is worth.** [CN]'s ablation makes the copy shallow. Here is also one of full depth that starts from "
        f"random weights, and a U-Net that sees edges from its first step. GAIN without prompts and with true captions: {shown}."
    )


def early(lab: Lab, found: Findings) -> str:
    """Which part of sampling the control is needed in."""
    facts = found["E12"].facts
    shown = ", ".join(f"t / T from {span}: {value:.2f}" for span, value in facts.items())
    return (
        f"**When control matters.** GAIN with the ControlNet switched on during a part of the sampling only: {shown}."
    )


def guidance_weights(lab: Lab, found: Findings) -> str:
    """The two resolution weightings of [CN] are not one."""
    shown = "; ".join(f"{rule} {fd:.2f}" for rule, fd in found["E6"].facts.items())
    return (
        "**The printed and the released guidance weights pull apart.** 64 / h_i amplifies coarse residuals, the "
        f"code's 0.825 ^ (12 - i) damps fine ones. FD without prompts, guided, with control in: {shown}."
    )


def noise(lab: Lab, found: Findings) -> str:
    """Whether few steps or missing noise cost quality."""
    facts = found["E16"].facts
    shown = "; ".join(
        f"{arm} {facts[arm]:.2f}"
        for arm in facts
        if arm.split(",")[0] in ("ddim 50", "ddpm 50", "ddpm 200", "ddpm 1000")
    )
    return (
        "**Fresh noise can matter more than the number of steps.** FD without guidance, from a base this little trained, by "
        f"sampler, steps and eta: {shown}. A likely reason: noise that is added anew is removed together with earlier errors."
    )


def failures(lab: Lab, found: Findings) -> str:
    """Claims that do not hold here."""
    failed = [f"- {id}: {finding.number}" for id, finding in found.items() if finding.passed is False]
    shown = "\n".join(failed) if failed else "- none"
    return (
        f"**Claims whose criterion is not met at this scale**, with what each section has to say about why:\n\n{shown}"
    )


LESSONS: tuple[tuple[str | None, Callable[[Lab, Findings], str | None]], ...] = (
    ("E2", wake_up),
    ("E2", when),
    ("E3", copied),
    ("E12", early),
    ("E6", guidance_weights),
    ("E16", noise),
    (None, failures),
)


def lessons(lab: Lab, found: Findings) -> str:
    """The page, of the lessons whose claims were run."""
    parts = [lesson(lab, found) for id, lesson in LESSONS if id is None or id in found]
    return "\n\n".join(["## What we learned that the papers do not say", *filter(None, parts)])
