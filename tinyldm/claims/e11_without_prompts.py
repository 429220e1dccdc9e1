"""E11: without any prompt the model recognises what the edges show."""

import torch

from tinyldm.claims.claim import Claim, Finding, share_of, with_interval
from tinyldm.claims.lab import BaseArm, ControlArm, Lab
from tinyldm.classifier import Classifier, ClassifierStage
from tinyldm.config import FitConfig
from tinyldm.dataset import Columns
from tinyldm.pictures import hint_image
from tinyldm.training import fit


def edge_cnn(lab: Lab) -> torch.Tensor:
    """The class (n,) that a classifier which sees only edges gives to the test hints."""
    data, hints = lab.data("train"), lab.train_hints()
    torch.manual_seed(0)
    classifier = Classifier(1, [len(data.names["class"])])
    config = FitConfig(steps=min(1500, 3 * lab.settings.control_fit.steps), batch_size=128, ema=0.99)
    columns = Columns(hints * 255, data.labels["class"][:, None])

    def train(folder) -> None:
        fit(ClassifierStage(classifier), columns, config, lab.run(0), folder, "edges")

    lab.kept("edge-cnn", classifier, train)
    with torch.no_grad():
        return classifier(lab.hints.to(lab.device) * 2 - 1)[0].argmax(-1).cpu()


def linear_probe(lab: Lab) -> torch.Tensor:
    """The class (n,) that ridge regression on edge pixels gives to the test hints: a closed form."""
    data, ones = lab.data("train"), torch.nn.functional.one_hot
    x = torch.nn.functional.pad(lab.train_hints().flatten(1).double(), (0, 1), value=1.0)
    y = ones(data.labels["class"], len(data.names["class"])).double()
    weights = torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1]), x.T @ y)
    return (torch.nn.functional.pad(lab.hints.flatten(1).double(), (0, 1), value=1.0) @ weights).argmax(-1)


def run(lab: Lab, seeds: list[int]) -> Finding:
    label, samples = lab.test.labels["class"], []
    for seed in seeds:
        ldm, controlnet = lab.base(BaseArm(seed)), lab.control(ControlArm(BaseArm(seed), seed))
        samples.append(lab.controlled(ldm, controlnet, [""] * len(lab.test)))
    seen = {"ControlNet, no prompt": [s.seen["class"] for s in samples]}
    seen |= {"CNN on edges": [edge_cnn(lab)], "linear probe on edges": [linear_probe(lab)]}
    shuffled = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(0))]
    scores = {name: share_of(s, label) for name, s in seen.items()}
    ratio = scores["ControlNet, no prompt"][0] / scores["CNN on edges"][0]
    return Finding(
        passed=ratio >= 0.8,
        number=f"ACC_e without prompts over that of a CNN on edges: {ratio:.2f}",
        rows=[{"who": name, "class right": with_interval(*score)} for name, score in scores.items()],
        control=f"shuffled labels score {share_of([s.seen['class'] for s in samples], shuffled)[0]:.2f} (chance about 0.1)",
        pictures=[("hints", list(hint_image(lab.hints[:12]))), ("no prompt", list(samples[0].x[:12]))],
    )


CLAIM = Claim(
    id="E11",
    title="Content without prompts",
    sentence="ControlNet recognises the content of the condition without any prompt.",
    source="[CN, Fig. 7 and 11]",
    criterion="ACC_e with the empty prompt >= 0.8 x the accuracy of a CNN that is trained on edges alone",
    setting='the default ControlNet of each seed, prompt ""',
    run=run,
)
