"""E11: without any prompt the model recognises what the edges show."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import ControlArm, Lab
from tinyldm.claims.sweep import shares, shuffled
from tinyldm.data.dataset import Columns
from tinyldm.data.pictures import hint_image
from tinyldm.evaluate.judge import Classifier, Judge, classification_loss
from tinyldm.training.checkpoint import Checkpoints
from tinyldm.training.fit import fit
from tinyldm.training.settings import FitSettings


def edge_cnn(lab: Lab) -> Tensor:
    """The class (n,) that a classifier which sees only edges gives to the test hints."""
    data, steps = lab.data["train"], min(1500, 3 * lab.settings.control_fit.steps)
    torch.manual_seed(0)
    classifier = Classifier(1, [len(data.names["class"])])
    how = FitSettings(steps=steps, batch_size=128, ema=0.99)
    columns = Columns(255 * lab.hints().byte(), data.labels["class"][:, None])
    loss = partial(classification_loss, classifier)

    def train(folder: Path) -> None:
        fit(
            loss,
            [classifier],
            columns,
            how,
            checkpoints=Checkpoints(folder),
            name="edges",
            seed=0,
            machine=replace(lab.machine, capture=False),  # the shift is drawn on the CPU
        )

    lab.trained({"kind": "edge-cnn", **lab.data_key, "fit": asdict(how)}, classifier, train)
    _, seen = Judge(classifier.cpu(), ("class",))(hint_image(lab.panel.hints))
    return seen["class"]


def linear_probe(lab: Lab) -> Tensor:
    """The class (n,) that ridge regression on edge pixels gives to the test hints: a closed form."""
    hints = (lab.hints(), lab.panel.hints)
    x, test = (F.pad(h.flatten(1).double(), (0, 1), value=1.0) for h in hints)
    y = F.one_hot(lab.data["train"].labels["class"]).double()
    return (test @ torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1]), x.T @ y)).argmax(-1)


def run(lab: Lab) -> Finding:
    label, sweep = lab.panel.labels["class"], lab.sweep(ControlArm(), [""] * len(lab.panel))
    scores = {
        "ControlNet, no prompt": sweep.acc,
        "CNN on edges": shares([edge_cnn(lab)], label),
        "linear probe on edges": shares([linear_probe(lab)], label),
    }
    ratio = sweep.acc.mean / scores["CNN on edges"].mean
    chance = shares(sweep.classes, label[shuffled(len(label))])
    return Finding(
        passed=ratio >= 0.8,
        number=f"ACC_e without prompts over that of a CNN on edges: {ratio:.2f}",
        rows=[{"who": name, "class right": score} for name, score in scores.items()],
        control=f"shuffled labels score {chance.mean:.2f} (chance about 0.1)",
        pictures={"hints": lab.panel.hints, "no prompt": sweep.x},
    )


CLAIM = Claim(
    id="E11",
    title="Content without prompts",
    sentence="ControlNet recognises the content of the condition without any prompt.",
    source="[CN, Fig. 7 and 11]",
    criterion="ACC_e with the empty prompt >= 0.8 x the accuracy of a CNN that is trained on "
    "edges alone",
    setting='the default ControlNet of each seed, prompt ""',
    run=run,
)
