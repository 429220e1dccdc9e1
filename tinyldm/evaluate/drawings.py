"""`python -m tinyldm.evaluate.drawings`: are edges followed that were drawn, photographed, inverted?

Each test image's edges are drawn anew in several ways, stored, read as any user's picture is, and given to the
ControlNet. What matters is the last column: how much less closely the true edges are followed.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tinyldm.data.hints import Hint, read_hint
from tinyldm.evaluate.judge import find_judge
from tinyldm.evaluate.metrics import estimate
from tinyldm.evaluate.panel import Panel, sample_images
from tinyldm.evaluate.tables import plain, table
from tinyldm.ldm import Control
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.support.progress import progress
from tinyldm.training.machine import Machine, process
from tinyldm.training.networks import load_control
from tinyldm.training.run_folder import dataset_of, load_run
from tinyldm.training.settings import within

STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))  # from a pixel to its neighbours, each pair once
Way = Callable[[Tensor], Image.Image]  # edges bool (1, H, W) -> a picture of them


def enlarged(edges: Tensor, size: int, smooth: bool = False) -> Image.Image:
    """The edge map itself, white on black."""
    kernel = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return Image.fromarray(edges[0].numpy().astype(np.uint8) * 255).resize((size, size), kernel)


def pen(edges: Tensor, size: int, width: float) -> Image.Image:
    """Strokes from pixel to pixel of the edges, white on black."""
    picture, scale = Image.new("L", (2 * size, 2 * size)), 2 * size / edges.shape[-1]
    draw, on = ImageDraw.Draw(picture), {(y, x) for y, x in edges[0].nonzero().tolist()}
    for y, x in on:
        for other in ((y + i, x + j) for i, j in STEPS if (y + i, x + j) in on):
            ends = [tuple((v + 0.5) * scale for v in reversed(p)) for p in ((y, x), other)]
            draw.line(ends, 255, max(1, round(2 * width)), "curve")
            for u, v in ends:  # round, so that strokes join
                draw.ellipse((u - width, v - width, u + width, v + width), 255)
    return picture.resize((size, size), Image.Resampling.BOX)


def inverted(picture: Image.Image) -> Image.Image:
    """Black on white."""
    return Image.fromarray(255 - np.asarray(picture))


def layer(picture: Image.Image) -> Image.Image:
    """Dark strokes on a transparent layer, with noise hidden under it."""
    alpha = np.asarray(picture)
    hidden = np.random.default_rng(0).integers(0, 256, (*alpha.shape, 3))
    rgb = np.where(alpha[..., None] > 0, [20, 0, 60], hidden)
    return Image.fromarray(np.dstack([rgb, alpha]).astype(np.uint8))


def photographed(picture: Image.Image) -> Image.Image:
    """Grey ink on paper that is lit from one side, with noise."""
    paper = 255 - 0.8 * np.asarray(picture).astype(float)
    light = np.linspace(0.6, 1, paper.shape[1]) * np.linspace(0.8, 1, paper.shape[0])[:, None]
    noise = np.random.default_rng(0).normal(0, 4, paper.shape)
    return Image.fromarray((paper * light + noise).clip(0, 255).astype(np.uint8))


WAYS: dict[str, Way] = {
    "the edge map, enlarged": partial(enlarged, size=512),
    "the same, black on white": lambda e: inverted(enlarged(e, 512)),
    "the same, smoothed": partial(enlarged, size=512, smooth=True),
    "a pen of 3 pixels of 512": lambda e: inverted(pen(e, 512, 3)),
    "a pen of 8": lambda e: inverted(pen(e, 512, 8)),
    "a pen of 14": lambda e: inverted(pen(e, 512, 14)),
    "a pen of 20": lambda e: inverted(pen(e, 512, 20)),
    "a pen of 50": lambda e: inverted(pen(e, 512, 50)),
    "white on black": lambda e: pen(e, 512, 8),
    "on a transparent layer": lambda e: layer(pen(e, 512, 8)),
    "300 pixels wide": lambda e: inverted(pen(e, 300, 5)),
    "1,400 pixels wide": lambda e: inverted(pen(e, 1400, 20)),
    "a photo of paper": lambda e: photographed(pen(e, 512, 6)),
}
JPEG = "a pen of 8, JPEG of quality 40"


@dataclass(frozen=True)
class DrawingsSettings:
    """Measure how closely edges are followed that were drawn in several ways; print a table."""

    base: Path = Path("runs/base")
    """Run folder of train_base.py."""
    control: Path = Path("runs/control")
    """Run folder of train_control.py, of Canny edges."""
    n: int = 200
    """Test images."""
    seed: int = 0
    """Choice of test images, and noise."""
    json: Path | None = None
    """Also write the numbers to this file."""
    device: str = "auto"

    def __post_init__(self) -> None:
        within(self, 10, 100_000, "n")
        within(self, 0, 2**62, "seed")


def read_back(picture: Image.Image, resolution: int, jpeg: bool = False) -> Hint:
    """A picture as a file, read as a hint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("hint.jpg" if jpeg else "hint.png")
        picture.save(path, quality=40)  # of JPEG only
        return read_hint(path, 3, resolution)


def measure(settings: DrawingsSettings, machine: Machine) -> list[dict[str, Any]]:
    """A row for each way."""
    s = settings
    ldm, (test,) = load_run(s.base, "test")
    controlnet, condition = load_control(s.control, s.base, ldm)
    if condition.name != "canny":
        raise UserError(
            f"--control {s.control}: of {condition.name} hints; give one of Canny edges"
        )
    machine.place(ldm, controlnet)
    panel = Panel(test, find_judge(dataset_of(s.base)), condition, s.n, s.seed)

    def followed(hints: Tensor, desc: str) -> Tensor:
        control = [Control(controlnet, hints)]
        how: dict[str, Any] = {
            "steps": 10,
            "control_passes": "prompted",
        }  # as `tinyldm.evaluate` measures
        x = sample_images(ldm, panel.captions, machine, control, s.seed, desc, **how)
        return panel.edge_scores(x)[0]

    clean, rows = followed(panel.hints, "clean hints"), []
    ways = {**WAYS, JPEG: WAYS["a pen of 8"]}
    for name, way in ways.items():
        bar = progress(panel.hints, desc=f"read: {name}", leave=False)
        found = [read_back(way(e), ldm.resolution, name == JPEG) for e in bar]
        ef0 = followed(torch.cat([hint.edges for hint in found]), name)
        kinds = {kind: sum(h.kind == kind for h in found) for kind in ("edges", "lines", "photo")}
        rows.append(
            {
                "drawn as": name,
                **{f"read as {kind}": number for kind, number in kinds.items()},
                "with advice": sum(any(";" in note for note in h.notes) for h in found),
                "EF0 to the true edges": estimate(ef0, origins=panel.origins),
                "less than clean": estimate(clean - ef0, origins=panel.origins),
            }
        )
    return rows


def main(settings: DrawingsSettings) -> None:
    """Measure, print, and perhaps write."""
    if settings.json:
        files.check_writable("--json", settings.json)
    with process(settings.device, "fp32", threads=torch.get_num_threads()) as machine:
        rows = measure(settings, machine)
    print(table(rows))
    if settings.json:
        files.write_json(settings.json, [plain(row) for row in rows])


if __name__ == "__main__":
    run_command(lambda: main(parse(DrawingsSettings)))
