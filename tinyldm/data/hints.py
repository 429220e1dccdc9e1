"""A hint from whatever picture a user has: photo, drawing on paper or on a transparent layer, edge map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tinyldm.data.conditions import Condition
from tinyldm.data.pictures import centred, fitted, flattened, open_picture
from tinyldm.support.errors import UserError

HintKind = Literal["auto", "photo", "lines", "edges"]
Grey = NDArray[np.floating[Any]]  # (H, W) in [0, 1]
Mask = NDArray[np.bool_]  # (H, W)

CANNY = Condition()
LARGEST = 1024  # pixels that a side of a drawing is read with
GROUND = 8  # ink is what stands out from its surroundings within an eighth of the picture
CONTRAST = 0.2  # of ink and ground, from which on there is ink
TWO_TONES = 0.75  # share of the variance that lies between ink and ground, in a drawing
FLAT = 0.975  # the same of wide strokes; two in a hundred photos of a thing on one ground have more
MOST_INK = 0.4  # share of a drawing that is ink
WIDEST = 0.04  # half the width of its widest stroke, over its side
SAME = 0.995  # share of pixels by which an enlarged edge map may differ from its cells
FULL, EMPTY = 0.4, 0.005  # shares of edges that networks were not trained on
NEIGHBOURS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # clockwise


class Hint(NamedTuple):
    """What the network sees, how the picture was read, and what its owner should know."""

    edges: Tensor  # bool (1, 1, H, W), white on black
    kind: str
    notes: Sequence[str]


def ink_of(picture: Image.Image) -> tuple[Grey, bool]:
    """How much each pixel stands out from its ground, and whether the ground is the brighter.

    On a transparent layer whatever is opaque is ink, if there is more than a little of either.
    """
    if picture.mode in ("LA", "RGBA"):
        alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
        if 0.001 < (alpha > 0.5).mean() < MOST_INK:
            return alpha, False
    grey = np.asarray(flattened(picture).convert("L"), np.float32) / 255
    bright = bool(np.median(grey) > 0.5)
    dark = 1 - grey if bright else grey
    size = max(3, max(grey.shape) // GROUND) | 1
    ground = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((size, size), np.uint8))
    if cv2.Canny((255 * ground).astype(np.uint8), 100, 200).any():  # shapes, not light on paper
        ground = np.full_like(dark, np.median(dark))
    return (dark - ground) / (1 - ground).clip(0.1), bright


def two_tones(ink: Grey) -> tuple[Mask, float, float]:
    """The pixels that are ink by Otsu's threshold, the contrast, and the share of variance that it explains."""
    levels = (ink.clip(0, 1) * 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    mask = levels > threshold
    if not mask.any() or mask.all():
        return mask, 0.0, 0.0
    share, contrast = mask.mean(), float(ink[mask].mean() - ink[~mask].mean())
    return mask, contrast, float(share * (1 - share) * contrast**2 / max(1e-9, ink.var()))


def widest(mask: Mask) -> float:
    """Half the width of the widest stroke, in pixels."""
    return float(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5).max())


def is_drawing(mask: Mask, contrast: float, explained: float) -> bool:
    """Strokes of two tones, thin and few: or is it a photo?"""
    few = 0 < mask.mean() < MOST_INK and widest(mask) < WIDEST * max(mask.shape)
    return bool(few and contrast > CONTRAST and explained > TWO_TONES)


def thinned(mask: Mask) -> Mask:
    """Lines of one pixel in the middle of those of a mask [Zhang and Suen, CACM 1984]."""
    x = np.pad(mask, 1)
    while True:
        before = x.copy()
        for first in (True, False):
            p = [np.roll(x, (-i, -j), (0, 1)) for i, j in NEIGHBOURS]
            n, e, s, w = p[::2]
            around = np.sum(p, 0)
            turns = sum((~a & b).astype(int) for a, b in zip(p, [*p[1:], n], strict=True))
            sides = ~(n & e & s) & ~(e & s & w) if first else ~(n & e & w) & ~(n & s & w)
            x = x & ~((around >= 2) & (around <= 6) & (turns == 1) & sides)
        if (x == before).all():
            return x[1:-1, 1:-1]


