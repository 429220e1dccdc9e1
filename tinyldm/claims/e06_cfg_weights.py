"""E6: without a prompt, guidance needs the control in one pass only, weighted by resolution."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinyldm.claims.claim import Claim, Finding, difference, gain_of, with_interval
from tinyldm.claims.lab import BATCH, BaseArm, ControlArm, Lab, Sampled
from tinyldm.controlnet import resolution_weights
from tinyldm.diffusion import dpm_solver_pp, guided
from tinyldm.ldm import LatentDiffusion, bind_context, bind_hint, last
from tinyldm.metrics import frechet_distance
from tinyldm.pictures import hint_image

GUIDANCE = 3.0
Residuals = Sequence[Tensor]


def released_weights(residuals: Residuals) -> list[Tensor]:
    """0.825 ^ (n - i), as the released code's "guess mode" has it: 1 for the middle, less the finer."""
    return [0.825 ** (len(residuals) - 1 - i) * residual for i, residual in enumerate(residuals)]


def at_most_one(residuals: Residuals) -> list[Tensor]:
    """The paper's weights over their largest, h_n / h_i: it says that they reduce the guidance, and as written they amplify."""
    return [residuals[-1].shape[-2] / residual.shape[-2] * residual for residual in residuals]


WEIGHTS: dict[str, Callable[[Residuals], list[Tensor]]] = {
    "both passes": list,
    "conditional only": list,
    "conditional only, paper's weights": resolution_weights,
    "conditional only, code's weights": released_weights,
    "conditional only, paper's weights over their largest": at_most_one,
}


@torch.no_grad()
def sampled(lab: Lab, ldm: LatentDiffusion, controlnet, rule: str) -> Sampled:
    """Samples of the empty prompt, guided from the pass without control (or with, in "both passes") to the one with."""
    hints, images = lab.hints.to(lab.device), []
    for i in range(0, len(hints), BATCH):
        part = hints[i : i + BATCH]
        context, control = ldm.context([""] * len(part)), bind_hint(controlnet, part)
        weighted = lambda z, t, c, control=control: WEIGHTS[rule](control(z, t, c))  # noqa: E731
        eps_fn = bind_context(ldm.unet, context, [weighted])
        null_fn = eps_fn if rule == "both passes" else bind_context(ldm.unet, context)
        z_T = ldm.noise(len(part), seed=i)
        z_0 = last(dpm_solver_pp(ldm.schedule, guided(eps_fn, null_fn, GUIDANCE), z_T, lab.settings.steps))
        images.append(ldm.vae.decode(z_0).clamp(-1, 1).cpu())
    return lab.measured(torch.cat(images), lab.hints)


def run(lab: Lab, seeds: list[int]) -> Finding:
    rows, found, fd = [], {}, {}
    for rule in WEIGHTS:
        arms = [(lab.base(BaseArm(s)), lab.control(ControlArm(BaseArm(s), s))) for s in seeds]
        found[rule] = [sampled(lab, ldm, controlnet, rule) for ldm, controlnet in arms]
        fd[rule] = sum(frechet_distance(s.features, lab.reference) for s in found[rule]) / len(seeds)
        saturated = torch.cat([(s.x.abs() > 0.99).float().mean((1, 2, 3)) for s in found[rule]]).mean().item()
        row = {"control": rule, "GAIN": with_interval(*gain_of(lab, *found[rule])), "FD": fd[rule]}
        rows.append({**row, "pixels at -1 or 1": saturated})
    paper, others = "conditional only, paper's weights", ("both passes", "conditional only")
    equal = [difference(*([s.ef0 for s in found[r]] for r in (paper, o)))[1][1] >= 0 for o in others]
    real = ((lab.test.images < 2) | (lab.test.images > 253)).float().mean().item()
    return Finding(
        passed=all(fd[paper] <= fd[o] for o in others) and all(equal),
        number="FD with control in " + ", ".join(f"{rule}: {value:.2f}" for rule, value in fd.items()),
        rows=rows,
        control="with control in both passes guidance must change nothing (an exact test, X6); real test images have "
        f"{real:.3f} of their pixels at -1 or 1",
        facts=fd,
        notes=[
            "[CN] says that the weights reduce the strength of guidance. As printed, 64 / h_i is 1 for the finest residuals and "
            "more for coarser ones, so it amplifies; the released code's weights are at most 1. The last row, the printed rule "
            "divided by its largest weight, was not in the criterion",
        ],
        pictures=[
            ("hints", list(hint_image(lab.hints[:10]))),
            *((rule, list(s[0].x[:10])) for rule, s in found.items()),
        ],
    )


CLAIM = Claim(
    id="E6",
    title="Guidance weighted by resolution",
    sentence="Without prompts, control in both passes makes guidance void, control in the conditional pass alone makes it too "
    "strong, and weights 64 / h_i on its residuals mend that.",
    source="[CN, 3.4 and Fig. 5]",
    criterion="FD with the paper's weights not above FD of both alternatives, at EF0 not below theirs (intervals of the paired "
    "differences reach 0 or above)",
    setting=f"empty prompt, guidance {GUIDANCE:g}; the weights are h_0 / h_i of the latent, 1, 2, 4 here, where [CN] has 1 to 8",
    run=run,
)
