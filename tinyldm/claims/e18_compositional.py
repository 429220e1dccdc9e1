"""E18: text conditions compositionally: pairs that were never seen together."""

import torch

from tinyldm.claims.claim import Claim, Finding, share_of, with_interval
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.data import load
from tinyldm.dataset import Dataset


def right(lab: Lab, data: Dataset, prompts: list[str], seeds: list[int]) -> torch.Tensor:
    """For each sample (n,): does the judge see both the class and the attribute of the data's labels?"""
    hits = []
    for seed in seeds:
        seen = lab.measured(lab.sample(lab.base(BaseArm(seed)), prompts)).seen
        hits.append(torch.stack([seen[name] == data.labels[name] for name in lab.judge.labels[:2]]).all(0))
    return torch.cat(hits)


def run(lab: Lab, seeds: list[int]) -> Finding:
    everything = load(lab.settings.dataset, "test", held_out=True)
    unseen = everything.subset(everything.held_out)
    unseen = unseen.subset(torch.arange(min(lab.settings.n, len(unseen))))
    rows, scores, yes = [], {}, torch.tensor(True)
    for name, data in (("seen pairs", lab.test), ("held-out pairs", unseen)):
        hit = right(lab, data, data.captions.full(), seeds)
        scores[name] = share_of(hit, yes)
        rows.append({"prompts": name, "class and attribute right": with_interval(*scores[name])})
    order = torch.randperm(len(lab.test), generator=torch.Generator().manual_seed(0)).tolist()
    captions = lab.test.captions.full()
    shuffled = share_of(right(lab, lab.test, [captions[i] for i in order], seeds), yes)
    rows.append({"prompts": "seen pairs, shuffled", "class and attribute right": with_interval(*shuffled)})
    real = lab.judge(unseen.images.float() / 127.5 - 1)[1]
    judge = torch.stack([real[n] == unseen.labels[n] for n in lab.judge.labels[:2]]).all(0).float().mean().item()
    ratio = scores["held-out pairs"][0] / max(1e-9, scores["seen pairs"][0])
    return Finding(
        passed=ratio >= 0.8,
        number=f"held-out pairs {scores['held-out pairs'][0]:.2f}, seen pairs {scores['seen pairs'][0]:.2f}: ratio {ratio:.2f}",
        rows=rows,
        control=f"shuffled prompts score {shuffled[0]:.2f}; the judge itself is right on {judge:.2f} of real held-out images",
    )


CLAIM = Claim(
    id="E18",
    title="Composition of words",
    sentence="Text conditioning composes: pairs of attribute and class that were held out of training are drawn as asked.",
    source="[LDM, 3.3]; our reading",
    criterion="share with class and attribute right on held-out pairs >= 0.8 x that on seen pairs",
    setting="three pairs of tone and garment are in no training image of any generative network; the base alone",
    run=run,
)
