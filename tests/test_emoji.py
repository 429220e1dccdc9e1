"""The dataset emoji: colours by hue, drawings, captions, views and the font; and who counts by drawing."""

import colorsys
import importlib
import json
import math
import os
import shutil
import struct
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor
from test_commands import COMMANDS, error_of

from tinyldm.data import fetch as fetch_file
from tinyldm.data import load
from tinyldm.data.colour import HUES, NONE, colour_of, dominant_hue, from_hsv, recolour, to_hsv
from tinyldm.data.conditions import canny
from tinyldm.data.dataset import SPLITS, Dataset, to_float
from tinyldm.data.emoji import (
    COLOURS,
    FONT,
    HELD_OUT,
    KIND_OF,
    KINDS,
    NAMES,
    NAMES_FILE,
    REMEDY,
    Emoji,
    coloured_share,
    draw,
    drawings,
    emoji_captions,
    find_font,
    flatten,
    read_font,
    read_names,
    view,
)
from tinyldm.evaluate.judge import MEASURED, Classifier, Judge
from tinyldm.evaluate.metrics import different, edge_f1, estimate, partners, share
from tinyldm.evaluate.panel import Panel
from tinyldm.ldm import generate
from tinyldm.support import files
from tinyldm.support.command_line import parse_with_preset
from tinyldm.support.errors import UserError
from tinyldm.training import previews, run_folder
from tinyldm.training.machine import Machine
from tinyldm.training.networks import load_base, save_base
from tinyldm.training.presets import BASE_PRESETS, CONTROL_PRESETS
from tinyldm.training.run_folder import data_settings, load_run
from tinyldm.training.settings import DataSettings

emoji_file = importlib.import_module(
    "tinyldm.data.emoji"
)  # the package has a function of that name

DEBIAN = "apt-get download fonts-noto-color-emoji"
DEJAVU = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # outlines only


def circular(a: float, b: float) -> float:
    """Degrees between two hues."""
    return abs((a - b + 180) % 360 - 180)


def solid(hue: float, saturation: float = 1.0, value: float = 1.0) -> torch.Tensor:
    """A picture uint8 (1, 3, 8, 8) of one colour, by colorsys."""
    rgb = colorsys.hsv_to_rgb(hue / 360, saturation, value)
    return (torch.tensor(rgb) * 255).round().to(torch.uint8).reshape(1, 3, 1, 1).repeat(1, 1, 8, 8)


def row(*parts: tuple[int, tuple[int, int, int]]) -> torch.Tensor:
    """A picture uint8 (1, 3, 1, W) of so many pixels of each colour."""
    pixels = [colour for n, colour in parts for _ in range(n)]
    return torch.tensor(pixels, dtype=torch.uint8).T.reshape(1, 3, 1, -1)


def noise(n: int = 4, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator).to(torch.uint8)


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize("word", HUES)
def test_a_picture_in_the_hue_of_a_word_has_that_colour(word):
    for saturation, value in ((1, 1), (0.5, 1), (1, 0.4), (0.6, 0.6)):
        assert colour_of(solid(HUES[word], saturation, value)).item() == COLOURS.index(word)


def test_the_words_mean_what_browsers_mean_by_them():
    names = {"red": "red", "orange": "darkorange", "yellow": "yellow", "green": "lime"}
    names |= {"cyan": "cyan", "blue": "blue", "purple": "blueviolet", "pink": "hotpink"}
    for word, name in names.items():
        picture = row((9, ImageColor.getrgb(name)))
        assert COLOURS[colour_of(picture).item()] == word
        assert circular(dominant_hue(to_hsv(picture))[0].item(), HUES[word]) <= 16


@settings(deadline=None)
@given(hue=st.integers(0, 359), saturation=st.floats(0.5, 1), value=st.floats(0.5, 1))
def test_any_other_hue_has_the_colour_of_the_nearest_word(hue, saturation, value):
    picture = solid(hue, saturation, value)
    measured, colour = dominant_hue(to_hsv(picture))[0].item(), colour_of(picture).item()
    assert circular(measured, hue) <= 2  # of which 8 bits are half
    distances = [circular(measured, wanted) for wanted in HUES.values()]
    assert distances[colour] == min(distances)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_grey_picture_has_no_colour_and_keeps_none(level):
    picture = torch.full((2, 3, 8, 8), level, dtype=torch.uint8)
    assert colour_of(picture).tolist() == [NONE, NONE] and NONE not in range(len(HUES))
    assert torch.equal(recolour(picture), picture[:, None].expand(2, 8, 3, 8, 8))


def test_grey_counts_as_none_of_the_colours_that_are_asked_for():
    grey = colour_of(torch.full((8, 3, 4, 4), 77, dtype=torch.uint8))
    assert share(grey, torch.arange(8)).mean == 0


