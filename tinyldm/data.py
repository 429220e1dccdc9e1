"""The datasets by name."""

from collections.abc import Callable
from pathlib import Path

import torch

from tinyldm.dataset import Dataset
from tinyldm.fashion_mnist import fashion_mnist
from tinyldm.shapes import shapes

DATASETS: dict[str, Callable[..., Dataset]] = {"fashion-mnist": fashion_mnist, "shapes": shapes}


def load(
    name: str,
    split: str,
    resolution: int = 32,
    data_dir: Path | None = None,
    limit: int = 0,
    held_out: bool = False,
) -> Dataset:
    """A split ("train", "validation", "test") of a dataset by name: its first `limit` images, all if that is 0.

    Without the held-out pairs of class and attribute, unless `held_out`: the generative networks are never trained on
    those, only the classifier that judges them is.
    """
    dataset = DATASETS[name](split, resolution, data_dir)
    dataset = dataset if held_out else dataset.subset(~dataset.held_out)
    return dataset.subset(torch.arange(min(limit, len(dataset)))) if limit else dataset
