"""What a dataset is: images, captions to draw from, and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")


@dataclass
class Captions:
    """Per image the captions to draw from; the first is complete, it names every label."""

    choices: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.choices)

    def __getitem__(self, indices: Tensor) -> list[str]:
        """One caption per index (b,), drawn by torch's global generator."""
        choices = [self.choices[i] for i in indices.tolist()]
        draws = torch.rand(len(choices)).tolist()
        return [c[int(u * len(c))] for c, u in zip(choices, draws, strict=True)]

    def full(self) -> list[str]:
        """The complete caption of each image."""
        return [c[0] for c in self.choices]

    def all(self) -> list[str]:
        """Every caption of every image."""
        return [caption for choices in self.choices for caption in choices]


def drop_captions(captions: Sequence[str], share: float) -> list[str]:
    """Replace this share of captions, drawn by torch's global generator, by "" [CFG; CN, 3.3]."""
    keep = (torch.rand(len(captions)) >= share).tolist()
    return [caption if kept else "" for caption, kept in zip(captions, keep, strict=True)]


class Columns:
    """Columns of equal length, indexed together: `Columns(z, captions)[indices]` is a batch."""

    def __init__(self, *columns: Tensor | Captions):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, indices: Tensor) -> tuple:
        return tuple(column[indices] for column in self.columns)


@dataclass
class Dataset:
    """n images with captions and labels."""

    images: Tensor  # (n, k, H, W), uint8
    captions: Captions
    labels: dict[str, Tensor]  # name -> (n,) long; "class" comes first, then the attributes
    names: dict[str, tuple[str, ...]]  # name -> the word for each value
    held_out: Tensor  # (n,) bool: a pair of class and attribute that no generative network sees

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "Dataset":
        """The images at these indices (m,)."""
        captions = Captions([self.captions.choices[i] for i in indices.tolist()])
        labels = {name: values[indices] for name, values in self.labels.items()}
        return Dataset(self.images[indices], captions, labels, self.names, self.held_out[indices])


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float x in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """x in [-1, 1], clamped -> uint8 0..255, rounded."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
