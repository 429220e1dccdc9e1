"""E8: a ControlNet works on other bases of its family without retraining."""

from dataclasses import replace

import torch
from torch import nn

from tinyldm.claims.claim import Claim, Finding, gain_of, with_interval
from tinyldm.claims.lab import BaseArm, ControlArm, Lab
from tinyldm.dataset import to_float
from tinyldm.pictures import hint_image

PLUGGED = "A's ControlNet on B, plugged in"
INDEPENDENT = "A's ControlNet on an independent base"
RETRAINED = "retrained on B"


def distance(a: nn.Module, b: nn.Module) -> float:
    """|b - a| / |a| over all weights."""
    x, y = (torch.cat([p.detach().flatten() for p in network.parameters()]) for network in (a, b))
    return ((y - x).norm() / x.norm()).item()


def run(lab: Lab, seeds: list[int]) -> Finding:
    captions, found, moved = lab.test.captions.full(), {}, {}
    for seed in seeds:
        a = BaseArm(seed)
        half = replace(lab.settings.base_fit, steps=max(1, lab.settings.base_fit.steps // 2))
        b, stranger = BaseArm(seed, half, inverted=True, start=a), BaseArm(seed + 100, inverted=True)
        arms = {
            "A's ControlNet on A": (a, ControlArm(a, seed)),
            PLUGGED: (b, ControlArm(a, seed)),
            RETRAINED: (b, ControlArm(b, seed)),
            INDEPENDENT: (stranger, ControlArm(a, seed)),
        }
        for name, (base, control) in arms.items():
            found.setdefault(name, []).append(lab.controlled(lab.base(base), lab.control(control), captions))
            moved.setdefault(name, []).append(distance(lab.base(a).unet, lab.base(base).unet))
        plain = lab.sample(lab.base(b), captions)
        found.setdefault("B without control", []).append(lab.measured(plain, lab.hints))
    gains = {name: gain_of(lab, *samples) for name, samples in found.items()}
    rows = [{"arm": name, "GAIN": with_interval(*g)} for name, g in gains.items()]
    for row in rows:
        row["base's distance from A"] = sum(moved[row["arm"]]) / len(seeds) if row["arm"] in moved else None
    ratio = gains[PLUGGED][0] / gains[RETRAINED][0]
    stranger = gains[INDEPENDENT][0] / gains[RETRAINED][0]
    worn = lab.round_trip(-to_float(lab.test.images)).mean().item()
    return Finding(
        passed=ratio >= 0.6 and stranger < 0.6,
        number=f"plugged in {ratio:.2f} of retrained; on an independent base {stranger:.2f}",
        rows=rows,
        control="the independent base must fail, or the measure is broken: "
        + ("it does" if stranger < 0.6 else "it does NOT, so a PASS would mean nothing"),
        notes=[
            "The base's distance from A is |B - A| / |A| over all weights of the U-Net",
            "The autoencoder has never seen swapped tones, so the pictures of B look worn: EF0 of a round trip is "
            f"{worn:.2f} for swapped test images, {lab.ce.mean().item():.2f} for plain ones. Both ControlNets on B bear it",
        ],
        pictures=[
            ("hints", list(hint_image(lab.hints[:10]))),
            *((name, list(samples[0].x[:10])) for name, samples in found.items()),
        ],
    )


CLAIM = Claim(
    id="E8",
    title="Transfer to another base",
    sentence="A trained ControlNet can be used with other models of the same family without training.",
    source="[CN, Fig. 12]",
    criterion="GAIN plugged in >= 60 % of GAIN retrained, and below 60 % on an independent base",
    setting="B is A fine-tuned for half as many steps on images with black and white swapped; edges are of the plain images, "
    "which inverting leaves in place",
    run=run,
)
