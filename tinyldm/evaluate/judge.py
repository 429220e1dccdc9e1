"""The judge: a small classifier of real images that judges generated ones.

`python -m tinyldm.evaluate.judge` trains and saves it. It sees only the train split, held-out pairs
included, so that it can judge those too. Its features are also those of the Fréchet distance. The
committed weights are in classifiers/, with checksum and test accuracy.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from tinyldm.data.colour import colour_of
from tinyldm.data.dataset import Columns, Dataset, to_float, to_uint8
from tinyldm.data.fetch import cache
from tinyldm.data.folder import folder_checksum
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.training.checkpoint import Checkpoints
from tinyldm.training.fit import fit
from tinyldm.training.machine import process
from tinyldm.training.networks import load_weights, save_weights
from tinyldm.training.run_folder import load_data
from tinyldm.training.settings import DataSettings, FitSettings, Flat, MachineSettings

FOLDER = Path(__file__).parent / "classifiers"
WIDTHS = (32, 64, 96, 128)
SIZE = (32, 32)
Measure = Callable[[Tensor], Tensor]  # images uint8 (n, k, H, W) -> the value that each has (n,)
MEASURED: dict[str, dict[str, Measure]] = {"emoji": {"colour": colour_of}}


class Classifier(nn.Module):
    """x (b, k, 32, 32) in [-1, 1] -> features (b, 128) -> one tuple of logits (b, values) per label."""

    def __init__(self, channels: int, values: Sequence[int]):
        super().__init__()
        self.channels = channels
        layers: list[nn.Module] = []
        for c_in, c in pairwise((channels, *WIDTHS)):
            conv = nn.Conv2d(c_in, c, 3, padding=1, stride=2 if layers else 1)
            layers += [conv, nn.GroupNorm(8, c), nn.SiLU()]
        layers += [nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(WIDTHS[-1], n) for n in values)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.body(x)
        return tuple(head(features) for head in self.heads)


@dataclass
class Judge:
    """A trained classifier with the names of its labels; takes images of any resolution in any number."""

    classifier: Classifier | None  # None: it sees nothing
    learnt: tuple[str, ...]  # the labels that it sees, "class" first, as in Dataset.labels
    measured: dict[str, Measure] = field(default_factory=dict)  # others, without a network
    device: torch.device = torch.device("cpu")

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.learnt, *self.measured)

    def to(self, device: torch.device) -> None:
        """Move the classifier; what it returns stays on the CPU."""
        self.device = device
        if self.classifier:
            self.classifier.to(device)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (n, k, H, W) in [-1, 1] -> features (n, 128), float32, and predictions name -> (n,)."""
        if self.classifier is None:
            return torch.zeros(len(x), 0), {}
        channels = self.classifier.channels
        scaled = (
            F.interpolate(
                with_channels(part, channels).to(self.device).clamp(-1, 1), SIZE, mode="area"
            )
            for part in x.split(500)
        )
        features = torch.cat([self.classifier.body(part) for part in scaled])
        seen = [head(features).argmax(-1).cpu() for head in self.classifier.heads]
        found = {name: measure(to_uint8(x)) for name, measure in self.measured.items()}
        return features.cpu(), dict(zip(self.learnt, seen, strict=True)) | found


def with_channels(x: Tensor, channels: int) -> Tensor:
    """Images (n, k, H, W) in colour as grey ones, or the other way, where a judge learnt from those."""
    if x.shape[1] == channels:
        return x
    return x.mean(1, keepdim=True).expand(-1, channels, -1, -1)


BLIND = Judge(None, ())  # where nobody trained one


def path_of(dataset: str, out: Path | None = None) -> Path:
    """Where a dataset's judge is: in the package, or for a user's folder in the cache, by its content."""
    folder = DataSettings(dataset).folder
    name = folder_checksum(folder)[:32] if folder else dataset
    return (out or (cache("judges") if folder else FOLDER)) / f"{name}.safetensors"


def find_judge(dataset: str) -> Judge:
    """The judge of a dataset; BLIND for a user's folder that has none. Raises UserError if it is damaged."""
    if DataSettings(dataset).folder and not path_of(dataset).exists():
        return BLIND
    return load_judge(dataset)


