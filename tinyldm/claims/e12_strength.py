"""E12: the strength of the control is a dial, and its share of the steps another."""

from functools import partial
from itertools import pairwise

from torch import Tensor

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, found, named
from tinyldm.claims.lab import ControlFn, Lab
from tinyldm.claims.settings import BaseArm, ControlArm
from tinyldm.claims.verdict import Criterion, Noise, Precondition
from tinyldm.controlnet import weighted

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
SPANS = ((1.0, 0.8), (1.0, 0.5), (0.5, 0.0), (0.2, 0.0))  # from t = start T down to end T
ALWAYS = "1 to 0"
UPTO = [weight for weight in WEIGHTS if weight <= 1]
STEPS = {pair: f"EF0, scale {pair[1]:g} less scale {pair[0]:g}" for pair in pairwise(UPTO)}
SAME = "largest difference of a pixel, scale 0 from the base"


def between(start: float, end: float, T: int, net: ControlFn) -> ControlFn:
    """This ControlNet while end T < t <= start T, else none (zeros)."""

    def gated(z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        on = float(end * T < t[0].item() <= start * T)
        return weighted(net(z_t, t, context, hint), on)

    return gated


def run(lab: Lab) -> Finding:
    """EF0 at each strength of the control, and in parts of the sampling only."""
    models = lab.models(ControlArm())
    swept = {(weight, ALWAYS): lab.sweep(models, weight=weight) for weight in WEIGHTS}
    for start, end in SPANS:
        span, gate = f"{start:g} to {end:g}", partial(between, start, end, models[0].ldm.schedule.T)
        swept[1.0, span] = lab.sweep([model.steered(span, gate) for model in models])
    measured = {
        name: models_differ.measure(models_differ.ef0s - swept[a, ALWAYS].ef0s, family=len(STEPS))
        for (a, b), name in STEPS.items()
        for models_differ in [swept[b, ALWAYS]]
    }
    base = lab.sweep(BaseArm())
    apart = (swept[0.0, ALWAYS].images - base.images).abs().max().item()
    checks = {**common(lab, [ControlArm()]), SAME: apart}
    spans = {f"t / T from {t}:": s.gain.mean for (_, t), s in swept.items() if t != ALWAYS}
    return Finding(
        measured,
        checks,
        found(measured),
        [
            {
                "scale": weight,
                "control for t / T": span,
                "EF0": s.ef0,
                "GAIN": s.gain,
                "ACC_t": s.acc,
            }
            for (weight, span), s in swept.items()
        ],
        lesson="**When control matters.** GAIN with the ControlNet switched on during a part of "
        f"the sampling only: {named(spans)}.",
    )


CLAIM = Claim(
    id="E12",
    title="Strength, start and end of control",
    sentence="The residuals can be scaled, and applied during a part of the sampling steps only.",
    source="[CN, repository; diffusers' conditioning scale and guidance start and end]",
    criteria=tuple(
        Criterion(
            name,
            low=0.0,
            holds=0.05,
            fails=-0.05,
            noise=Noise(0.06, 0.005, 113, 3),
            family=len(STEPS),
        )
        for name in STEPS.values()
    ),
    preconditions=(*COMMON, Precondition(SAME, high=0.0)),
    setting="the ControlNet of each seed, true captions, guidance 2",
    run=run,
    before="PASS by means alone, without intervals",
)