def test_one_pixel_in_a_hundred_makes_a_colour_and_pale_ones_make_none():
    white, red, pale, palest = (255,) * 3, (255, 0, 0), (255, 216, 216), (255, 217, 217)
    for coloured, colour in (((1, red), 0), ((1, pale), 0), ((99, palest), NONE)):
        assert colour_of(row(coloured, (100 - coloured[0], white))).item() == colour
    assert colour_of(row((1, red), (100, white))).item() == NONE


def test_pixels_count_by_their_chroma_and_together_across_the_seam_of_the_circle():
    pale_red, blue = (255, 180, 180), (0, 64, 255)
    assert COLOURS[colour_of(row((60, pale_red), (40, blue))).item()] == "blue"
    before, after, cyan = (255, 0, 17), (255, 17, 0), (0, 234, 255)  # hues 356, 4, 185
    assert COLOURS[colour_of(row((30, before), (30, after), (40, cyan))).item()] == "red"


def test_hsv_and_back_is_the_picture():
    images = noise()
    assert torch.equal(from_hsv(to_hsv(images)), images)
    hue, saturation, value = to_hsv(solid(215, 0.75, 0.8))[0, 0, 0]
    assert (hue, saturation, value) == pytest.approx((215, 0.75, 0.8), abs=0.8)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_recolouring_keeps_saturation_and_value(seed):
    """By their definitions: the largest of red, green and blue, and the smallest, stay."""
    images = noise(2, 8, seed)
    turned = recolour(images)
    assert turned.shape == (2, 8, 3, 8, 8) and turned.dtype == torch.uint8
    for extreme in (torch.amax, torch.amin):
        assert torch.equal(extreme(turned, 2), extreme(images, 1)[:, None].expand(2, 8, 8, 8))


@settings(deadline=None)
@given(hue=st.integers(0, 359), saturation=st.floats(0.5, 1), value=st.floats(0.5, 1))
def test_a_recoloured_picture_has_the_hue_of_the_word_by_colorsys(hue, saturation, value):
    turned = recolour(solid(hue, saturation, value))
    assert colour_of(turned[0]).tolist() == [*range(8)]
    for picture, wanted in zip(turned[0], HUES.values(), strict=True):
        found = 360 * colorsys.rgb_to_hsv(*(picture[:, 0, 0] / 255).tolist())[0]
        assert circular(found, wanted) <= 2


def test_all_hues_of_a_picture_are_turned_by_one_angle():
    picture = row((60, (255, 0, 0)), (20, (0, 255, 0)), (20, (255, 255, 255)))
    blue = to_hsv(recolour(picture)[:, COLOURS.index("blue")])[0, 0, :, 0]
    np.testing.assert_allclose(blue[:60], 225, atol=0.5)
    np.testing.assert_allclose(blue[60:80], 345, atol=0.5)


@pytest.mark.parametrize("word", HUES)
def test_recolouring_to_its_own_hue_changes_nothing(word):
    picture, k = solid(HUES[word]), COLOURS.index(word)
    assert (recolour(picture)[:, k].int() - picture.int()).abs().max() <= 2  # half a degree
    assert (recolour(picture)[:, k - 1].int() - picture.int()).abs().max() > 50


# ---------------------------------------------------------------- names, splits and captions


def test_the_split_of_a_drawing_follows_from_its_name_alone():
    golden = {"grinning face": "train", "heart": "train", "guitar": "train", "owl": "train"}
    golden |= {"bird": "validation", "sailboat": "validation", "piñata": "test", "rocket": "test"}
    for name, split in golden.items():
        for kind, character in (("face", "x"), ("bird", "y")):
            assert Emoji(character, kind, name).split == split
    counts = {split: sum(e.split == split for e in read_names()) for split in SPLITS}
    total = sum(counts.values())
    assert len(read_names()) == total == 1216 and 0.77 < counts["train"] / total < 0.83
    assert all(0.07 < counts[split] / total < 0.13 for split in ("validation", "test"))


def test_characters_that_differ_in_colour_only_are_one_drawing_of_one_split():
    """Recoloured they are nearly the same picture: were they in two splits, tests would be of what was seen."""
    of = {e.character: e for e in read_names()}
    for alike in (
        "🔴🟠🟡🟢🔵🟣🟤",
        "🟥🟧🟨🟩🟦🟪🟫",
        "❤🧡💛💚💙💜🩷🩵🤎",
        "📕📗📘📙",
        "🍎🍏",
        "🔶🔷",
        "🔸🔹",
    ):
        assert len({of[c].origin for c in alike}) == len({of[c].split for c in alike}) == 1
    assert len({of[c].origin for c in "🔴🟥❤📗🍎🔶🔸💡📚"}) == 9


