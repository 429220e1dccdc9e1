"""E8: a ControlNet works on other bases of its family without retraining."""

from dataclasses import replace

from tinyldm.claims.claim import Claim, Finding, gain_of, with_interval
from tinyldm.claims.lab import BaseArm, ControlArm, Lab
from tinyldm.pictures import hint_image


def run(lab: Lab, seeds: list[int]) -> Finding:
    captions, found = lab.test.captions.full(), {}
    for seed in seeds:
        a = BaseArm(seed)
        half = replace(lab.settings.base_fit, steps=max(1, lab.settings.base_fit.steps // 2))
        b, stranger = BaseArm(seed, half, inverted=True, start=a), BaseArm(seed + 100, inverted=True)
        arms = {
            "A's ControlNet on A": (a, ControlArm(a, seed)),
            "A's ControlNet on B, plugged in": (b, ControlArm(a, seed)),
            "retrained on B": (b, ControlArm(b, seed)),
            "A's ControlNet on an independent base": (stranger, ControlArm(a, seed)),
        }
        for name, (base, control) in arms.items():
            found.setdefault(name, []).append(lab.controlled(lab.base(base), lab.control(control), captions))
        plain = lab.sample(lab.base(b), captions)
        found.setdefault("B without control", []).append(lab.measured(plain, lab.hints))
    gains = {name: gain_of(lab, *samples) for name, samples in found.items()}
    rows = [{"arm": name, "GAIN": with_interval(*g)} for name, g in gains.items()]
    ratio = gains["A's ControlNet on B, plugged in"][0] / gains["retrained on B"][0]
    stranger = gains["A's ControlNet on an independent base"][0] / gains["retrained on B"][0]
    return Finding(
        passed=ratio >= 0.6 and stranger < 0.6,
        number=f"plugged in {ratio:.2f} of retrained; on an independent base {stranger:.2f}",
        rows=rows,
        control="the independent base must fail, or the measure is broken: "
        + ("it does" if stranger < 0.6 else "it does NOT, so a PASS would mean nothing"),
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
