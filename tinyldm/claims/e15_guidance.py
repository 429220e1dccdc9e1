"""E15: guidance buys fidelity with diversity."""

import torch

from tinyldm.claims.claim import Claim, Finding, errorbars, share_of, spread, with_interval
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.metrics import frechet_distance, precision_recall

SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)


def run(lab: Lab, seeds: list[int]) -> Finding:
    captions, label, rows, drawn = lab.test.captions.full(), lab.test.labels["class"], [], []
    for w in SCALES:
        samples = [lab.measured(lab.sample(lab.base(BaseArm(s)), captions, guidance=w)) for s in seeds]
        acc = share_of([s.seen["class"] for s in samples], label)
        fd = spread([frechet_distance(s.features, lab.reference) for s in samples])
        recall = spread([precision_recall(s.features, lab.reference)[1] for s in samples])
        rows.append({"guidance": w, "FD": fd[0], "ACC_t": acc[0], "interval": with_interval(*acc), "recall": recall[0]})
        drawn.append({"FD, all seeds": fd, "ACC_t": acc, "recall, all seeds": recall})
    best = min(rows, key=lambda row: row["FD"])["guidance"]
    rises = rows[-1]["ACC_t"] > rows[0]["ACC_t"]
    falls = rows[-1]["recall"] < rows[0]["recall"]
    shuffled = [captions[i] for i in torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))]
    chance = [lab.measured(lab.sample(lab.base(BaseArm(s)), shuffled)).seen["class"] for s in seeds]

    def draw(figure) -> None:
        for ax, key in zip(figure.subplots(1, 3), drawn[0], strict=True):
            ax.errorbar(SCALES, *errorbars([found[key] for found in drawn]), fmt="ko-", capsize=3)
            ax.set(xlabel="guidance w", ylabel=key)

    return Finding(
        passed=best > 1 and rises and falls,
        number=f"smallest FD at w = {best:g}; ACC_t {rows[0]['ACC_t']:.2f} to {rows[-1]['ACC_t']:.2f}, recall "
        f"{rows[0]['recall']:.2f} to {rows[-1]['recall']:.2f} from w = 1 to {SCALES[-1]:g}",
        rows=rows,
        control=f"shuffled prompts score {share_of(chance, label)[0]:.2f} (chance about 0.1)",
        draw=draw,
    )


CLAIM = Claim(
    id="E15",
    title="Guidance trades diversity for fidelity",
    sentence="Classifier-free guidance improves fidelity, best at a moderate scale, at the price of diversity.",
    source="[LDM, Tab. 10]",
    criterion="smallest FD at w > 1; ACC_t higher and recall lower at the largest w than at w = 1",
    setting="the base alone, test captions",
    run=run,
)