def test_every_character_is_listed_once_with_a_subgroup_that_has_one_kind():
    lines = [x for x in NAMES_FILE.read_text().splitlines() if not x.startswith("#")][1:]
    codes, subgroups, _ = zip(*(line.split("\t") for line in lines), strict=True)
    assert len(set(codes)) == len(codes) == len(read_names())
    assert set(subgroups) == set(KIND_OF)
    assert sum(map(len, KINDS.values())) == len(KIND_OF)  # in one kind each
    kind = {e.character: e.kind for e in read_names()}
    for code, subgroup in zip(codes, subgroups, strict=True):
        assert subgroup in KINDS[kind[chr(int(code, 16))]]
    assert [*read_names()] == sorted(read_names(), key=lambda e: e.origin)
    assert {e.kind for e in read_names()} == set(KINDS)
    assert not any(words in subgroup for words in ("person", "hand-", "flag") for subgroup in KINDS)


def test_names_have_no_words_of_colour_and_are_not_empty():
    for e in read_names():
        words = e.name.split()
        assert words and not {*COLOURS, "black", "white", "brown"} & {w.lower() for w in words}
    assert {"❤": "heart", "📗": "book"}.items() <= {
        e.character: e.name for e in read_names()
    }.items()


def test_the_first_caption_names_kind_and_colour():
    for kind in KINDS:
        for colour in COLOURS:
            full = emoji_captions(Emoji("x", kind, "thing"), colour)[0]
            assert full == f"{'an' if colour == 'orange' else 'a'} {colour} {kind}"


def test_nine_captions_of_a_drawing_of_which_two_leave_its_colour_open_and_one_its_kind():
    owl = Emoji("🦉", "bird", "owl")
    assert list(emoji_captions(owl, "orange")) == [
        *("an orange bird", "a drawing of an orange bird", "an emoji of an orange bird"),
        *("orange bird", "an orange owl", "a drawing of an orange owl"),
        *("a bird", "a drawing of a bird", "something orange"),
    ]
    assert emoji_captions(Emoji("🦊", "animal", "fox"), "red")[6:8] == (
        *("an animal", "a drawing of an animal"),
    )


# ---------------------------------------------------------------- drawing


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), opaque=st.sampled_from([None, 0, 1, 128, 255]))
def test_flattening_on_white_is_pils_alpha_composite(seed, opaque):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 4)).astype(np.uint8)
    if opaque is not None:
        pixels[..., 3] = opaque
    white = Image.new("RGBA", (9, 9), "white")
    expected = np.asarray(Image.alpha_composite(white, Image.fromarray(pixels)))[..., :3]
    flat = flatten(pixels)
    assert flat.dtype == np.uint8 and abs(flat.astype(int) - expected).max() <= 1
    if opaque in (0, 255):
        assert (flat == (255 if opaque == 0 else pixels[..., :3])).all()


def test_the_coloured_share_is_that_of_what_is_drawn():
    picture = np.zeros((4, 4, 4), dtype=np.uint8)
    assert coloured_share(picture) == 0
    picture[:2, :, 3] = 255  # eight are drawn, in black
    assert coloured_share(picture) == 0
    picture[0, :3, 0], picture[3, :, 0] = 200, 200  # three of them red, and red that is not there
    assert coloured_share(picture) == 3 / 8


def dots() -> np.ndarray:
    """A picture (136, 136, 3), white, with a red dot in the middle and a blue one 30 px right of it."""
    picture = np.full((136, 136, 3), 255, dtype=np.uint8)
    cv2.circle(picture, (68, 68), 6, (255, 0, 0), -1)
    cv2.circle(picture, (98, 68), 6, (0, 0, 255), -1)
    return picture


def centre(picture: np.ndarray, channel: int) -> complex:
    """Where a dot is that lacks this channel and not green alone, x + iy."""
    darkness = 255.0 - picture[..., channel]
    darkness *= picture[..., 2 - channel] > 128
    y, x = np.mgrid[:136, :136]
    return complex((darkness * x).sum(), (darkness * y).sum()) / darkness.sum()


def test_views_are_flipped_turned_scaled_and_shifted_within_their_bounds():
    """Measured on where two dots are found."""
    shifts, arms = [], []
    for number in range(1, 301):
        picture = view(dots(), 136, "x", number)
        red, blue = centre(picture, 2), centre(picture, 0)
        shifts.append(red - (68 + 68j))
        arms.append((blue - red) / 30)
    flipped = np.array([arm.real < 0 for arm in arms])
    assert 0.4 < flipped.mean() < 0.6
    arms = np.array(arms) * np.where(flipped, -1, 1)
    angles, scales = np.degrees(np.angle(arms)), abs(arms)
    shifts = np.array([*np.real(shifts), *np.imag(shifts)]) / 136
    for values, low, high, slack in (
        (angles, -15, 15, 0.7),
        (scales, 0.8, 1.05, 0.01),
        (shifts, -0.04, 0.04, 0.009),
    ):
        assert low - slack <= values.min() < low + (high - low) / 8
        assert high - (high - low) / 8 < values.max() <= high + slack


def test_the_border_of_a_view_is_white():
    for number in range(40):
        picture = view(dots(), 64, "x", number)
        assert all(picture[i, j].min() == 255 for i in (0, -1) for j in (0, -1))


