"""`shapes`: coloured figures on a coloured background, drawn here, exact in every label. Needs no files."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch

from tinyldm.dataset import SPLITS, Captions, Dataset

SHAPES = ("circle", "square", "triangle", "ring")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 180),
    "white": (245, 245, 245),
}
BACKGROUNDS = {"black": (10, 10, 10), "grey": (120, 120, 120), "brown": (110, 70, 30)}
HELD_OUT = (("circle", "green"), ("square", "yellow"), ("triangle", "blue"), ("ring", "red"))
SIZES = {"train": 20_000, "validation": 1_000, "test": 2_000}
RADII = {"small": 0.13, "large": 0.22}  # as a share of the picture


@dataclass(frozen=True)
class Figure:
    """One figure of a scene: what it is, and its centre as a share of the picture, from the upper left corner."""

    size: str
    colour: str
    shape: str
    x: float
    y: float

    @property
    def words(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


def random_figure(rng: np.random.Generator, size: str, x: float, y: float) -> Figure:
    x, y = (v + rng.uniform(-0.05, 0.05) for v in (x, y))
    return Figure(size, str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), x, y)


def random_scene(rng: np.random.Generator) -> tuple[str, list[Figure], str]:
    """A background, its one or two figures, the larger first, and the caption that tells all of it."""
    background = str(rng.choice(list(BACKGROUNDS)))
    if rng.random() < 0.5:
        figures = [random_figure(rng, str(rng.choice(list(RADII))), 0.5, 0.5)]
        return background, figures, f"a {figures[0].words} on a {background} background"
    dx, dy, relation = [(0, -1, "above"), (0, 1, "below"), (-1, 0, "left of"), (1, 0, "right of")][rng.integers(4)]
    large = random_figure(rng, "large", 0.5 + 0.22 * dx, 0.5 + 0.22 * dy)
    small = random_figure(rng, "small", 0.5 - 0.28 * dx, 0.5 - 0.28 * dy)
    return background, [large, small], f"a {large.words} {relation} a {small.words} on a {background} background"


def draw_figure(canvas: np.ndarray, figure: Figure) -> None:
    """Paint a figure onto an RGB canvas (s, s, 3), in place."""
    s, colour = len(canvas), COLOURS[figure.colour]
    r, x, y = (round(v * s) for v in (RADII[figure.size], figure.x, figure.y))
    if figure.shape == "square":
        side = round(r * 0.9)
        cv2.rectangle(canvas, (x - side, y - side), (x + side, y + side), colour, -1)
    elif figure.shape == "triangle":
        cv2.fillPoly(canvas, [np.array([(x, y - r), (x - r, y + r), (x + r, y + r)])], colour)
    elif figure.shape == "ring":
        cv2.circle(canvas, (x, y), round(r * 0.8), colour, round(r * 0.4))
    else:
        cv2.circle(canvas, (x, y), r, colour, -1)


def draw_scene(background: str, figures: list[Figure], resolution: int) -> np.ndarray:
    """The picture (H, H, 3), uint8 RGB, drawn four times larger and averaged down."""
    canvas = np.full((4 * resolution, 4 * resolution, 3), BACKGROUNDS[background], dtype=np.uint8)
    for figure in figures:
        draw_figure(canvas, figure)
    return cv2.resize(canvas, (resolution, resolution), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=3)
def shapes(split: str, resolution: int = 32, data_dir: Path | None = None) -> Dataset:
    """Synthetic pictures (n, 3, H, H): one or two coloured figures on a coloured background; needs no files.

    Labels: class (4) and colour (6) of the larger figure, background (3). Held out is every image with a figure of
    HELD_OUT. Image i of a split is a pure function of the split and i.
    """
    scenes = [random_scene(np.random.default_rng((SPLITS.index(split), i))) for i in range(SIZES[split])]
    pictures = np.stack([draw_scene(background, figures, resolution) for background, figures, _ in scenes])
    names = {"class": SHAPES, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS)}
    values = [(f[0].shape, f[0].colour, background) for background, f, _ in scenes]
    columns = zip(names.items(), zip(*values, strict=True), strict=True)
    labels = {name: torch.tensor([words.index(v) for v in column]) for (name, words), column in columns}
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    held_out = [any((f.shape, f.colour) in HELD_OUT for f in figures) for _, figures, _ in scenes]
    return Dataset(images, Captions([(caption,) for *_, caption in scenes]), labels, names, torch.tensor(held_out))
