"""The datasets by name."""

from collections.abc import Callable
from pathlib import Path

from tinyldm.data.dataset import Dataset
from tinyldm.data.emoji import emoji
from tinyldm.data.fashion_mnist import fashion_mnist
from tinyldm.data.shapes import shapes

DATASETS: dict[str, Callable[..., Dataset]] = {
    "fashion-mnist": fashion_mnist,
    "shapes": shapes,
    "emoji": emoji,
}


def load(
    name: str,
    split: str,
    resolution: int = 32,
    data_dir: Path | None = None,
    limit: int = 0,
    held_out: bool = False,
    views: int = 1,
) -> Dataset:
    """A split ("train", "validation", "test") of a dataset: its first `limit` images, all if that is 0.

    The held-out pairs of class and attribute are left out unless `held_out`: no generative network is
    trained on them, only the classifier that judges them is. The training split of emoji has `views`
    versions of each drawing; the other datasets have one.
    """
    more = {"views": views} if name == "emoji" else {}
    return DATASETS[name](split, resolution, data_dir, limit, held_out, **more)