def test_view_0_is_the_drawing_and_each_is_a_function_of_character_and_number():
    picture = np.random.default_rng(0).integers(0, 256, (136, 136, 3)).astype(np.uint8)
    means = picture.reshape(68, 2, 68, 2, 3).mean((1, 3))
    assert abs(view(picture, 68, "x", 0) - means).max() <= 0.5
    assert np.array_equal(view(picture, 68, "x", 0), view(picture, 68, "y", 0))
    views = [view(picture, 32, c, n) for c in "xy" for n in (1, 2, 3)]
    again = [view(picture, 32, c, n) for c in "xy" for n in (1, 2, 3)]
    assert all(map(np.array_equal, views, again))
    assert len({v.tobytes() for v in [*views, view(picture, 32, "x", 0)]}) == 7


# ---------------------------------------------------------------- the real drawings


# the sha256 of version 2.042, which docs/emoji.md is about
KNOWN = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"


@pytest.fixture(scope="session")
def font() -> Path:
    """The real one: an installed one, or fetched into the cache, as for users."""
    return find_font()


@pytest.fixture(scope="session")
def real(font) -> dict[str, Dataset]:
    """Every image of the splits at 32 px, the held-out ones too."""
    return {s: load("emoji", s, 32, font.parent, held_out=True) for s in SPLITS}


def test_the_splits_have_the_drawings_that_the_docstring_says(real):
    """By version 2.042 of the font; another may draw more."""
    if files.sha256(find_font()) != KNOWN:
        pytest.skip("another version of the font")
    assert [len(real[s]) / 8 for s in SPLITS] == [799, 113, 113]


def test_images_are_drawings_on_white(real):
    for data in real.values():
        assert data.images.shape == (len(data), 3, 32, 32) and data.images.dtype == torch.uint8
        assert data.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].min() == 255
        assert (data.images < 255).any(1).float().mean((1, 2)).min() > 0.03


def test_a_drawing_fits_its_frame(font):
    opacity = np.stack([draw(read_font(font.parent), c)[..., 3] for c in "😀🐦🚂❤⏰"])
    assert opacity.shape == (5, 136, 136) and (opacity > 127).mean((1, 2)).min() > 0.2
    assert not opacity[:, :4].any() and not opacity[:, -4:].any()
    assert not opacity[..., 0].any() and not opacity[..., -1].any()


