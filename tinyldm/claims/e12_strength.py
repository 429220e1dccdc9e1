"""E12: the strength of the control is a dial, and its share of the steps another."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from tinyldm.claims.claim import Claim, Finding, listed, named
from tinyldm.claims.lab import BaseArm, ControlArm, ControlFn, Lab
from tinyldm.controlnet import weighted

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
SPANS = ((1.0, 0.8), (1.0, 0.5), (0.5, 0.0), (0.2, 0.0))  # from t = start T down to end T
ALWAYS = "1 to 0"


def between(start: float, end: float, T: int, net: ControlFn) -> ControlFn:
    """This ControlNet while end T < t <= start T, else none (zeros)."""

    def gated(z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        on = float(end * T < t[0].item() <= start * T)
        return weighted(net(z_t, t, context, hint), on)

    return gated


def run(lab: Lab) -> Finding:
    models = lab.models(ControlArm())
    found = {(weight, ALWAYS): lab.sweep(models, weight=weight) for weight in WEIGHTS}
    for start, end in SPANS:
        span, gate = f"{start:g} to {end:g}", partial(between, start, end, models[0].ldm.schedule.T)
        found[1.0, span] = lab.sweep([model.steered(span, gate) for model in models])
    upto = [found[weight, ALWAYS].ef0.mean for weight in WEIGHTS if weight <= 1]
    same = torch.equal(found[0.0, ALWAYS].images, lab.sweep(BaseArm()).images)
    spans = {f"t / T from {t}:": s.gain.mean for (_, t), s in found.items() if t != ALWAYS}
    return Finding(
        passed=same and all(a < b for a, b in pairwise(upto)),
        number=f"EF0 at scale 0 to 1: {listed(upto)}; scale 0 is the base exactly: {same}",
        rows=[
            {"scale": weight, "control for t / T": span, "EF0": s.ef0, "GAIN": s.gain, "FD": s.fd}
            for (weight, span), s in found.items()
        ],
        control="scale 0 has GAIN about 0: the base does not see the hints",
        lesson="**When control matters.** GAIN with the ControlNet switched on during a part of "
        f"the sampling only: {named(spans)}.",
    )


CLAIM = Claim(
    id="E12",
    title="Strength, start and end of control",
    sentence="The residuals can be scaled, and applied during a part of the sampling steps only.",
    source="[CN, repository; diffusers' conditioning scale and guidance start and end]",
    criterion="scale 0 gives the base's images bit for bit, and mean EF0 rises with the scale up "
    "to 1",
    setting="the default ControlNet of each seed, true captions",
    run=run,
)
