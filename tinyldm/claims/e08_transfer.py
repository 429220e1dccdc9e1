"""E8: a ControlNet works on other bases of its family without retraining."""

from dataclasses import replace

import torch

from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import BaseArm, ControlArm, Lab, Model
from tinyldm.evaluate.metrics import spread

OWN = "A's ControlNet on A"
PLUGGED = "A's ControlNet on B, plugged in"
RETRAINED = "retrained on B"
INDEPENDENT = "A's ControlNet on an independent base"


def distance(a: Model, b: Model) -> float:
    """|b - a| / |a| over all weights of the U-Nets."""
    x, y = (torch.cat([p.flatten() for p in model.ldm.unet.parameters()]) for model in (a, b))
    return ((y - x).norm() / x.norm()).item()


def models_of(lab: Lab, seed: int) -> dict[str, Model]:
    """B is A fine-tuned on inverted images; the independent base was trained on them from another start."""
    fit = lab.settings.base_fit
    b = BaseArm(replace(fit, steps=max(1, fit.steps // 2)), inverted=True, start=BaseArm())
    own, plain = lab.control(ControlArm(), seed), lab.base(b, seed)
    stranger = lab.base(BaseArm(inverted=True), seed + 100)
    return {
        OWN: own,
        PLUGGED: own._replace(ldm=plain.ldm, key=(*plain.key, *own.key)),
        RETRAINED: lab.control(ControlArm(b), seed),
        INDEPENDENT: own._replace(ldm=stranger.ldm, key=(*stranger.key, *own.key)),
        "B without control": plain,
    }


def run(lab: Lab) -> Finding:
    seeds = [models_of(lab, seed) for seed in lab.seeds]
    found = {arm: lab.sweep([models[arm] for models in seeds]) for arm in seeds[0]}
    moved = {arm: spread([distance(models[OWN], models[arm]) for models in seeds]) for arm in found}
    retrained = found[RETRAINED].gain.mean
    ratio, stranger = (found[arm].gain.mean / retrained for arm in (PLUGGED, INDEPENDENT))
    worn = lab.round_trip(255 - lab.panel.data.images).mean().item()
    return Finding(
        passed=ratio >= 0.6 and stranger < 0.6,
        number=f"plugged in {ratio:.2f} of retrained; on an independent base {stranger:.2f}",
        rows=[
            {"arm": arm, "GAIN": sweep.gain, "base's distance from A": moved[arm]}
            for arm, sweep in found.items()
        ],
        control="the independent base must fail, or the measure is broken: "
        + ("it does" if stranger < 0.6 else "it does NOT, so a PASS would mean nothing"),
        notes=[
            "The base's distance from A is |B - A| / |A| over all weights of the U-Net",
            "The autoencoder has never seen swapped tones, so the pictures of B look worn: EF0 of "
            f"a round trip is {worn:.2f} for swapped test images, "
            f"{lab.ceiling().mean().item():.2f} for plain ones. Both ControlNets on B bear it",
        ],
        pictures={"hints": lab.panel.hints, **{name: s.x for name, s in found.items()}},
    )


CLAIM = Claim(
    id="E8",
    title="Transfer to another base",
    sentence="A trained ControlNet can be used with other models of the same family without "
    "training.",
    source="[CN, Fig. 12]",
    criterion="GAIN plugged in >= 60 % of GAIN retrained, and below 60 % on an independent base",
    setting="B is A fine-tuned for half as many steps on images with black and white swapped; "
    "edges are of the plain images, which inverting leaves in place",
    run=run,
)
