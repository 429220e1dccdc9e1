"""E6: without a prompt, guidance needs the control in one pass only, weighted by resolution."""

from collections.abc import Callable, Sequence

from torch import Tensor

from tinyldm.claims.claim import Claim, Finding, named
from tinyldm.claims.lab import ControlArm, ControlFn, Lab, Sweep
from tinyldm.claims.sweep import difference
from tinyldm.controlnet import resolution_weighted
from tinyldm.data.dataset import to_float

GUIDANCE = 3.0
Rule = Callable[[Sequence[Tensor]], list[Tensor]]


def released_weighted(residuals: Sequence[Tensor]) -> list[Tensor]:
    """0.825 ^ (n - i), as the released code's "guess mode" has it: 1 for the middle, less the finer."""
    last = len(residuals) - 1
    return [0.825 ** (last - i) * residual for i, residual in enumerate(residuals)]


def at_most_one(residuals: Sequence[Tensor]) -> list[Tensor]:
    """The paper's weights over their largest, h_n / h_i: as printed they amplify, where it says reduce."""
    coarsest = residuals[-1].shape[-2]
    return [coarsest / residual.shape[-2] * residual for residual in residuals]


BOTH, PROMPTED, PAPER = "both passes", "conditional only", "conditional only, paper's weights"
RULES: dict[str, Rule] = {
    BOTH: list,
    PROMPTED: list,
    PAPER: resolution_weighted,
    "conditional only, code's weights": released_weighted,
    "conditional only, paper's weights over their largest": at_most_one,
}


def sweep_of(lab: Lab, name: str, rule: Rule) -> Sweep:
    """Samples of the empty prompt, guided from the pass without control (or with, in BOTH) to the one with."""

    def ruled(net: ControlFn) -> ControlFn:
        return lambda *inputs: rule(net(*inputs))

    models = [model.steered(rule.__name__, ruled) for model in lab.models(ControlArm())]
    passes = "both" if name == BOTH else "prompted"
    prompts = [""] * len(lab.panel)
    return lab.sweep(models, prompts, guidance=GUIDANCE, control_passes=passes)


def saturated(x: Tensor) -> float:
    """Share of pixels at -1 or 1."""
    return (x.abs() > 0.99).float().mean().item()


def run(lab: Lab) -> Finding:
    found = {name: sweep_of(lab, name, rule) for name, rule in RULES.items()}
    fds = {name: sweep.fd.mean for name, sweep in found.items()}
    paper, others = found[PAPER], (found[BOTH], found[PROMPTED])
    real = saturated(to_float(lab.panel.data.images))
    return Finding(
        passed=all(paper.fd.mean <= other.fd.mean for other in others)
        and all(difference(paper.ef0s, other.ef0s).high >= 0 for other in others),
        number="FD with control in " + named({f"{name}:": fd for name, fd in fds.items()}),
        rows=[
            {"control": name, "GAIN": s.gain, "FD": s.fd, "pixels at -1 or 1": saturated(s.images)}
            for name, s in found.items()
        ],
        control="with control in both passes guidance must change nothing (an exact test, X6); "
        f"real test images have {real:.3f} of their pixels at -1 or 1",
        notes=[
            "[CN] says that the weights reduce the strength of guidance. As printed, 64 / h_i is "
            "1 for the finest residuals and more for coarser ones, so it amplifies; the released "
            "code's weights are at most 1. The last row, the printed rule divided by its largest "
            "weight, was not in the criterion"
        ],
        pictures={"hints": lab.panel.hints, **{name: s.x for name, s in found.items()}},
        lesson="**The printed and the released guidance weights pull apart.** 64 / h_i amplifies "
        "coarse residuals, the code's 0.825 ^ (12 - i) damps fine ones. FD without prompts, "
        f"guided, with control in: {named(fds, '; ')}.",
    )


CLAIM = Claim(
    id="E6",
    title="Guidance weighted by resolution",
    sentence="Without prompts, control in both passes makes guidance void, control in the "
    "conditional pass alone makes it too strong, and weights 64 / h_i on its residuals mend that.",
    source="[CN, 3.4 and Fig. 5]",
    criterion="FD with the paper's weights not above FD of both alternatives, at EF0 not below "
    "theirs (intervals of the paired differences reach 0 or above)",
    setting=f"empty prompt, guidance {GUIDANCE:g}; the weights are h_0 / h_i of the latent, 1, 2, "
    "4 here, where [CN] has 1 to 8",
    run=run,
)