def load_judge(dataset: str) -> Judge:
    """The classifier of a dataset. Raises UserError if there is none or it is damaged."""
    remedy = f"train it with 'python -m tinyldm.evaluate.judge --dataset {dataset}'"
    path = path_of(dataset)
    card = files.read_json(path.with_suffix(".json"), remedy)
    with files.expecting("a judge's card", path.with_suffix(".json"), remedy):
        with torch.device("meta"):
            classifier = Classifier(card["channels"], card["values"])
        checksum, learnt = str(card["sha256"]), tuple(card["labels"])
    classifier = load_weights(path, classifier, checksum, remedy)
    return Judge(classifier, learnt, MEASURED.get(dataset, {}))


def classification_loss(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """The sum of the cross-entropies of labels (b, m) on images uint8 (b, k, H, W), to ().

    The images of a batch are shifted together by up to two pixels each way.
    """
    shift = v2.RandomCrop(images.shape[-2:], padding=2, padding_mode="edge")
    logits = classifier(to_float(shift(images)))
    return torch.stack([*map(F.cross_entropy, logits, labels.unbind(1))]).sum()


def accuracy(seen: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """Share of predictions (n,) that are right, for each label."""
    return {name: (found == labels[name]).float().mean().item() for name, found in seen.items()}


@dataclass(frozen=True)
class JudgeSettings:
    """Train the judge on real images and save it, with its test accuracy, into `out`.

    A folder of pictures needs a folder for each class.
    """

    data: Annotated[DataSettings, Flat] = DataSettings()
    out: Path | None = None
    """By default the package, for a user's own folder of pictures the cache."""
    run: Annotated[MachineSettings, Flat] = MachineSettings(precision="fp32")
    fit: Annotated[FitSettings, Flat] = FitSettings(
        steps=9000,
        batch_size=64,
        lr=2e-3,
        warmup=100,
        weight_decay=0.05,
        ema=0.999,
        preview_every=1000,
    )


def train(settings: JudgeSettings, data: Dataset) -> Judge:
    """A judge for this dataset; of its run folder only the weights are kept."""
    run = settings.run
    torch.manual_seed(run.seed)
    measured = MEASURED.get(settings.data.dataset, {})
    learnt = tuple(name for name in data.labels if name not in measured)
    classifier = Classifier(data.images.shape[1], [len(data.names[name]) for name in learnt])
    columns = Columns(data.images, torch.stack([data.labels[name] for name in learnt], dim=1))
    with (
        tempfile.TemporaryDirectory() as folder,
        process(run.device, run.precision, run.threads) as machine,
    ):
        machine.place(classifier)
        fit(
            partial(classification_loss, classifier),
            [classifier],
            columns,
            settings.fit,
            checkpoints=Checkpoints(Path(folder)),
            name=f"judge {settings.data.dataset}",
            seed=run.seed,
            machine=replace(machine, capture=False),  # the shift is drawn on the CPU
        )
    return Judge(classifier.cpu().requires_grad_(False), learnt, measured)


def main(settings: JudgeSettings) -> None:
    """Train, save weights and card (sizes, checksum, test accuracy), print the accuracy."""
    dataset = settings.data.dataset
    path = path_of(dataset, settings.out)
    files.check_writable("--out", path)
    if path.exists():
        raise UserError(f"--out {path.parent}: holds {path.name}; move it, or name another folder")
    data, test = load_data(settings.data, "train", "test", held_out=True)
    if len(data.names["class"]) < 2:
        raise UserError(
            f"--dataset {dataset}: a judge needs classes: a folder for each, and no metadata"
        )
    judge = train(settings, data)
    assert judge.classifier
    _, seen = judge(to_float(test.images))
    card = {
        "channels": data.images.shape[1],
        "values": [len(data.names[name]) for name in judge.learnt],
        "labels": judge.learnt,
        "sha256": save_weights(path, judge.classifier),
        "accuracy": accuracy(seen, test.labels),
        "test_images": len(test),
        "seed": settings.run.seed,
        "steps": settings.fit.steps,
    }
    files.write_json(path.with_suffix(".json"), card)
    print(f"{path}: test accuracy {card['accuracy']}")


if __name__ == "__main__":
    run_command(lambda: main(parse(JudgeSettings)))
