"""Pictures of any kind, in and out: any bytes, any label, any edge map, and what is not finite."""

import io
import os
import struct
import zlib
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from tinyldm.data.pictures import drawable, hint_image, read_image, save_grid, save_image
from tinyldm.support.errors import UserError

NEAREST, BILINEAR = Image.Resampling.NEAREST, Image.Resampling.BILINEAR


def encoded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, kind, **options)
    return content.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be this large."""
    chunk = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    ends = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + ends + b"\0\0\0\0IDAT"


# ---------------------------------------------------------------- reading

GARMENT = np.arange(48 * 40 * 3, dtype=np.uint32).reshape(48, 40, 3).astype(np.uint8)
VALID = [encoded(GARMENT, kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")]
VALID.append(encoded(GARMENT, "TIFF", compression="tiff_lzw"))
HUGE = {
    "144 megapixels": png_header(12_000, 12_000),
    "4 gigapixels": png_header(65_535, 65_535),
    "a PPM of 10 gigapixels": b"P6 99999 99999 255 ",
}
BROKEN = {
    "empty": b"",
    "HTML": b"<!doctype html><html></html>",
    "truncated": VALID[0][: len(VALID[0]) // 2],
}


@pytest.mark.parametrize("name", BROKEN | HUGE)
def test_what_is_no_picture_is_one_line_that_names_the_file(tmp_path, name):
    (tmp_path / "p.png").write_bytes((BROKEN | HUGE)[name])
    told = "not a picture .*; give a PNG" if name in BROKEN else "has more than 89 million pixels"
    with pytest.raises(UserError, match=rf"p\.png: {told}") as error:
        read_image(tmp_path / "p.png", 1, 32)
    assert "\n" not in str(error.value)


def test_postscript_is_never_interpreted(tmp_path):
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "p.png").write_bytes(program)
    with Image.open(tmp_path / "p.png") as opened:
        assert opened.format == "EPS"  # so PIL would hand it to Ghostscript
    with pytest.raises(UserError, match=r"p\.png: not a picture .*no known format"):
        read_image(tmp_path / "p.png", 1, 32)


def test_an_error_of_any_kind_from_a_decoder_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "p.png").write_bytes(VALID[0])
    for kind in (struct.error, ZeroDivisionError, SyntaxError, zlib.error, AssertionError):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", Mock(side_effect=kind("deep inside")))
        with pytest.raises(UserError, match=r"p\.png: not a picture .*deep inside.*give a PNG"):
            read_image(tmp_path / "p.png", 1, 32)


@pytest.mark.parametrize("name", HUGE)
def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch, name):
    (tmp_path / "p.png").write_bytes(HUGE[name])
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"p\.png: has more than 89 million pixels; scale it down$"):
        read_image(tmp_path / "p.png", 1, 32)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_a_regular_file_is_read_and_nothing_hangs(tmp_path, make):
    make(tmp_path / "p.png")
    with pytest.raises(UserError, match=r"p\.png"):
        read_image(tmp_path / "p.png", 1, 32)


def test_a_missing_picture_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"p\.png: cannot be read|device or a pipe|no such file"):
        read_image(tmp_path / "p.png", 1, 32)


@given(content=st.binary(max_size=300) | st.sampled_from(VALID), data=st.data())
@settings(deadline=None, max_examples=250)
def test_random_damage_is_read_or_is_one_clear_error(tmp_path_factory, content, data):
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 6)) if content else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "p.png"
    path.write_bytes(damaged[: data.draw(st.integers(1, 2000))])
    try:
        assert read_image(path, 3, 16).shape == (1, 3, 16, 16)
    except UserError as error:
        assert "p.png" in str(error)


def test_modes_of_all_kinds_give_the_same_grey(tmp_path):
    half = Image.new("L", (8, 8), 128)
    for mode in ("1", "P", "LA", "RGBA", "RGB", "CMYK", "I;16"):
        deep = Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16))
        picture = deep if mode == "I;16" else half.convert(mode)
        picture.save(tmp_path / "p.tiff")
        values = read_image(tmp_path / "p.tiff", 3, 8)
        assert values.shape == (1, 3, 8, 8)
        if mode != "1":
            assert (values.int() - 128).abs().max() <= 1, mode


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white_whatever_is_under_it(tmp_path, mode):
    Image.new("RGBA", (8, 8), (200, 100, 50, 0)).convert(mode).save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png", 3, 8)[0, :, 0, 0].tolist() == [255, 255, 255]
    Image.new("RGBA", (8, 8), (200, 100, 50, 255)).save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png", 3, 8)[0, :, 0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_rotation_is_applied(tmp_path, dtype):
    array = np.zeros((8, 8), dtype=dtype)
    array[0] = np.iinfo(dtype).max  # stored on top, and shown on the right
    picture, exif = Image.fromarray(array), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "p.png", exif=exif)
    shown = read_image(tmp_path / "p.png", 1, 8)[0, 0]
    assert (shown[:, 7] == 255).all() and shown[:, :7].max() == 0


def test_one_pixel_fills_the_picture(tmp_path):
    Image.new("L", (1, 1), 77).save(tmp_path / "p.png")
    assert (read_image(tmp_path / "p.png", 1, 32) == 77).all()


def test_a_picture_is_grey_or_red_green_blue_as_asked(tmp_path):
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "p.png")
    grey, coloured = (read_image(tmp_path / "p.png", channels, 8) for channels in (1, 3))
    assert grey.shape == (1, 1, 8, 8) and coloured.shape == (1, 3, 8, 8)
    assert (grey == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()
    assert coloured[0, :, 5, 3].tolist() == [200, 100, 50]


def test_levels_beyond_16_bits_are_black_or_white(tmp_path):
    levels = np.array([[-70_000, 256], [70_000, 2**16 - 1]], dtype=np.int32)
    Image.fromarray(levels).save(tmp_path / "p.tiff")
    assert read_image(tmp_path / "p.tiff", 1, 2)[0, 0].tolist() == [[0, 0], [255, 255]]


def test_the_middle_square_is_read_and_scaled_by_area_or_bilinearly(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "p.png")
    middle = values[:, 4:20]
    assert np.array_equal(read_image(tmp_path / "p.png", 1, 16)[0, 0], middle)
    halved = read_image(tmp_path / "p.png", 1, 8)[0, 0].float()
    means = middle.reshape(8, 2, 8, 2).astype(np.float32).mean((1, 3))
    assert (halved - torch.from_numpy(means)).abs().max() <= 1  # rounded along each axis
    smooth = Image.fromarray(middle).resize((32, 32), BILINEAR)
    assert np.array_equal(read_image(tmp_path / "p.png", 1, 32)[0, 0], np.asarray(smooth))


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_that_is_not_finite_is_not_written(tmp_path, value):
    x = torch.zeros(1, 32, 32)
    x[0, 3, 4] = value
    for save in (
        save_image,
        lambda path, x: save_grid(path, [("good", [x * 0 + 1]), ("bad", [x])]),
    ):
        with pytest.raises(UserError, match=r"p\.png: the picture is not finite.*--guidance"):
            save(tmp_path / "p.png", x)
    assert list(tmp_path.iterdir()) == []


def test_a_hint_is_white_on_black():
    assert hint_image(torch.tensor([[[True, False]]])).tolist() == [[[1, -1]]]
    assert hint_image(torch.tensor([[[0.5, 0.25]]])).tolist() == [[[0, -0.5]]]


def test_a_grid_is_labels_above_rows_of_pictures_on_white(tmp_path):
    """Pictures of 32 pixels, enlarged to 96; a gap of 4 after each and below; labels are 22 high."""
    values = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    a, b, c = values.float() / 127.5 - 1
    save_grid(tmp_path / "deep" / "grid.png", [("one", [a]), ("two", [b, c])])
    canvas = Image.new("RGB", (2 * 100, 2 * 122), "white")
    for picture, corner in zip(values, ((0, 22), (0, 144), (100, 144)), strict=True):
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((96, 96), NEAREST)
        canvas.paste(tile, corner)
    font = ImageFont.load_default(13)
    for label, top in (("one", 1), ("two", 123)):
        ImageDraw.Draw(canvas).text((0, top), label, fill="black", font=font)
    with Image.open(tmp_path / "deep" / "grid.png") as found:
        assert np.array_equal(np.asarray(found), np.asarray(canvas))


ANY = st.text(st.characters())  # surrogates included


@given(label=ANY)
@settings(deadline=None, max_examples=150)
def test_any_text_is_a_label(tmp_path_factory, label):
    path = tmp_path_factory.getbasetemp() / "grid.png"
    save_grid(path, [(label, [torch.zeros(1, 8, 8)])], size=32)
    assert cv2.imread(str(path)).shape == (32 + 26, 36, 3)
    drawable(label, 50).encode()  # no surrogate is left


def test_a_label_is_one_line_cut_to_its_row():
    assert drawable("a\nb\t c\x00\udcff", 99) == "a b c??"
    assert drawable("x" * 100_000, 400) == "x" * 400


LABELS = {
    "invalid UTF-8": os.fsdecode(b"a \xff\xfe coat"),
    "lines": "a\nb\r\n\x00c",
    "long": "wide " * 20_000,
    "right to left": "\u202eשלום عالم \u2067",
    "combining": "e" + "\u0301" * 500,
    "pictures": "👩‍👩‍👧 \U0010ffff",
}


@pytest.mark.parametrize("name", LABELS)
def test_awkward_labels_stay_in_their_row(tmp_path, name):
    white = torch.ones(1, 8, 8)
    save_grid(tmp_path / "grid.png", [(LABELS[name], [white]), ("", [white])], size=32)
    lower = cv2.imread(str(tmp_path / "grid.png"))[32 + 26 :]
    assert lower.shape == (32 + 26, 36, 3) and lower.min() == 255
