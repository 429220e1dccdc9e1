"""E19: the prompt still steers what the hint leaves open: colour."""

import torch

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, Row, found
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm, ControlArm
from tinyldm.claims.sweep import Sweep, ratio
from tinyldm.claims.verdict import Criterion, Noise, Precondition
from tinyldm.evaluate.panel import prompt_settings

STEERED = "attribute as asked, over the base's"
CHANCE, FOLLOWED = "attribute as asked, without a prompt", "EF0 less chance"
PASSES = ("both", "prompted")
SHOWN = 6  # outlines in pictures


def coloured(lab: Lab) -> dict[str, torch.Tensor]:
    """The first outlines of the panel, in every colour: word -> images (SHOWN, k, H, W)."""
    _, words = list(lab.panel.data.names.items())[1]
    kinds = [lab.panel.data.names["class"][i] for i in lab.panel.labels["class"][:SHOWN].tolist()]
    model, hints = lab.control(ControlArm(), 0), lab.panel.hints[:SHOWN]
    return {
        word: lab.sample(model, [f"a {word} {kind}" for kind in kinds], [hints]) for word in words
    }


def run(lab: Lab) -> Finding:
    """The attribute as asked under another image's hint, over the base's own rate."""
    label = list(lab.panel.labels)[1]
    prompts, wanted = prompt_settings(lab.wide.data, 0)["changed"]
    asked, arm = wanted[label], ControlArm()

    def row(name: str, sweep: Sweep) -> Row:
        hits = sweep.hits(label, asked)
        return {
            "samples": name,
            "attribute as asked": sweep.measure(hits).estimate,
            "attribute of the edges' image": sweep.measure(sweep.hits(label)).estimate,
            "ACC_e": sweep.acc,
            "GAIN": sweep.gain,
        }

    base = lab.sweep(BaseArm(), prompts, panel=lab.wide)
    control = {how: lab.sweep(arm, prompts, panel=lab.wide, control_passes=how) for how in PASSES}
    none = lab.sweep(arm, [""] * len(lab.wide), panel=lab.wide)
    both = control["both"]
    columns = both.hits(label, asked), base.hits(label, asked)
    measured = {STEERED: both.measure(*columns, statistic=ratio)}
    checks = {
        **common(lab, [arm]),
        CHANCE: none.hits(label, asked).mean().item(),
        FOLLOWED: (both.ef0s - both.chs).mean().item(),
    }
    return Finding(
        measured,
        checks,
        found(measured),
        [
            row("base, no hint", base),
            *(row(f"ControlNet in {how}", each) for how, each in control.items()),
            row("ControlNet, no prompt", none),
        ],
        pictures={"hints": lab.panel.hints[:SHOWN], **coloured(lab)},
    )


CLAIM = Claim(
    id="E19",
    title="The prompt steers what the hint leaves open",
    sentence="Under one and the same hint the prompt still decides what the hint does not show.",
    source="[CN, Fig. 1]",
    criteria=(Criterion(STEERED, low=0.8, holds=0.95, fails=0.5, noise=Noise(0.2, 0.03, 113, 3)),),
    preconditions=(*COMMON, Precondition(CHANCE, high=0.25), Precondition(FOLLOWED, low=0.1)),
    setting="each hint with a caption of its kind in another colour, guidance 2; colour is "
    "measured without a network",
    run=run,
    before="",
)