def cells_of(mask: Mask, resolution: int) -> Mask:
    """The cells (H, H) of a square mask in which any of its pixels lies; a smaller mask is enlarged."""
    size = len(mask)
    if size < resolution:
        rows = (np.arange(resolution) + 0.5) * size // resolution
        mask, size = mask[np.ix_(rows.astype(int), rows.astype(int))], resolution
    cells = np.zeros((resolution, resolution), bool)
    row, column = ((np.argwhere(mask) + 0.5) * resolution / size).astype(int).T
    cells[row, column] = True
    return cells


def is_edge_map(mask: Mask, resolution: int) -> bool:
    """Is this, but for a few pixels, a map of that resolution that was enlarged without smoothing?"""
    at = ((np.arange(len(mask)) + 0.5) * resolution / len(mask)).astype(int)
    return bool((cells_of(mask, resolution)[np.ix_(at, at)] == mask).mean() > SAME)


def drawn(mask: Mask, resolution: int, kind: str) -> Mask:
    """Ink as edges (H, H): an edge map cell by cell, lines thinned."""
    if kind == "edges":
        return cells_of(mask, resolution)
    return thinned(cells_of(thinned(mask), resolution))


def kind_of(mask: Mask, contrast: float, explained: float, resolution: int) -> str:
    """How a picture is to be read."""
    if not is_drawing(mask, contrast, explained):
        return "photo"
    return "edges" if is_edge_map(mask, resolution) else "lines"


def advice(edges: Tensor, kind: str, flat: bool) -> list[str]:
    """What is odd about a hint, and what to do."""
    share = edges.float().mean().item()
    other = "photo" if kind != "photo" else "lines"
    if kind == "photo" and flat:
        return [
            "has two tones, but too wide for lines, so it is read as a photo; if it is a drawing, "
            "use a thinner pen or --hint-kind lines"
        ]
    if not share:
        return ["has no edges; give a picture with more contrast"]
    if share > FULL:
        return [f"{share:.0%} of it is edges; try --hint-kind {other}, or thinner lines"]
    if share < EMPTY:
        return [f"only {share:.1%} of it is edges; draw larger, or try --hint-kind {other}"]
    return []


def read_map(path: Path, resolution: int) -> Tensor:
    """A map, white on black, as a hint bool (1, 1, H, H): the cells with a bright pixel. Raises UserError.

    So training and sampling read hints that come with pictures; what is transparent is black.
    """
    grey = flattened(centred(open_picture(path)), "black").convert("L")
    cells = cells_of(np.asarray(grey) > 127, resolution)
    return rearrange(torch.from_numpy(cells), "H W -> 1 1 H W")


def read_hint(
    path: Path,
    channels: int,
    resolution: int,
    condition: Condition = CANNY,
    kind: HintKind = "auto",
) -> Hint:
    """The hint in the middle square of a picture file. Raises UserError as `open_picture`.

    A photo's is what `condition` finds in it, on white where it is transparent. In lines, dark or bright or on
    a transparent layer, the ink is the hint, thinned; an edge map is taken as it is. `auto` tells them apart.
    """
    if condition.name == "given" and kind == "auto":
        edges = read_map(path, resolution)
        return Hint(
            edges, "edges", [] if edges.any() else ["has nothing white; give white on black"]
        )
    square = centred(open_picture(path))
    if square.width > LARGEST:
        square = square.resize((LARGEST, LARGEST), Image.Resampling.BOX)
    ink, inverted = ink_of(square)
    mask, contrast, explained = two_tones(ink)
    auto = kind == "auto" and condition.name == "canny"
    if kind == "auto":
        kind = kind_of(mask, contrast, explained, resolution) if auto else "photo"
    notes = []
    if kind == "photo" and condition.name == "given":
        raise UserError(
            f"{path}: this ControlNet wants a hint like those it was trained on, no photo"
        )
    if kind == "photo":
        edges = condition(fitted(flattened(square), channels, resolution))
    else:
        edges = rearrange(torch.from_numpy(drawn(mask, resolution, kind)), "H W -> 1 1 H W")
        notes = [f"read as {kind}, dark on light: inverted"] * inverted
    return Hint(edges, kind, notes + advice(edges, kind, auto and explained > FLAT))
