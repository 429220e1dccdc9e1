"""E12: the strength of the control is a dial, and its share of the steps another."""

from itertools import pairwise

import torch

from tinyldm.claims.claim import Claim, Finding, gain_of, over_seeds, with_interval
from tinyldm.claims.lab import BaseArm, ControlArm, Lab, Sampled
from tinyldm.ldm import Control, bind_hint
from tinyldm.metrics import frechet_distance

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
SPANS = ((1.0, 0.8), (1.0, 0.5), (0.5, 0.0), (0.2, 0.0))  # from t = start T down to end T


def between(control: Control, start: float, end: float, T: int) -> Control:
    """This control while end T < t <= start T, else none (zeros)."""

    def gated(z_t, t, context):
        on = float(end * T < t[0].item() <= start * T)
        return [on * residual for residual in control(z_t, t, context)]

    return gated


def row_of(lab: Lab, scale: float, span: str, samples: list[Sampled]) -> dict:
    fd = sum(frechet_distance(s.features, lab.reference) for s in samples) / len(samples)
    ef0 = over_seeds([s.ef0 for s in samples]).mean().item()
    gain = with_interval(*gain_of(lab, *samples))
    return {"scale": scale, "control for t / T": span, "EF0": ef0, "GAIN": gain, "FD": fd}


def run(lab: Lab, seeds: list[int]) -> Finding:
    captions, hints, rows, same, facts = lab.test.captions.full(), lab.hints.to(lab.device), [], [], {}
    models = [(lab.base(BaseArm(s)), lab.control(ControlArm(BaseArm(s), s))) for s in seeds]
    for weight in WEIGHTS:
        samples = [lab.controlled(ldm, controlnet, captions, weight) for ldm, controlnet in models]
        rows.append(row_of(lab, weight, "1 to 0", samples))
        if weight == 0:
            same = [torch.equal(s.x, lab.sample(ldm, captions)) for s, (ldm, _) in zip(samples, models, strict=True)]
    for start, end in SPANS:
        samples = []
        for ldm, net in models:
            T = ldm.schedule.T
            gated = lambda p, net=net, T=T, a=start, b=end: [between(bind_hint(net, hints[p]), a, b, T)]  # noqa: E731
            x = lab.sample(ldm, captions, gated, (net.kept_as, start, end))
            samples.append(lab.measured(x, lab.hints))
        rows.append(row_of(lab, 1.0, f"{start:g} to {end:g}", samples))
        facts[f"{start:g} to {end:g}"] = gain_of(lab, *samples)[0]
    upto = [row["EF0"] for row in rows[: len(WEIGHTS)] if row["scale"] <= 1]
    return Finding(
        passed=all(same) and all(a < b for a, b in pairwise(upto)),
        number=f"EF0 at scale 0 to 1: {', '.join(f'{g:.2f}' for g in upto)}; scale 0 is the base exactly: {all(same)}",
        rows=rows,
        control="scale 0 has GAIN about 0: the base does not see the hints",
        facts=facts,
    )


CLAIM = Claim(
    id="E12",
    title="Strength, start and end of control",
    sentence="The residuals can be scaled, and applied during a part of the sampling steps only.",
    source="[CN, repository; diffusers' conditioning scale and guidance start and end]",
    criterion="scale 0 gives the base's images bit for bit, and mean EF0 rises with the scale up to 1",
    setting="the default ControlNet of each seed, true captions",
    run=run,
)
