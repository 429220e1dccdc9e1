"""Hints from whatever picture a user has: drawn in any way, each must be what a clean edge map is."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tinyldm.data import load
from tinyldm.data.conditions import Condition, canny
from tinyldm.data.hints import cells_of, is_edge_map, read_hint, thinned
from tinyldm.evaluate.drawings import enlarged, inverted, layer, pen, photographed
from tinyldm.support.errors import UserError


def outlines(n: int) -> torch.Tensor:
    """Edges bool (n, 1, 32, 32) of pictures with a few discs."""
    rng, images = np.random.default_rng(0), []
    for _ in range(n):
        image = np.zeros((32, 32), dtype=np.uint8)
        for x, y, r in rng.integers(6, 26, (3, 3)):
            cv2.circle(image, (int(x), int(y)), int(r) // 2, int(rng.integers(80, 256)), -1)
        images.append(image)
    return canny(torch.from_numpy(np.stack(images))[:, None])


def f1(a: torch.Tensor, b: torch.Tensor) -> float:
    return 2 * (a & b).sum().item() / (a.sum() + b.sum()).item()


def read(tmp_path: Path, picture: Image.Image, kind="auto", ending="png", **how):
    picture.save(tmp_path / f"hint.{ending}", **how)
    return read_hint(tmp_path / f"hint.{ending}", 1, 32, kind=kind)


@pytest.mark.parametrize("size", [32, 64, 96, 128, 224, 256, 500, 1024])
@pytest.mark.parametrize("quality", [None, 50, 95])
def test_an_enlarged_edge_map_comes_back_exactly_whatever_its_polarity(tmp_path, size, quality):
    how = {"ending": "jpg", "quality": quality} if quality else {}
    for edges in outlines(3):
        for change in (lambda x: x, inverted):
            hint = read(tmp_path, change(enlarged(edges, size)), **how)
            assert torch.equal(hint.edges[0], edges) and hint.kind == "edges"
            assert bool(hint.notes) == (change is inverted)


WAYS = {
    "a thin pen": (0.85, lambda e: inverted(pen(e, 512, 3))),
    "a thick pen": (0.9, lambda e: inverted(pen(e, 512, 12))),
    "white on black": (0.9, lambda e: pen(e, 512, 8)),
    "on a transparent layer": (0.9, lambda e: layer(pen(e, 512, 8))),
    "a small picture": (0.85, lambda e: inverted(pen(e, 150, 3))),
    "a large picture": (0.9, lambda e: inverted(pen(e, 2000, 40))),
    "a photo of paper": (0.9, lambda e: photographed(pen(e, 512, 8))),
    "a smooth map": (0.9, lambda e: enlarged(e, 256, smooth=True)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_drawing_is_read_as_the_edges_that_it_draws(tmp_path, way):
    least, make = WAYS[way]
    hints = [(read(tmp_path, make(edges)), edges) for edges in outlines(8)]
    assert {hint.kind for hint, _ in hints} == {"lines"}
    assert np.mean([f1(hint.edges[0], edges) for hint, edges in hints]) >= least
    assert min(f1(hint.edges[0], edges) for hint, edges in hints) >= least - 0.1


def test_a_drawing_in_jpeg_is_read_as_in_png(tmp_path):
    for edges in outlines(3):
        picture = inverted(pen(edges, 512, 6))
        a, b = read(tmp_path, picture), read(tmp_path, picture, ending="jpg", quality=40)
        assert f1(a.edges, b.edges) > 0.95


def test_a_photo_is_read_by_the_condition_and_transparency_hides_what_is_under_it(tmp_path):
    images = load("shapes", "test", limit=4).images
    for image in images:
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        photo.save(tmp_path / "p.png")
        hint = read_hint(tmp_path / "p.png", 3, 32)
        assert hint.kind == "photo" and torch.equal(hint.edges, canny(image[None]))
    disc = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    disc.putdata([(255, 0, 0, 255) if (x - 16) ** 2 + (y - 16) ** 2 < 150 else (x * 8, 0, 99, 0)
                  for y in range(32) for x in range(32)])  # fmt: skip
    disc.save(tmp_path / "p.png")
    hidden = read_hint(tmp_path / "p.png", 3, 32, kind="photo").edges
    ground = Image.new("RGB", (32, 32), "white")
    ground.paste(disc, mask=disc.getchannel("A"))
    ground.save(tmp_path / "p.png")
    assert torch.equal(hidden, read_hint(tmp_path / "p.png", 3, 32, kind="photo").edges)
    assert hidden.any()


def test_other_conditions_read_photos_and_given_ones_edge_maps(tmp_path):
    edges = outlines(1)[0]
    enlarged(edges, 64).save(tmp_path / "p.png")
    assert read_hint(tmp_path / "p.png", 1, 32, Condition("silhouette")).kind == "photo"
    given = read_hint(tmp_path / "p.png", 1, 32, Condition("given"))
    assert given.kind == "edges" and torch.equal(given.edges[0], edges)
    with pytest.raises(UserError, match=r"p\.png: .*no photo"):
        read_hint(tmp_path / "p.png", 1, 32, Condition("given"), "photo")


NOTED = {
    "has no edges; give a picture with more contrast": lambda: Image.new("L", (64, 64), 90),
    "% of it is edges; try --hint-kind photo": lambda: Image.fromarray(
        np.indices((64, 64)).sum(0).astype(np.uint8) // 2 % 2 * 255
    ),
    r"only 0\.\d% of it is edges; draw larger": lambda: Image.fromarray(
        cv2.circle(np.zeros((512, 512), np.uint8), (100, 100), 8, 255, 4)
    ),
    "has two tones, but too wide for lines": lambda: Image.fromarray(
        cv2.circle(np.full((512, 512), 255, np.uint8), (250, 250), 100, 0, 70)
    ),
    "read as lines, dark on light: inverted": lambda: inverted(pen(outlines(1)[0], 512, 8)),
}


@pytest.mark.parametrize("told", NOTED)
def test_what_is_odd_is_told_with_what_to_do(tmp_path, told):
    kind = "edges" if "% of it" in told and "only" not in told else "auto"
    hint = read(tmp_path, NOTED[told](), kind)
    assert len(hint.notes) == 1
    assert re.search(told, hint.notes[0]), hint.notes


def test_who_says_that_it_is_a_photo_is_not_told_that_it_may_be_a_drawing(tmp_path):
    flat = NOTED["has two tones, but too wide for lines"]()
    assert not read(tmp_path, flat, "photo").notes
    flat.save(tmp_path / "flat.png")
    notes = read_hint(tmp_path / "flat.png", 1, 32, Condition("silhouette")).notes
    assert "two tones" not in str(notes)


def test_a_photo_of_a_thing_on_one_ground_is_nothing_odd(tmp_path):
    """As a coat on black, shaded: a drawing is flatter."""
    shaded = cv2.ellipse(np.zeros((32, 32)), (16, 16), (8, 12), 0, 0, 360, 1, -1)
    shaded *= np.linspace(255, 60, 32)
    hint = read(tmp_path, Image.fromarray(shaded.astype(np.uint8)), "auto")
    assert hint.kind == "photo" and not hint.notes


def test_thinning_leaves_lines_of_one_pixel_that_stay_connected():
    mask = np.zeros((40, 60), bool)
    mask[10:17, 5:55], mask[10:35, 25:32] = True, True
    thin = thinned(mask)
    assert not (thin & ~mask).any() and cv2.connectedComponents(thin.astype(np.uint8))[0] == 2
    squares = thin[1:, 1:] & thin[:-1, 1:] & thin[1:, :-1] & thin[:-1, :-1]
    assert not squares.any() and 55 < thin.sum() < 80
    line = np.eye(9, dtype=bool)
    assert np.array_equal(thinned(line), line)


@pytest.mark.parametrize("size", [100, 256, 500, 512])
def test_a_line_of_one_pixel_turns_on_the_cells_it_crosses_and_no_other(size):
    mask = np.zeros((size, size), bool)
    mask[size // 2] = True
    cells = cells_of(mask, 32)
    assert cells[int((size // 2 + 0.5) * 32 / size)].all() and cells.sum() == 32


def test_a_smaller_edge_map_is_enlarged_without_holes():
    mask = outlines(1)[0, 0, ::2, ::2].numpy()
    assert np.array_equal(cells_of(mask, 32), mask.repeat(2, 0).repeat(2, 1))


def test_an_edge_map_is_told_by_its_cells():
    cells = outlines(1)[0, 0].numpy()
    large = cells.repeat(4, 0).repeat(4, 1)
    assert is_edge_map(large, 32) and not is_edge_map(np.roll(large, 2, 1), 32)
