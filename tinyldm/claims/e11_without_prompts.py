"""E11: without any prompt the model recognises what the edges show."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tinyldm.claims.checks import common
from tinyldm.claims.claim import COMMON, Claim, Finding, Row, found
from tinyldm.claims.hints import HINTS, broken
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import ControlArm
from tinyldm.claims.sweep import ratio, shuffled
from tinyldm.claims.verdict import Criterion, Noise, Precondition
from tinyldm.data.dataset import Columns
from tinyldm.data.pictures import hint_image
from tinyldm.evaluate.judge import Classifier, Judge, classification_loss
from tinyldm.training.checkpoint import Checkpoints
from tinyldm.training.fit import fit
from tinyldm.training.settings import FitSettings

MISSING = 0.7  # of the edges, in ambiguous hints
READS = (
    "ACC_e without prompt over what a CNN on edges, or the judge of pictures, sees if it is less"
)
ROOM = "that ceiling less chance"


def edge_cnn(lab: Lab) -> Judge:
    """A classifier that sees only edges."""
    data, steps = lab.data["train"], min(2000, 3 * lab.settings.control_fit.steps)
    torch.manual_seed(0)
    classifier = Classifier(1, [len(data.names["class"])])
    how = FitSettings(steps=steps, batch_size=64, ema=0.99)
    columns = Columns(255 * lab.hints().byte(), data.labels["class"][:, None])

    def train(folder: Path) -> None:
        fit(
            partial(classification_loss, classifier),
            [classifier],
            columns,
            how,
            checkpoints=Checkpoints(folder),
            name="edges",
            seed=0,
            machine=replace(lab.machine, capture=False),  # the shift is drawn on the CPU
        )

    lab.trained({"kind": "edge-cnn", **lab.data_key, "fit": asdict(how)}, classifier, train)
    return Judge(classifier.cpu(), ("class",))


def run(lab: Lab) -> Finding:
    """The classes recognised without a prompt, against those that a classifier of edges recognises."""
    panel, arm = lab.wide, ControlArm()
    label, judge = panel.labels["class"], edge_cnn(lab)

    def right(hints: Tensor) -> Tensor:
        """Where the classifier of edges is right, (1, n)."""
        return (judge(hint_image(hints))[1]["class"] == label).double()[None]

    rows, swept = list[Row](), None
    for name, hints in (
        ("whole", panel.hints),
        ("30 % of the edges", broken(panel.hints, MISSING)),
    ):
        sweep = lab.sweep(arm, [""] * len(panel), panel=panel, hints=[hints])
        swept = swept or sweep
        row = {"hints": name, "ACC_e without prompt": sweep.acc}
        rows.append({**row, "CNN on edges": sweep.measure(right(hints)).estimate})
    assert swept is not None
    shapes = lab.sweep(
        ControlArm(condition="silhouette"), [""] * len(lab.panel), hints=[silhouettes(lab)]
    )
    rows.append({"hints": "silhouettes", "ACC_e without prompt": shapes.acc, "CNN on edges": None})
    cnn = right(panel.hints)
    seen = panel.judge(lab.round_trip(panel.data.images))[1][
        "class"
    ]  # what can be seen of real ones
    ceiling = min(cnn, (seen == label).double()[None], key=lambda x: x.mean().item())
    columns = swept.hits("class"), ceiling.expand(len(lab.seeds), -1)
    measured = {READS: swept.measure(*columns, statistic=ratio)}
    chance = swept.hits("class", label[shuffled(len(label))]).mean().item()
    checks = {**common(lab, [arm]), ROOM: ceiling.mean().item() - chance}
    return Finding(
        measured,
        checks,
        found(measured),
        rows,
        notes=[
            f"Shuffled labels score {chance:.2f}; the judge of pictures "
            f"{panel.accuracy['class']:.2f} on real ones"
        ],
        pictures={"hints": panel.hints, "no prompt": swept.x},
    )


def silhouettes(lab: Lab) -> Tensor:
    """The panel's, (n, 1, H, W)."""
    return HINTS["silhouette"](lab.panel.data.images)


CLAIM = Claim(
    id="E11",
    title="Content without prompts",
    sentence="ControlNet recognises the content of the condition without any prompt.",
    source="[CN, Fig. 7 and 11]",
    criteria=(Criterion(READS, low=0.8, holds=1.1, fails=0.45, noise=Noise(0.8, 0.03, 113, 3)),),
    preconditions=(*COMMON, Precondition(ROOM, low=0.2)),
    setting="the ControlNet of each seed, the empty prompt, 2,000 samples; ambiguous hints (30 % "
    "of the edges, silhouettes) beside",
    run=run,
    before="PASS (0.87), with whole and clear edges only",
)
