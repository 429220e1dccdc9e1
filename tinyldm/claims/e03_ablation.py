"""E3: what the trained copy and the zero initialisation are worth, under four kinds of prompts."""

from dataclasses import replace

import torch

from tinyldm.claims.claim import Claim, Finding, Line, Plot, Row, listed, named, under_prompts
from tinyldm.claims.lab import LEARNING_RATES, ControlArm, Lab, Sweep
from tinyldm.claims.sweep import difference, shares
from tinyldm.evaluate.metrics import Estimate
from tinyldm.evaluate.panel import prompt_settings

SIZES = (
    "All arms but concat share the hint encoder, which sees edges at full resolution. Likely, not "
    "tested: on latents of 8 x 8 a few convolutions see the whole picture, so depth has little to "
    "add. Parameters that each arm trains: "
)
LESSON = (
    "**What the copy is worth.** [CN]'s ablation makes the copy shallow. Here is also one of full "
    "depth that starts from random weights, and a U-Net that sees edges from its first step. GAIN "
    "without prompts and with true captions: "
)
STYLES = {"zero": "ko", "gaussian": "ks", "lite": "kD", "random copy": "k^", "concat": "kv"}
PROMPTS = ("none", "insufficient", "conflicting", "perfect")
Found = dict[tuple[str, str], Sweep]  # by arm and prompts


def arm_of(lab: Lab, edit: str) -> ControlArm:
    """The arm at its best learning rate; concat is trained from scratch, as long as base and ControlNet."""
    fit = lab.settings.control_fit
    steps = fit.steps + (lab.settings.base_fit.steps if edit == "concat" else 0)
    return lab.tuned(ControlArm(fit=replace(fit, steps=steps), edit=edit))


def size_of(lab: Lab, edit: str) -> int:
    """Parameters that the arm trains."""
    _, network = lab.new_control(lab.new_base(0), edit, 0)
    return sum(p.numel() for p in network.parameters())


def row_of(lab: Lab, arm: ControlArm, prompts: str, sweep: Sweep) -> Row:
    _, asked = prompt_settings(lab.panel.data, 0)[prompts]
    return {
        "arm": arm.edit,
        "learning rate": lab.fit_of(arm).lr,
        "prompts": prompts,
        "GAIN": sweep.gain,
        "EF0 by seed": listed([ef0.mean().item() for ef0 in sweep.ef0s], 3),
        "FD": sweep.fd,
        "ACC_e": sweep.acc,
        "ACC_t": shares(sweep.classes, asked["class"]) if asked else None,
    }


def over_lite(found: Found, arm: str) -> dict[str, Estimate]:
    """EF0 over lite's, where the criterion asks for it."""
    return {p: difference(found[arm, p].ef0s, found["lite", p].ef0s) for p in PROMPTS[:2]}


def lines(found: Found) -> list[Line]:
    """GAIN of each arm under each kind of prompts, side by side."""
    kinds = range(len(PROMPTS))
    return [
        (style, arm, [j + 0.12 * (i - 2) for j in kinds], [found[arm, p].gain for p in PROMPTS])
        for i, (arm, style) in enumerate(STYLES.items())
    ]


def run(lab: Lab) -> Finding:
    arms = {edit: arm_of(lab, edit) for edit in STYLES}
    found = under_prompts(lab, arms, PROMPTS)
    zero, gaussian = over_lite(found, "zero"), over_lite(found, "gaussian")
    rates = {arm: lab.fit_of(how).lr for arm, how in arms.items()}
    worth = "; ".join(
        f"{arm} {found[arm, 'none'].gain.mean:.2f} and {found[arm, 'perfect'].gain.mean:.2f}"
        for arm in arms
        if arm != "gaussian"
    )
    gain = "GAIN (0: chance, 1: the autoencoder's limit)"
    hints = f"hints; three each with prompts {', '.join(PROMPTS)}"
    pictures = {hints: torch.stack([lab.panel.hints[:3]] * len(PROMPTS))}
    pictures |= {arm: torch.stack([found[arm, p].x[:3] for p in PROMPTS]) for arm in arms}
    return Finding(
        passed=all(g.low > 0 for g in zero.values()) and all(g.low <= 0 for g in gaussian.values()),
        number=f"EF0, zero - lite: {named(zero)}",
        rows=[row_of(lab, arms[arm], p, sweep) for (arm, p), sweep in found.items()],
        control=f"gaussian - lite: {named(gaussian)}; GAIN is 0 for the hints of other images, by "
        "definition (CH)",
        notes=[
            f"Learning rate of each arm, by validation loss on seed 0 out of {LEARNING_RATES}: "
            f"{rates}",
            f"{SIZES}{ {arm: size_of(lab, arm) for arm in arms} }",
        ],
        plots=[Plot("prompts", gain, lines(found), ticks=PROMPTS)],
        pictures=pictures,
        lesson=f"{LESSON}{worth}.",
    )


CLAIM = Claim(
    id="E3",
    title="Ablation under four kinds of prompts",
    sentence="The full ControlNet works with no, insufficient, conflicting and perfect prompts; a "
    "light one fails with none or insufficient ones, and one whose zero convolutions start as "
    "Gaussians is about as weak as that.",
    source="[CN, 4.2 and Fig. 8]",
    criterion="EF0 of zero above lite with none and insufficient prompts, both intervals "
    "excluding 0, and gaussian not above lite there (its interval reaches 0 or below)",
    setting="five arms, each with its own learning rate of three; gaussian has std 1 / "
    "sqrt(c_in): the paper gives none",
    run=run,
)
