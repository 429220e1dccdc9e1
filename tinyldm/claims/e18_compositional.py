"""E18: text conditions compositionally: pairs that were never seen together."""

from itertools import cycle, islice

import torch
from torch import Tensor

from tinyldm.claims.checks import base_ratio, small
from tinyldm.claims.claim import BASE_GOOD, Claim, Finding, Row, found
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm
from tinyldm.claims.sweep import ratio
from tinyldm.claims.verdict import Criterion, Noise, Precondition, measure

ROTATIONS = PAIRS = 5  # trainings, and the pairs that each of them leaves out
SAMPLES = 40  # a pair
COMPOSES = "share right on pairs left out, over the same pairs by bases that saw them"
SEES = "share right on pairs that were seen, less that of another attribute"


def pairs(lab: Lab) -> list[tuple[int, int]]:
    """Pairs of class and attribute, one attribute for each of the commonest classes, all of them trained on."""
    first, second = list(lab.data["train"].labels.values())[:2]
    classes = first.bincount().argsort(descending=True).tolist()
    common = islice(cycle(classes), ROTATIONS * PAIRS)
    values = second.unique().tolist()
    there = set(zip(first.tolist(), second.tolist(), strict=True))
    return [
        next((c, v) for v in values[i % len(values) :] + values if (c, v) in there)
        for i, c in enumerate(common)
    ]


def arms_of(lab: Lab) -> list[BaseArm]:
    """A base for each rotation: it is trained without a fifth of the pairs, its seed is its number."""
    every = pairs(lab)
    return [BaseArm(left_out=tuple(every[r::ROTATIONS])) for r in range(ROTATIONS)]


def drawn(lab: Lab, arm: BaseArm, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """For every pair: share right, and share with the right class in the next attribute (pairs,)."""
    first, second = list(lab.data["train"].names.items())[:2]
    every = pairs(lab)
    prompts = [f"a {second[1][v]} {first[1][c]}" for c, v in every for _ in range(number)]
    seen = lab.panel.judge(lab.sample(lab.base(arm, seed), prompts))[1]
    c, v = (torch.tensor(x).repeat_interleave(number) for x in zip(*every, strict=True))
    right = (seen[first[0]] == c) & (seen[second[0]] == v)
    wrong = (seen[first[0]] == c) & (seen[second[0]] == (v + 1) % len(second[1]))
    shape = (len(every), number)
    return tuple(x.double().reshape(shape).mean(1) for x in (right, wrong))  # type: ignore[return-value]


def run(lab: Lab) -> Finding:
    """The share drawn right of pairs that a base never saw, over that by the bases that saw them."""
    lab = small(lab)
    every, arms, number = pairs(lab), arms_of(lab), min(SAMPLES, lab.settings.n)
    drew = [drawn(lab, arm, seed, number) for seed, arm in enumerate(arms)]
    right, wrong = (torch.stack(each) for each in zip(*drew, strict=True))  # (rotations, pairs)
    without = torch.arange(ROTATIONS)[:, None] == torch.arange(len(every)) % ROTATIONS
    seen = (right * ~without).sum(0) / (ROTATIONS - 1)  # (pairs,)
    shares = right[without], seen.reshape(PAIRS, ROTATIONS).T  # of each rotation's own pairs
    columns = [x.reshape(ROTATIONS, PAIRS).mean(1, True).clamp(min=1e-9) for x in shares]
    measured = {COMPOSES: measure(*columns, statistic=ratio)}
    models = [lab.base(arm, seed) for seed, arm in enumerate(arms)]
    checks = {
        BASE_GOOD.name: base_ratio(lab, models),
        SEES: (right - wrong)[~without].mean().item(),
    }
    (_, first), (_, second) = list(lab.data["train"].names.items())[:2]
    rows: list[Row] = [
        {
            "rotation": i % ROTATIONS,
            "pair": f"{second[v]} {first[c]}",
            "left out": right[i % ROTATIONS, i].item(),
            "seen": seen[i].item(),
        }
        for i, (c, v) in enumerate(every)
    ]
    return Finding(measured, checks, found(measured), rows)


CLAIM = Claim(
    id="E18",
    title="Composition of words",
    sentence="Text conditioning composes: pairs of attribute and class that were held out of "
    "training are drawn as asked.",
    source="[LDM, 3.3]; our reading",
    criteria=(Criterion(COMPOSES, low=0.8, holds=1.0, fails=0.4, noise=Noise(0.0, 0.1, 1, 5)),),
    preconditions=(BASE_GOOD, Precondition(SEES, low=0.1)),
    setting="25 pairs of kind and colour in five rotations; the base of each, at 32 px, is trained "
    f"without five of them, and the other four saw those; {SAMPLES} samples a pair; the interval is "
    "over rotations, each with its own pairs and its own training",
    run=run,
    before="FAIL by comparing three and four held-out pairs with other pairs",
    seeds=ROTATIONS,
)
