"""The small classifier that judges generated images; `python -m tinyldm.classifier` trains and saves it.

It sees only real images of the train split, held-out pairs included, so that it can judge those too. Its features are
also those of the Fréchet distance. The committed weights are in tinyldm/classifiers/, with checksum and test accuracy.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyldm import files
from tinyldm.cli import parse, run_command
from tinyldm.config import FitConfig, Flat, RunConfig
from tinyldm.data import load
from tinyldm.dataset import Columns, Dataset, to_float
from tinyldm.errors import UserError
from tinyldm.ldm import load_weights
from tinyldm.training import fit

FOLDER = Path(__file__).parent / "classifiers"
WIDTHS = (32, 64, 96, 128)


class Classifier(nn.Module):
    """x (b, k, 32, 32) in [-1, 1] -> features (b, 128) -> one tuple of logits (b, values) per label."""

    def __init__(self, channels: int, values: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[0], 3, padding=1), nn.GroupNorm(8, WIDTHS[0]), nn.SiLU()]
        for c_in, c in pairwise(WIDTHS):
            layers += [nn.Conv2d(c_in, c, 3, padding=1, stride=2), nn.GroupNorm(8, c), nn.SiLU()]
        layers += [nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(WIDTHS[-1], n) for n in values)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.features(x)
        return tuple(head(features) for head in self.heads)


@dataclass
class Judge:
    """A trained classifier with the names of its labels; takes images of any resolution in any number."""

    classifier: Classifier
    labels: tuple[str, ...]  # "class" first, as in Dataset.labels

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (n, k, H, W) in [-1, 1] -> features (n, 128), float32 on the CPU, and predictions name -> (n,)."""
        size = (32, 32)
        parts = [F.interpolate(part, size, mode="area") if part.shape[-2:] != size else part for part in x.split(500)]
        features = torch.cat([self.classifier.features(part.clamp(-1, 1)) for part in parts])
        predictions = [head(features).argmax(-1).cpu() for head in self.classifier.heads]
        return features.cpu(), dict(zip(self.labels, predictions, strict=True))


def load_judge(dataset: str) -> Judge:
    """The committed classifier of a dataset. Raises UserError if there is none or it is damaged."""
    remedy = f"train it with 'python -m tinyldm.classifier --dataset {dataset}'"
    card = files.read_json(FOLDER / f"{dataset}.json", remedy)
    classifier = Classifier(card["channels"], card["values"])
    load_weights(classifier, FOLDER / f"{dataset}.safetensors", card["sha256"], remedy)
    return Judge(classifier.requires_grad_(False), tuple(card["accuracy"]))


def shifted(images: Tensor) -> Tensor:
    """Images (b, k, H, W) moved together by up to two pixels each way, the edge repeated."""
    H, W = images.shape[2:]
    top, left = torch.randint(0, 5, (2,)).tolist()
    return F.pad(images, (2, 2, 2, 2), mode="replicate")[:, :, top : top + H, left : left + W]


class ClassifierStage(nn.Module):
    """Batches (images uint8 (b, k, H, W), labels (b, number of labels)) -> the sum of their cross-entropies."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.classifier(shifted(to_float(images)))
        return sum(F.cross_entropy(x, y) for x, y in zip(logits, labels.unbind(1), strict=True))


def accuracy(judge: Judge, data: Dataset) -> dict[str, float]:
    """Share of images whose prediction is right, for each label."""
    _, predictions = judge(to_float(data.images))
    return {name: (predictions[name] == data.labels[name]).float().mean().item() for name in judge.labels}


@dataclass(frozen=True)
class ClassifierConfig:
    """Train the evaluation classifier on real images and save it, with its test accuracy, into `out`."""

    dataset: Literal["fashion-mnist", "shapes"] = "fashion-mnist"
    data_dir: Path | None = None
    """Folder with Fashion-MNIST's four idx files; by default $TINYLDM_DATA, then the usual places."""
    out: Path = FOLDER
    run: Annotated[RunConfig, Flat] = RunConfig(precision="fp32")
    fit: Annotated[FitConfig, Flat] = FitConfig(
        steps=9000, batch_size=64, lr=2e-3, warmup=100, weight_decay=0.05, ema=0.999, preview_every=1000
    )


def main(config: ClassifierConfig) -> None:
    """Train, save weights and card (sizes, checksum, test accuracy), print the accuracy."""
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"--out {config.out}: is a file; name a folder")
    config.out.mkdir(parents=True, exist_ok=True)
    train, test = (load(config.dataset, s, data_dir=config.data_dir, held_out=True) for s in ("train", "test"))
    torch.manual_seed(config.run.seed)
    values = [len(names) for names in train.names.values()]
    classifier = Classifier(train.images.shape[1], values)
    data = Columns(train.images, torch.stack(list(train.labels.values()), dim=1))
    with tempfile.TemporaryDirectory() as log:  # of a few minutes' training, only the weights and the card are kept
        fit(ClassifierStage(classifier), data, config.fit, config.run, Path(log), f"classifier {config.dataset}")
    path = config.out / f"{config.dataset}.safetensors"
    files.write_tensors(path, classifier.state_dict())
    score = accuracy(Judge(classifier.cpu().requires_grad_(False), tuple(train.labels)), test)
    card = {"channels": train.images.shape[1], "values": values, "sha256": files.sha256(path), "accuracy": score}
    card |= {"test_images": len(test), "seed": config.run.seed, "steps": config.fit.steps}
    files.write_json(config.out / f"{config.dataset}.json", card)
    print(f"{path}: test accuracy {score}")


if __name__ == "__main__":
    run_command(lambda: main(parse(ClassifierConfig)))