def test_no_drawing_is_in_two_splits_and_each_is_there_in_all_colours(real):
    seen = [set(data.origins.tolist()) for data in real.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    for split, data in real.items():
        pairs = list(zip(data.origins.tolist(), data.labels["colour"].tolist(), strict=True))
        assert set(pairs) == {(o, c) for o in data.origins.tolist() for c in range(8)}
        assert torch.equal(data.labels["colour"], torch.arange(8).repeat(len(data) // 8))
        assert set(data.origins.tolist()) <= {e.origin for e in read_names() if e.split == split}


def test_every_kind_is_trained_on_and_labels_are_those_of_the_captions(real):
    assert set(real["train"].labels["class"].tolist()) == set(range(len(KINDS)))
    kinds = {(e.origin, e.kind) for e in read_names()}
    for data in real.values():
        for i, caption in enumerate(data.captions.full()):
            told = {name: data.names[name][data.labels[name][i]] for name in data.names}
            assert caption.split(" ", 1)[1] == f"{told['colour']} {told['class']}"
            assert (int(data.origins[i]), told["class"]) in kinds


@pytest.mark.parametrize("split", ["train", "test"])
def test_held_out_pairs_are_left_out_unless_asked_for(font, real, split):
    whole, part = real[split], load("emoji", split, 32, font.parent)
    told = [
        (NAMES["class"][k], COLOURS[c])
        for k, c in zip(*map(torch.Tensor.tolist, whole.labels.values()), strict=True)
    ]
    out = torch.tensor([pair in HELD_OUT for pair in told])
    assert set(HELD_OUT) <= set(told) and len(HELD_OUT) == 5
    assert torch.equal(out, whole.held_out) and not part.held_out.any()
    kept = whole.subset((~out).nonzero()[:, 0])
    assert torch.equal(part.images, kept.images) and torch.equal(part.origins, kept.origins)
    assert part.captions.choices == kept.captions.choices
    assert all(torch.equal(part.labels[name], kept.labels[name]) for name in NAMES)


@pytest.mark.parametrize("limit", [1, 8, 43])
def test_a_limit_takes_the_first_images_and_draws_no_others(font, real, monkeypatch, limit):
    drawn = []
    monkeypatch.setattr(emoji_file, "view", lambda *a: drawn.append(a[2:]) or view(*a))
    few = load("emoji", "train", 32, font.parent, limit=limit, held_out=True, views=3)
    assert len(few) == limit and len(drawn) == math.ceil(limit / 8)
    assert torch.equal(few.images, real["train"].images[:limit])
    assert few.captions.choices == real["train"].captions.choices[:limit]
    for name, values in few.labels.items():
        assert torch.equal(values, real["train"].labels[name][:limit])
    assert torch.equal(few.origins, real["train"].origins[:limit])


def test_views_follow_the_drawings_themselves_in_training_only(font, real, monkeypatch):
    every = drawings(font)
    few = {e: every[e] for e in [*every][:40]}
    monkeypatch.setattr(emoji_file, "drawings", lambda path: few)
    one, three = (load("emoji", "train", 32, font.parent, held_out=True, views=v) for v in (1, 3))
    n = len(one)
    assert len(three) == 3 * n and torch.equal(three.images[:n], one.images)
    assert three.captions.choices == 3 * one.captions.choices
    assert torch.equal(three.origins, one.origins.repeat(3))
    parts = three.images.split(n)
    assert not any(
        torch.equal(parts[i][k], parts[j][k]) for i, j in ((0, 1), (0, 2), (1, 2)) for k in range(n)
    )
    more = load("emoji", "train", 32, font.parent, held_out=True, views=4)
    assert torch.equal(more.images[: 3 * n], three.images)
    for split in ("validation", "test"):
        plain = load("emoji", split, 32, font.parent, held_out=True, views=3)
        assert torch.equal(plain.images, real[split].images[: len(plain)])


@pytest.mark.parametrize(("resolution", "limit"), [(64, 904), (96, 160), (128, 160)])
def test_colours_are_measured_as_the_caption_says_at_any_resolution(font, resolution, limit):
    data = load("emoji", "test", resolution, font.parent, limit=limit, held_out=True)
    assert data.images.shape == (limit, 3, resolution, resolution)
    assert share(colour_of(data.images), data.labels["colour"]).mean >= 0.99


def test_recolouring_keeps_the_edges_and_the_colour_is_measured(font, real):
    data = real["test"]
    assert share(colour_of(data.images), data.labels["colour"]).mean >= 0.99
    hints = canny(data.images).unflatten(0, (-1, 8))
    plain = [view(p, 32, e.character, 0) for e, p in drawings(font).items() if e.split == "test"]
    own = canny(torch.from_numpy(np.stack(plain)).permute(0, 3, 1, 2))
    for k in range(8):
        assert edge_f1(hints[:, k], own).mean() >= 0.95
        assert edge_f1(hints[:, k], hints[:, k - 1]).mean() >= 0.95
        assert edge_f1(hints[:, k], own.roll(1, 0)).mean() < 0.6


def test_the_bitmaps_are_not_enlarged(capfd, font, tmp_path):
    with pytest.raises(UserError, match=r"^--resolution 129: .* 128 pixels"):
        load("emoji", "test", 129, font.parent)
    flags = ["--dataset", "emoji", "--data-dir", font.parent, "--out", tmp_path / "run"]
    for resolution in (10, 136, 4096):
        error = error_of(capfd, "train_base", *flags, "--resolution", resolution)
        assert f"--resolution {resolution}" in error


# ---------------------------------------------------------------- finding the font


def with_sum(content: bytes) -> bytes:
    """With four bytes more, so that the checksum of every TrueType file is right."""
    words = sum(struct.unpack(f">{len(content) // 4}I", content))
    return content + struct.pack(">I", (emoji_file.CHECKSUM - words) % 2**32)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGED = {
    "empty": (lambda font: b"", "checksum"),
    "text": (lambda font: b"<html>404 not found</html>", "checksum"),
    "truncated": (lambda font: font[:-9000], "checksum"),  # its last 7,934 bytes are 0
    "flipped bit": (flipped, "checksum"),
    "nothing but a checksum": (lambda font: with_sum(b""), "TrueType"),
    "head only": (lambda font: with_sum(font[:400]), "TrueType"),
    "without bitmaps": (lambda font: DEJAVU.read_bytes(), "CBDT"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_font_is_one_line_with_its_name_and_the_remedy(capfd, font, tmp_path, name):
    damage, word = DAMAGED[name]
    (tmp_path / FONT).write_bytes(damage(font.read_bytes()))
    flags = ["--dataset", "emoji", "--preset", "tiny", "--data-dir", tmp_path]
    error = error_of(capfd, "train_base", *flags, "--out", tmp_path / "run")
    assert error.startswith(f"error: {tmp_path / FONT}: ") and word in error
    assert error.endswith(REMEDY) and "apt-get install fonts-noto-color-emoji" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("make", [None, os.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_a_folder_without_the_font_is_one_line_and_nothing_is_fetched(
    capfd, tmp_path, monkeypatch, make
):
    """Also where its name is that of a folder, a pipe, or a link to itself."""
    monkeypatch.setattr(emoji_file, "fetch", lambda *a: pytest.fail("went to the network"))
    if make:
        make(tmp_path / FONT)
    for folder in (tmp_path, tmp_path / "nowhere"):
        flags = ["--dataset", "emoji", "--data-dir", folder, "--out", tmp_path / "run"]
        error = error_of(capfd, "train_base", *flags)
        assert error == f"error: {FONT} not found in {folder}; {REMEDY}"


@pytest.fixture
def nothing_here(tmp_path, monkeypatch) -> Path:
    """No font is installed and none is in the cache, the folder that is returned."""
    monkeypatch.delenv("TINYLDM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(emoji_file, "FOLDERS", (tmp_path / "fonts", Path("~/.fonts")))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "cache" / "tinyldm"


def test_what_cannot_be_fetched_lists_the_places_that_were_tried(capfd, nothing_here, monkeypatch):
    def fail(folder):
        raise OSError("no network")

    monkeypatch.setattr(emoji_file, "SOURCES", {"one": fail, "two": fail})
    flags = ["--dataset", "emoji", "--out", nothing_here / "run"]
    error = error_of(capfd, "train_base", *flags)
    fonts, home = nothing_here.parents[1] / "fonts", nothing_here.parents[1] / "home" / ".fonts"
    places = f"{fonts}, {home}, {nothing_here / 'emoji'}, one (OSError), two (OSError)"
    assert error == f"error: {FONT} not found in {places}; {REMEDY}"
    assert [*nothing_here.iterdir()] == []


def test_the_font_is_fetched_once_and_checked_before_it_is_kept(nothing_here, monkeypatch, font):
    asked, content = [], font.read_bytes()

    def serve(name, what):
        return lambda folder: asked.append(name) or (folder / FONT).write_bytes(what)

    sources = {"wrong": serve("wrong", DEJAVU.read_bytes()), "right": serve("right", content)}
    monkeypatch.setattr(emoji_file, "SOURCES", sources)
    for _ in range(2):
        assert find_font() == nothing_here / "emoji" / FONT and find_font().read_bytes() == content
    assert asked == ["wrong", "right"]
    assert [*nothing_here.iterdir()] == [nothing_here / "emoji"]


def test_an_installed_font_is_found_wherever_it_is_below_and_a_named_folder_comes_first(
    nothing_here, monkeypatch, tmp_path
):
    monkeypatch.setattr(emoji_file, "fetch", lambda *a: pytest.fail("went to the network"))
    for folder in ("home/.fonts/a/b", "named", "variable"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / FONT).touch()
    assert find_font() == tmp_path / "home" / ".fonts" / "a" / "b" / FONT
    monkeypatch.setenv("TINYLDM_DATA", str(tmp_path / "variable"))
    assert find_font() == tmp_path / "variable" / FONT
    assert find_font(tmp_path / "named") == tmp_path / "named" / FONT
    monkeypatch.setenv("TINYLDM_DATA", str(tmp_path / "fashion-mnist"))  # where the font is not
    assert find_font() == tmp_path / "home" / ".fonts" / "a" / "b" / FONT


def test_the_font_is_debians(monkeypatch, tmp_path):
    commands = []

    def write(command, cwd, **settings):
        commands.append(command)
        if command[0] == "apt-get":
            (cwd / "fonts_1_all.deb").touch()
        else:
            place = cwd / "package" / "usr" / "share" / "fonts" / "truetype" / "noto"
            place.mkdir(parents=True)
            (place / FONT).write_bytes(b"font")

    monkeypatch.setattr(fetch_file.subprocess, "run", write)
    emoji_file.SOURCES[DEBIAN](tmp_path)
    assert commands[0] == DEBIAN.split() and [*emoji_file.SOURCES] == [DEBIAN]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {FONT: b"font"}


@pytest.mark.parametrize("characters", ["a", "😀", "😀🎸"])
def test_a_font_that_draws_nothing_for_a_split_is_one_line(font, monkeypatch, characters):
    """A subset of the real one, say."""
    few = tuple(Emoji(character, "face", "rocket") for character in characters)
    monkeypatch.setattr(emoji_file, "read_names", lambda: few)
    with pytest.raises(UserError) as error:
        drawings.__wrapped__(font)
    assert str(error.value) == f"{font}: draws too few coloured emoji; {REMEDY}"
    names = {"😀": "rocket", "😄": "bird", "🎸": "owl"}
    one_each = tuple(Emoji(character, "face", name) for character, name in names.items())
    monkeypatch.setattr(emoji_file, "read_names", lambda: one_each)
    assert tuple(drawings.__wrapped__(font)) == one_each


# ---------------------------------------------------------------- counting by drawing


VALUES = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))


def test_with_every_image_its_own_origin_the_interval_is_that_without():
    origins = torch.randperm(40, generator=torch.Generator().manual_seed(1)) * 7
    found = estimate(*VALUES.T, statistic=lambda a, b: a / b, origins=origins)
    assert found == estimate(*VALUES.T, statistic=lambda a, b: a / b)


@pytest.mark.parametrize("k", [2, 8])
def test_copies_of_images_do_not_make_the_interval_smaller(k):
    column, origins = VALUES[:, 0].repeat_interleave(k), torch.arange(40).repeat_interleave(k)
    one, many = estimate(VALUES[:, 0]), estimate(column, origins=origins)
    assert many == pytest.approx(one, abs=1e-9)
    naive = estimate(column)
    assert naive.high - naive.low < 0.8 * (one.high - one.low)
    shuffled = torch.randperm(40 * k, generator=torch.Generator().manual_seed(2))
    order = list(dict.fromkeys(origins[shuffled].tolist()))
    again = estimate(column[shuffled], origins=origins[shuffled])
    assert again == pytest.approx(estimate(VALUES[order, 0]), abs=1e-9)
    halves = (column > 0.5).float()
    assert share(halves, torch.ones(40 * k), origins) == estimate(halves, origins=origins)


def test_origins_of_unequal_size_count_by_their_images():
    found = estimate(torch.tensor([1.0, 1, 1, 0]), origins=torch.tensor([5, 5, 5, 9]))
    assert found == (0.75, 0.0, 1.0)  # the four resamples have 1, 3/4 twice and 0


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_partners_are_of_another_origin_and_allowed_where_one_is(seed):
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randint(0, 6, (24,), generator=generator)
    origins[:2] = torch.tensor([0, 1])
    allowed, others = torch.rand(24, 24, generator=generator) < 0.2, different(origins)
    chosen = partners(allowed, seed, others)
    assert not (origins[chosen] == origins).any()
    possible = (allowed & others).any(1)
    assert allowed[torch.arange(24), chosen][possible].all()
    assert torch.equal(partners(allowed, seed), partners(allowed, seed, ~torch.eye(24).bool()))


def test_by_default_every_image_is_of_its_own_origin(real):
    shapes = load("shapes", "validation", limit=12)
    assert torch.equal(shapes.origins, torch.arange(12))
    assert shapes.subset(torch.tensor([7, 2, 7])).origins.tolist() == [7, 2, 7]
    chosen = torch.tensor([100, 3, 9])
    assert torch.equal(real["test"].subset(chosen).origins, real["test"].origins[chosen])


def emoji_judge() -> Judge:
    """With random weights."""
    torch.manual_seed(0)
    return Judge(Classifier(3, [len(KINDS)]).requires_grad_(False), ("class",), MEASURED["emoji"])


def test_strangers_are_never_of_the_same_drawing(real):
    panel = Panel(real["test"], emoji_judge(), canny, 200)
    assert not (panel.origins[panel.strangers] == panel.origins).any()
    kinds, same = panel.labels["class"], 0
    for i, j in enumerate(panel.strangers.tolist()):
        possible = (kinds == kinds[i]) & (panel.origins != panel.origins[i])
        assert kinds[j] == kinds[i] or not possible.any()
        same += int(kinds[j] == kinds[i])
    assert same > 150


def test_a_measured_label_is_measured_and_changes_nothing_that_is_learnt(real):
    images = real["test"].images[::5]
    measuring = emoji_judge()
    plain = Judge(measuring.classifier, ("class",))
    assert measuring.labels == ("class", "colour") and plain.labels == ("class",)
    (features, seen), (expected, learnt) = (judge(to_float(images)) for judge in (measuring, plain))
    assert torch.equal(seen["colour"], colour_of(images)) and [*seen] == ["class", "colour"]
    assert torch.equal(features, expected) and torch.equal(seen["class"], learnt["class"])


# ---------------------------------------------------------------- presets and flags


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ([], "cpu"),
        (["--dataset", "emoji"], "emoji"),
        (["--dataset=emoji"], "emoji"),
        (["--dataset", "shapes"], "cpu"),
        (["--dataset", "emoji", "--preset", "tiny"], "tiny"),
        (["--dataset", "emoji", "--preset", "auto"], "emoji"),
        (["--preset", "auto"], "cpu"),
        (["--dataset", "tests"], "folder"),
    ],
)
def test_the_preset_of_a_base_is_chosen_by_the_dataset(flags, preset):
    found, expected = parse_with_preset(BASE_PRESETS, flags), BASE_PRESETS[preset]
    assert found.preset == preset and found.fit == expected.fit
    assert found.vae == expected.vae and found.data.views == expected.data.views


@pytest.mark.parametrize("name", [*CONTROL_PRESETS, "auto", "nonsense", 3, None, ["gpu"]])
def test_a_control_takes_the_preset_of_its_base(tmp_path, name):
    (tmp_path / "settings.json").write_text(json.dumps({"preset": name}))
    found = parse_with_preset(CONTROL_PRESETS, ["--base", str(tmp_path)])
    preset = CONTROL_PRESETS[name if isinstance(name, str) and name in CONTROL_PRESETS else "cpu"]
    assert found.preset == preset.preset and found.fit == preset.fit
    assert (
        parse_with_preset(CONTROL_PRESETS, ["--base", str(tmp_path), "--preset", "tiny"]).preset
        == "tiny"
    )


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"7", b"{}", b"\xff\xfe"])
def test_a_base_that_does_not_tell_its_preset_gives_cpu(tmp_path, content):
    if content is not None:
        (tmp_path / "settings.json").write_bytes(content)
    assert parse_with_preset(CONTROL_PRESETS, [f"--base={tmp_path}"]).preset == "cpu"


def test_without_base_the_preset_is_that_of_the_usual_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    (tmp_path / "runs" / "base" / "settings.json").write_text('{"preset": "long"}')
    assert parse_with_preset(CONTROL_PRESETS, []).preset == "long"
    assert parse_with_preset(BASE_PRESETS, []).preset == "cpu"


def test_only_emoji_has_views(capfd):
    assert DataSettings(dataset="emoji", views=64).views == 64
    for views in (0, 65):
        with pytest.raises(ValueError, match=f"^views {views}: must be between 1 and 64"):
            DataSettings(dataset="emoji", views=views)
    error = error_of(capfd, "train_base", "--dataset", "emoji", "--views", 65)
    assert error.startswith("error: --views 65: must be between 1 and 64")
    few, plain = (load("shapes", "train", limit=4, views=views) for views in (8, 1))
    assert torch.equal(few.images, plain.images)


@pytest.fixture(scope="session")
def runs(font, tmp_path_factory) -> Path:
    """A folder with the runs `base` and `control` of preset tiny, trained for two steps."""
    folder = tmp_path_factory.mktemp("emoji")
    fit = ["--preset", "tiny", "--steps", 2, "--preview-every", 2]
    flags = [*fit, "--vae-fit.steps", 2, "--vae-fit.preview-every", 2, "--limit", 16, "--views", 2]
    flags += ["--dataset", "emoji", "--data-dir", font.parent, "--out", folder / "base"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(previews, "ROWS", 1)
        patch.setattr(previews, "COLUMNS", 2)
        patch.setattr(previews, "generate", partial(generate, steps=1))
        COMMANDS["train_base"]([*map(str, flags)])
        flags = [*fit[2:], "--base", folder / "base", "--out", folder / "control"]
        COMMANDS["train_control"]([*map(str, flags)])
    return folder


def test_a_base_is_trained_on_emoji_in_colour_and_its_control_by_the_same_preset(runs, font):
    assert json.loads((runs / "control" / "settings.json").read_text())["preset"] == "tiny"
    assert data_settings(runs / "base") == DataSettings("emoji", font.parent, limit=16, views=2)
    ldm = load_base(runs / "base")
    assert ldm.vae.config.image_channels == 3
    assert {"red", "drawing", "something", "emoji"} <= set(ldm.tokenizer.vocabulary)


def test_a_grid_is_sampled_for_a_drawing(runs, tmp_path):
    hint = sorted((runs / "control" / "hints").iterdir())[0]
    flags = ["--base", runs / "base", "--control", runs / "control", "--hint", hint]
    flags += [
        "--prompt",
        "a red face",
        "--steps",
        2,
        "--num-images",
        1,
        "--out",
        tmp_path / "s.png",
    ]
    COMMANDS["sample"]([*map(str, flags)])
    picture = cv2.imread(str(tmp_path / "s.png"))
    assert picture.shape[1] == 2 * 100 and picture.std() > 10


def test_evaluating_sees_each_drawing_as_it_is_only(runs, monkeypatch):
    views = []
    monkeypatch.setattr(run_folder, "load", lambda *a: views.append(a[-1]) or load(*a))
    for augmented in (True, False):
        (data,) = load_run(runs / "base", "train", augmented=augmented)[1]
        assert len(data) == 16
    assert views == [2, 1]


def test_a_run_from_before_there_were_views_has_the_default(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "base")
    chosen = json.loads((tmp_path / "base" / "settings.json").read_text())
    del chosen["data"]["views"]
    files.write_json(tmp_path / "base" / "settings.json", chosen)
    save_base(tmp_path / "base", load_base(runs / "base"))
    assert data_settings(tmp_path / "base").views == 8
    assert data_settings(runs / "base").views == 2


def test_a_base_is_used_with_the_font_that_it_was_trained_on(runs, font, monkeypatch):
    told = json.loads((runs / "base" / "settings.json").read_text())["font_sha256"]
    assert told == files.sha256(font)
    monkeypatch.setattr(run_folder, "font_checksum", lambda data_dir: "another version")
    with pytest.raises(UserError, match=f"^{font}: not the version of the font .*TINYLDM_DATA"):
        data_settings(runs / "base")


def test_other_datasets_tell_neither_views_nor_a_font():
    """So that what was trained before there were any is resumed."""
    told = run_folder.described(BASE_PRESETS["tiny"], Machine())
    assert told["data"]["dataset"] == "shapes"
    assert "views" not in told["data"] and "font_sha256" not in told
