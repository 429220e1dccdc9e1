"""E18: text conditions compositionally: pairs that were never seen together."""

import torch
from torch import Tensor

from tinyldm.claims.claim import Claim, Finding, share_of, with_interval
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.data import load
from tinyldm.dataset import Dataset, to_float


def pair(labels: dict[str, Tensor]) -> Tensor:
    """One number (n,) for class and attribute together."""
    first, second = list(labels.values())[:2]
    return 100 * first + second


def unseen(lab: Lab) -> Dataset:
    """Test images whose pair of class and attribute is in no training image."""
    everything = load(lab.settings.dataset, "test", held_out=True)
    new = ~torch.isin(pair(everything.labels), pair(lab.data("train").labels))
    return everything.subset(new.nonzero()[: lab.settings.n, 0])


def seen_in(lab: Lab, prompts: list[str], seeds: list[int]) -> list[Tensor]:
    """The pairs (n,) that the judge sees in samples of these prompts, for each seed."""
    return [pair(lab.measured(lab.sample(lab.base(BaseArm(seed)), prompts)).seen) for seed in seeds]


def by_pair(lab: Lab, new: Dataset, seen: list[Tensor]) -> list[dict]:
    """A row for each held-out pair."""
    (first, second), rows = list(new.names.values())[:2], []
    for code in pair(new.labels).unique().tolist():
        mask = pair(new.labels) == code
        score = share_of([column[mask] for column in seen], pair(new.labels)[mask])
        name = f"held out: {second[code % 100]} {first[code // 100]}"
        rows.append(
            {"dataset": lab.settings.dataset, "prompts": name, "class and attribute right": with_interval(*score)}
        )
    return rows


def on_one(lab: Lab, seeds: list[int]) -> tuple[list[dict], float, str]:
    """On one dataset: rows, the ratio of held-out to seen pairs, and the controls."""
    new, captions, name = unseen(lab), lab.test.captions.full(), lab.settings.dataset
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0)).tolist()
    seen, asked = seen_in(lab, new.captions.full(), seeds), pair(lab.test.labels)
    scores = {
        "seen pairs": share_of(seen_in(lab, captions, seeds), asked),
        "held-out pairs": share_of(seen, pair(new.labels)),
        "seen pairs, shuffled": share_of(seen_in(lab, [captions[i] for i in order], seeds), asked),
    }
    rows = [{"dataset": name, "prompts": p, "class and attribute right": with_interval(*s)} for p, s in scores.items()]
    rows += by_pair(lab, new, seen)
    real = [(pair(lab.judge(to_float(d.images))[1]) == pair(d.labels)).float().mean().item() for d in (lab.test, new)]
    shuffled = scores["seen pairs, shuffled"][0]
    control = f"{name}: shuffled {shuffled:.2f}, the judge on real images {real[0]:.2f}, held-out ones {real[1]:.2f}"
    return rows, scores["held-out pairs"][0] / max(1e-9, scores["seen pairs"][0]), control


def run(lab: Lab, seeds: list[int]) -> Finding:
    found = {name: on_one(lab.on(name), seeds) for name in ("fashion-mnist", "shapes")}
    return Finding(
        passed=all(ratio >= 0.8 for _, ratio, _ in found.values()),
        number="held-out over seen pairs: " + ", ".join(f"{name} {ratio:.2f}" for name, (_, ratio, _) in found.items()),
        rows=[row for rows, _, _ in found.values() for row in rows],
        control="; ".join(control for *_, control in found.values()),
    )


CLAIM = Claim(
    id="E18",
    title="Composition of words",
    sentence="Text conditioning composes: pairs of attribute and class that were held out of training are drawn as asked.",
    source="[LDM, 3.3]; our reading",
    criterion="share with class and attribute right on held-out pairs >= 0.8 x that on seen pairs, on both datasets",
    setting="pairs of garment and tone (3 of 30), on `shapes` of figure and colour (4 of 24), in no training image of the "
    "generative network; the base alone, on `shapes` with an autoencoder of its own",
    run=run,
)
