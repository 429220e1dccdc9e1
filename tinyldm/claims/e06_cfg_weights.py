"""E6: without a prompt, guidance needs the control in one pass only, weighted by resolution."""

from collections.abc import Callable, Sequence

from torch import Tensor

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, Plot, Row, found, line, where
from tinyldm.claims.lab import ControlFn, Lab
from tinyldm.claims.settings import ControlArm
from tinyldm.claims.sweep import Sweep, fd_ratio
from tinyldm.claims.verdict import Criterion, Noise, Precondition
from tinyldm.controlnet import resolution_weighted, weighted

TOO_MUCH = 1.2  # FD of one pass over both, from which on it is too strong
GUIDANCE = (3.0, 5.0, 7.5, 9.0)
Rule = Callable[[Sequence[Tensor]], list[Tensor]]


def released_weighted(residuals: Sequence[Tensor]) -> list[Tensor]:
    """0.825 ^ (n - i), as the released code's "guess mode" has it: 1 for the middle, less the finer."""
    last = len(residuals) - 1
    return [0.825 ** (last - i) * residual for i, residual in enumerate(residuals)]


def halved(residuals: Sequence[Tensor]) -> list[Tensor]:
    """Half of each, whatever its resolution."""
    return weighted(residuals, 0.5)


BOTH, PROMPTED, PAPER = "both passes", "one pass", "one pass, 64 / h_i"
RULES: dict[str, Rule] = {
    PROMPTED: list,
    PAPER: resolution_weighted,
    "one pass, released code's weights": released_weighted,
    "one pass, a half": halved,
}
STYLES = {
    PROMPTED: "ko-",
    PAPER: "ks-",
    "one pass, released code's weights": "k^--",
    "one pass, a half": "kD:",
}
MENDS = "FD, 64 / h_i over one pass, at the smallest guidance at which one pass is too strong"
TOO_STRONG = "FD, one pass over both passes, at that guidance"


def sweep_of(lab: Lab, rule: Rule, guidance: float, seeds: Sequence[int]) -> Sweep:
    """Samples of the empty prompt, guided from the pass without control to the one with."""

    def ruled(net: ControlFn) -> ControlFn:
        return lambda *inputs: rule(net(*inputs))

    name = "list" if rule is list else rule.__name__
    models = [lab.control(ControlArm(), seed).steered(name, ruled) for seed in seeds]
    how: Row = {"guidance": guidance, "control_passes": "prompted", "panel": lab.wide}
    return lab.sweep(models, [""] * len(lab.wide), **how)


def saturated(x: Tensor) -> float:
    """Share of values at -1 or 1."""
    return (x.abs() > 0.99).float().mean().item()


def judged_at(lab: Lab, both: Sweep) -> float:
    """The smallest guidance at which one pass is too strong on seed 0, or the largest."""
    for w in GUIDANCE:
        if sweep_of(lab, list, w, lab.seeds[:1]).fds[0] >= TOO_MUCH * both.fds[0]:
            return w
    return GUIDANCE[-1]


def run(lab: Lab) -> Finding:
    """FD under each rule of guidance, at the smallest guidance at which one pass is too strong."""
    both = lab.sweep(ControlArm(), [""] * len(lab.wide), panel=lab.wide)
    judged = judged_at(lab, both)
    seeds = {w: lab.seeds if w == judged else lab.seeds[:1] for w in GUIDANCE}
    swept = {(r, w): sweep_of(lab, RULES[r], w, seeds[w]) for r in RULES for w in GUIDANCE}
    rows: list[Row] = [
        {
            "control": name,
            "guidance": w,
            "FD": s.fd,
            "KD": s.kd,
            "GAIN": s.gain,
            "at -1 or 1": saturated(s.images),
        }
        for (name, w), s in [((BOTH, 1.0), both), *swept.items()]
    ]
    measured = {MENDS: fd_ratio(swept[PAPER, judged], swept[PROMPTED, judged])}
    strong = fd_ratio(swept[PROMPTED, judged], both).estimate
    checks = {**common(lab, [ControlArm()]), TOO_STRONG: strong.mean}
    lines = [line(where(rows, control=r), "guidance", "FD", STYLES[r], r) for r in RULES]
    return Finding(
        measured,
        checks,
        found(measured),
        rows,
        notes=[
            f"Judged at guidance {judged:g}, by three trainings; the other rows are of seed 0. "
            "[CN] says that the weights reduce the strength of guidance. As printed, 64 / h_i is "
            "1 for the finest residuals and more for coarser ones, so it amplifies; the released "
            "code's weights are at most 1"
        ],
        plots=[Plot("guidance w", "FD", lines)],
        pictures={"hints": lab.wide.hints, BOTH: both.x}
        | {f"{r}, w = {judged:g}": swept[r, judged].x for r in RULES},
        lesson="**The printed and the released guidance weights pull apart.** 64 / h_i amplifies "
        "coarse residuals, the code's 0.825 ^ (12 - i) damps fine ones; the table of E6 has both, "
        "and a uniform half.",
    )


CLAIM = Claim(
    id="E6",
    title="Guidance weighted by resolution",
    sentence="Without prompts, control in both passes makes guidance void, control in the "
    "conditional pass alone makes it too strong, and weights 64 / h_i on its residuals mend that.",
    source="[CN, 3.4 and Fig. 5]",
    criteria=(Criterion(MENDS, high=0.9, holds=0.7, fails=1.2, noise=Noise(0.15, 0.03, 20, 3)),),
    preconditions=(*COMMON, Precondition(TOO_STRONG, low=TOO_MUCH)),
    setting="empty prompt; the weights are h_0 / h_i of the latent, 1, 2, 4 here, where [CN] has "
    "1 to 8; a uniform 0.5 beside",
    run=run,
    before="FAIL at guidance 3, where nothing was too strong, so that there was nothing to mend; "
    "and by asking for undiminished EF0 of a rule that is meant to weaken",
)
