"""Pictures for people: labelled grids of images; and reading whatever picture a user has."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import make_grid

from tinyldm.data.dataset import to_uint8
from tinyldm.support import files
from tinyldm.support.errors import UserError

Rows = Sequence[tuple[str, Sequence[Tensor]]]  # labels with images (k, H, W) in [-1, 1]
GAP, LINE = 4, 22  # pixels between tiles, height of a label
FRAME, REST = 120, 2500  # milliseconds that a frame of an animation stays, and the last one
GIVE = "give a PNG or JPEG picture"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # that PIL decodes by itself


def pixels(path: Path, x: Tensor) -> Tensor:
    """An image (k, H, W) in [-1, 1] -> uint8 (3, H, W), on the CPU.

    Raises UserError, naming the file that it was meant for, if it is not finite.
    """
    if not x.isfinite().all():
        reason = "the picture is not finite, so it is not written"
        raise UserError(f"{path}: {reason}; lower --guidance or --control-scale, or train anew")
    return to_uint8(x).cpu().expand(3, -1, -1)


def tile(picture: Tensor, size: int) -> Tensor:
    """A picture uint8 (3, H, W), enlarged without smoothing, with room for a label."""
    nearest = InterpolationMode.NEAREST
    picture = transforms.resize(picture, [size, size], interpolation=nearest)
    return transforms.pad(picture, [0, LINE, GAP, GAP], fill=255)


def drawable(text: str, length: int) -> str:
    """The first `length` characters, in one line; "?" for what cannot be drawn: surrogates, controls."""
    line = " ".join(text[:length].split())
    return "".join(c if c.isprintable() else "?" for c in line)


def draw_grid(path: Path, rows: Rows, size: int) -> Image.Image:
    """One labelled row of images per entry, to be written to `path`. Raises UserError as `pixels`."""
    columns, blank = max(len(images) for _, images in rows), torch.ones(1, size, size)
    filled = [[*images, *[blank] * (columns - len(images))] for _, images in rows]
    tiles = [tile(pixels(path, x), size) for images in filled for x in images]
    canvas = transforms.to_pil_image(make_grid(tiles, columns, padding=0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for i, (label, _) in enumerate(rows):
        corner = 0, i * (LINE + size + GAP) + 1
        draw.text(corner, drawable(label, canvas.width), fill="black", font=font)
    return canvas


def save_grid(path: Path, rows: Rows, size: int = 96) -> None:
    """Write a PNG with one labelled row of images (k, H, W) in [-1, 1] per entry; make folders.

    Labels may be any text. Raises UserError, and writes nothing, if an image is not finite.
    """
    write_picture(path, draw_grid(path, rows, size), "PNG")


def save_animation(path: Path, frames: Sequence[Rows], size: int = 96) -> None:
    """Write grids as a GIF that starts over after resting on the last; as `save_grid` otherwise."""
    first, *others = (draw_grid(path, rows, size) for rows in frames)
    times = [FRAME] * len(others) + [REST]
    write_picture(path, first, "GIF", save_all=True, append_images=others, duration=times, loop=0)


def save_image(path: Path, x: Tensor) -> None:
    """Write one image (k, H, W) in [-1, 1] as a PNG, pixel by pixel; make folders.

    Raises UserError, and writes nothing, if it is not finite.
    """
    write_picture(path, transforms.to_pil_image(pixels(path, x)), "PNG")


def write_picture(path: Path, picture: Image.Image, format: str, **settings: Any) -> None:
    content = io.BytesIO()
    picture.save(content, format, **settings)
    files.write(path, content.getvalue())


def hint_image(hint: Tensor) -> Tensor:
    """A hint (1, H, W), bool or in [0, 1], as an image in [-1, 1]."""
    return hint.float() * 2 - 1


def eight_bits(picture: Image.Image) -> Image.Image:
    """16 bits, which `convert` would cut off at 255, as 8."""
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture) // 257
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def open_picture(path: Path) -> Image.Image:
    """A picture file in mode L, LA, RGB or RGBA, turned as its EXIF says.

    Raises UserError if it is not a regular file, no picture, or has more than 89 million pixels.
    """
    content = io.BytesIO(files.read(path, GIVE, most=2**28))
    with files.expecting("a picture", path, GIVE, Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a decoder repairs
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = ImageOps.exif_transpose(Image.open(content, formats=FORMATS))
        except UnidentifiedImageError as error:
            raise ValueError("no known format") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: has more than 89 million pixels; scale it down") from error
        if picture.mode == "F":
            raise UserError(f"{path}: has pixels of floating point; store it with 8 or 16 bits")
        picture = eight_bits(picture)
        clear = "transparency" in picture.info or picture.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        if picture.mode in ("1", "L", "LA", "La"):
            return picture.convert("LA" if clear else "L")
        return picture.convert("RGBA" if clear else "RGB")


def flattened(picture: Image.Image, ground: str = "white") -> Image.Image:
    """A picture without transparency, on a ground."""
    if picture.mode not in ("LA", "RGBA"):
        return picture
    below = Image.new("RGBA", picture.size, ground)
    below.alpha_composite(picture.convert("RGBA"))
    return below.convert(picture.mode.removesuffix("A"))


def centred(picture: Image.Image) -> Image.Image:
    """Its middle square."""
    return transforms.center_crop(picture, [min(picture.size)] * 2)


def fitted(square: Image.Image, channels: int, resolution: int) -> Tensor:
    """A square picture as an image uint8 (1, k, H, H), grey or RGB.

    Scales by area averaging if that makes it smaller, else bilinearly.
    """
    square = square.convert("L" if channels == 1 else "RGB")
    box = InterpolationMode.BOX if square.width > resolution else InterpolationMode.BILINEAR
    square = transforms.resize(square, [resolution, resolution], interpolation=box)
    return transforms.pil_to_tensor(square)[None]


def read_image(path: Path, channels: int, resolution: int) -> Tensor:
    """Any picture file -> uint8 (1, k, H, H): its middle square, scaled, on white. Raises UserError."""
    return fitted(flattened(centred(open_picture(path))), channels, resolution)
