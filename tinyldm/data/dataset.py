"""What a dataset is: images, captions to draw from, and labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

SPLITS = ("train", "validation", "test")


@dataclass
class Captions:
    """Per image the captions to draw from; the first is complete, it names every label."""

    choices: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.choices)

    def full(self) -> list[str]:
        """The complete caption of each image."""
        return [c[0] for c in self.choices]

    def all(self) -> list[str]:
        """Every caption of every image."""
        return [caption for choices in self.choices for caption in choices]


@dataclass
class Tokens:
    """The tokens of the captions to draw from: those of choice j of image i are `table[choices[i, j]]`."""

    table: Tensor  # (u, l) long, of each caption that there is
    choices: Tensor  # (n, most choices) long, rows of the table
    counts: Tensor  # (n,) long: how many of them an image has

    @classmethod
    def of(cls, captions: Captions, encode: Callable[[list[str]], Tensor]) -> "Tokens":
        """With the tokens (u, l) that `encode` makes of captions (u)."""
        every = list(dict.fromkeys(captions.all()))
        row = {caption: i for i, caption in enumerate(every)}
        rows = [torch.tensor([row[caption] for caption in c]) for c in captions.choices]
        counts = torch.tensor([len(c) for c in captions.choices])
        return cls(encode(every), nn.utils.rnn.pad_sequence(rows, batch_first=True), counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Tokens (b, l) of one caption per index (b,), drawn by torch's global generator."""
        draws = torch.rand(len(indices), device=indices.device) * self.counts[indices]
        return self.table[self.choices[indices, draws.long()]]

    def to(self, device: torch.device) -> "Tokens":
        return Tokens(*(x.to(device) for x in (self.table, self.choices, self.counts)))


def drop_captions(tokens: Tensor, share: float) -> Tensor:
    """Replace this share of captions (b, l), drawn by torch's global generator, by "" [CFG; CN, 3.3]."""
    keep = torch.rand(len(tokens), device=tokens.device) >= share
    return tokens * rearrange(keep, "b -> b 1")  # 0 pads


class Columns:
    """Columns of equal length, indexed together: `Columns(z, tokens)[indices]` is a batch."""

    def __init__(self, *columns: Tensor | Tokens):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, indices: Tensor) -> tuple:
        return tuple(column[indices] for column in self.columns)

    def to(self, device: torch.device) -> "Columns":
        return Columns(*(column.to(device) for column in self.columns))


@dataclass
class Dataset:
    """n images with captions and labels."""

    images: Tensor  # (n, k, H, W), uint8
    captions: Captions
    labels: dict[str, Tensor]  # name -> (n,) long; "class" comes first, then the attributes
    names: dict[str, tuple[str, ...]]  # name -> the word for each value
    held_out: Tensor  # (n,) bool: a pair of class and attribute that no generative network sees
    # (n,) long: equal for images of one drawing; by default none are
    origins: Tensor = torch.empty(0).long()
    hints: Tensor | None = None  # (n, 1, H, W) bool, if they are given and not to be found

    def __post_init__(self) -> None:
        if not len(self.origins):
            self.origins = torch.arange(len(self))

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "Dataset":
        """The images at these indices (m,)."""
        captions = Captions([self.captions.choices[i] for i in indices.tolist()])
        labels = {name: values[indices] for name, values in self.labels.items()}
        out, origins = self.held_out[indices], self.origins[indices]
        hints = None if self.hints is None else self.hints[indices]
        return Dataset(self.images[indices], captions, labels, self.names, out, origins, hints)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float x in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """x in [-1, 1], clamped -> uint8 0..255, rounded."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
