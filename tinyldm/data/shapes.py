"""`shapes`: coloured figures on a coloured background, drawn here, exact in every label. Needs no files."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from einops import rearrange

from tinyldm.data.dataset import SPLITS, Captions, Dataset

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
RELATIONS = ((0, -1, "above"), (0, 1, "below"), (-1, 0, "left of"), (1, 0, "right of"))
NAMES = {"class": SHAPES, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS)}


class Figure(NamedTuple):
    """One figure of a scene: what it is, and where its centre is, as a share of the picture."""

    size: str
    colour: str
    shape: str
    x: float
    y: float

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """A background, its one or two figures, the larger first, and the caption that tells all of it."""

    background: str
    figures: tuple[Figure, ...]
    caption: str

    @property
    def held_out(self) -> bool:
        return any((figure.shape, figure.colour) in HELD_OUT for figure in self.figures)


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def random_figure(rng: np.random.Generator, size: str, x: float, y: float) -> Figure:
    x, y = (v + rng.uniform(-0.05, 0.05) for v in (x, y))
    return Figure(size, pick(rng, NAMES["colour"]), pick(rng, SHAPES), x, y)


def random_scene(rng: np.random.Generator) -> Scene:
    """One figure in the middle, or a large and a small one beside or above each other."""
    background = pick(rng, NAMES["background"])
    if rng.random() < 0.5:
        figure = random_figure(rng, pick(rng, tuple(RADII)), 0.5, 0.5)
        return Scene(background, (figure,), f"a {figure} on a {background} background")
    dx, dy, relation = pick(rng, RELATIONS)
    large = random_figure(rng, "large", 0.5 + 0.22 * dx, 0.5 + 0.22 * dy)
    small = random_figure(rng, "small", 0.5 - 0.28 * dx, 0.5 - 0.28 * dy)
    caption = f"a {large} {relation} a {small} on a {background} background"
    return Scene(background, (large, small), caption)


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


def draw_scene(scene: Scene, resolution: int) -> np.ndarray:
    """The picture (H, H, 3), uint8 RGB, drawn four times larger and averaged down."""
    size = 4 * resolution
    canvas = np.full((size, size, 3), BACKGROUNDS[scene.background], dtype=np.uint8)
    for figure in scene.figures:
        draw_figure(canvas, figure)
    return cv2.resize(canvas, (resolution, resolution), interpolation=cv2.INTER_AREA)


def shapes(
    split: str, resolution: int, data_dir: Path | None, limit: int, held_out: bool
) -> Dataset:
    """Synthetic pictures (n, 3, H, H): one or two coloured figures on a coloured background.

    Labels: class (4) and colour (6) of the larger figure, background (3). Held out is every image with
    a figure of HELD_OUT. Image i of a split is a pure function of the split and i; `data_dir` is not
    used.
    """
    rngs = (np.random.default_rng((SPLITS.index(split), i)) for i in range(SIZES[split]))
    every = map(random_scene, rngs)
    scenes = list(islice((s for s in every if held_out or not s.held_out), limit or None))
    pictures = [torch.from_numpy(draw_scene(scene, resolution)) for scene in scenes]
    larger = [scene.figures[0] for scene in scenes]
    words = {
        "class": [figure.shape for figure in larger],
        "colour": [figure.colour for figure in larger],
        "background": [scene.background for scene in scenes],
    }
    return Dataset(
        images=rearrange(pictures, "n H W k -> n k H W").contiguous(),
        captions=Captions([(scene.caption,) for scene in scenes]),
        labels={k: torch.tensor([*map(NAMES[k].index, column)]) for k, column in words.items()},
        names=NAMES,
        held_out=torch.tensor([scene.held_out for scene in scenes]),
    )
