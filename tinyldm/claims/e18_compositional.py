"""E18: text conditions compositionally: pairs that were never seen together."""

from dataclasses import replace

import torch
from torch import Tensor

from tinyldm.claims.claim import Claim, Finding, named
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.claims.sweep import shares, shuffled
from tinyldm.data import load
from tinyldm.data.dataset import Dataset, to_float
from tinyldm.evaluate.metrics import Estimate

SEEN, HELD_OUT, SHUFFLED = "seen pairs", "held-out pairs", "seen pairs, shuffled"
REAL, REAL_HELD_OUT = "none: real images", "none: real images, held out"


def pair(labels: dict[str, Tensor]) -> Tensor:
    """One number (n,) for class and attribute together."""
    first, second = list(labels.values())[:2]
    return 100 * first + second


def unseen(lab: Lab) -> Dataset:
    """Test images whose pair of class and attribute is in no training image."""
    everything = load(lab.settings.dataset, "test", held_out=True)
    new = ~torch.isin(pair(everything.labels), pair(lab.data["train"].labels))
    return everything.subset(new.nonzero()[: lab.settings.n, 0])


def seen_in(lab: Lab, x: Tensor) -> Tensor:
    """The pairs (n,) that the judge sees in images (n, k, H, W)."""
    return pair(lab.panel.judge(x)[1])


def scores_of(lab: Lab) -> dict[str, Estimate]:
    """Prompts or images -> share of them with class and attribute right, on the lab's dataset."""
    models, new, captions = lab.models(BaseArm()), unseen(lab), lab.panel.captions
    asked, asked_new = pair(lab.panel.labels), pair(new.labels)

    def drawn(prompts: list[str]) -> list[Tensor]:
        return [seen_in(lab, lab.sample(model, prompts)) for model in models]

    seen_new, strangers = drawn(new.captions.full()), [captions[i] for i in shuffled(len(captions))]
    scores = {
        SEEN: shares(drawn(captions), asked),
        HELD_OUT: shares(seen_new, asked_new),
        SHUFFLED: shares(drawn(strangers), asked),
        REAL: shares([seen_in(lab, to_float(lab.panel.data.images))], asked),
        REAL_HELD_OUT: shares([seen_in(lab, to_float(new.images))], asked_new),
    }
    first, second = list(new.names.values())[:2]
    for code in asked_new.unique().tolist():
        mask, name = asked_new == code, f"held out: {second[code % 100]} {first[code // 100]}"
        scores[name] = shares([seen[mask] for seen in seen_new], asked_new[mask])
    return scores


def run(lab: Lab) -> Finding:
    found = {}
    for name in ("fashion-mnist", "shapes"):
        settings = replace(lab.settings, dataset=name)
        found[name] = scores_of(Lab(lab.store, settings, lab.machine, lab.seeds))
    ratios = {name: s[HELD_OUT].mean / max(1e-9, s[SEEN].mean) for name, s in found.items()}
    return Finding(
        passed=all(ratio >= 0.8 for ratio in ratios.values()),
        number="held-out over seen pairs: " + named(ratios),
        rows=[
            {"dataset": name, "prompts": prompts, "class and attribute right": score}
            for name, scores in found.items()
            for prompts, score in scores.items()
        ],
        control="; ".join(
            f"{name}: shuffled {s[SHUFFLED].mean:.2f}, the judge on real images "
            f"{s[REAL].mean:.2f}, held-out ones {s[REAL_HELD_OUT].mean:.2f}"
            for name, s in found.items()
        ),
    )


CLAIM = Claim(
    id="E18",
    title="Composition of words",
    sentence="Text conditioning composes: pairs of attribute and class that were held out of "
    "training are drawn as asked.",
    source="[LDM, 3.3]; our reading",
    criterion="share with class and attribute right on held-out pairs >= 0.8 x that on seen "
    "pairs, on both datasets",
    setting="pairs of garment and tone (3 of 30), on `shapes` of figure and colour (4 of 24), in "
    "no training image of the generative network; the base alone, on `shapes` with an autoencoder "
    "of its own",
    run=run,
)
