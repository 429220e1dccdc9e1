"""Pictures for people: labelled grids of images; and reading whatever picture a user has."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import make_grid

from tinyldm.data.dataset import to_uint8
from tinyldm.support import files

GAP, LINE = 4, 22  # pixels between tiles, height of a label
GIVE = "give a PNG or JPEG picture"


def tile(x: Tensor, size: int) -> Tensor:
    """An image (k, H, W) in [-1, 1], enlarged without smoothing, with room for a label: uint8 (3, ...)."""
    picture, nearest = to_uint8(x).cpu().expand(3, -1, -1), InterpolationMode.NEAREST
    picture = transforms.resize(picture, [size, size], interpolation=nearest)
    return transforms.pad(picture, [0, LINE, GAP, GAP], fill=255)


def save_grid(path: Path, rows: Sequence[tuple[str, Sequence[Tensor]]], size: int = 96) -> None:
    """Write a PNG with one labelled row of images (k, H, W) in [-1, 1] per entry; make folders."""
    columns, blank = max(len(images) for _, images in rows), torch.ones(1, size, size)
    filled = [[*images, *[blank] * (columns - len(images))] for _, images in rows]
    tiles = [tile(x, size) for images in filled for x in images]
    canvas = transforms.to_pil_image(make_grid(tiles, columns, padding=0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for i, (label, _) in enumerate(rows):
        draw.text((0, i * (LINE + size + GAP) + 1), label, fill="black", font=font)
    write_png(path, canvas)


def save_image(path: Path, x: Tensor) -> None:
    """Write one image (k, H, W) in [-1, 1] as a PNG, pixel by pixel; make folders."""
    write_png(path, transforms.to_pil_image(to_uint8(x).cpu().expand(3, -1, -1)))


def write_png(path: Path, picture: Image.Image) -> None:
    content = io.BytesIO()
    picture.save(content, "PNG")
    files.write(path, content.getvalue())


def hint_image(hint: Tensor) -> Tensor:
    """A hint (1, H, W), bool or in [0, 1], as an image in [-1, 1]."""
    return hint.float() * 2 - 1


def read_image(path: Path, channels: int, resolution: int) -> Tensor:
    """Any picture file -> uint8 (1, k, H, H): its middle square, scaled.

    Scales by area averaging if that makes it smaller, else bilinearly. Ignores transparency, applies
    EXIF rotation. Raises UserError if the file is missing or no picture.
    """
    broken = SyntaxError, Image.DecompressionBombError
    with files.expecting("a picture", path, GIVE, *broken), Image.open(path) as opened:
        if opened.mode.startswith("I"):  # 16 bits, which `convert` would cut off at 255
            opened = Image.fromarray((np.asarray(opened) // 257).astype(np.uint8))
        picture = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    square = transforms.center_crop(picture, [side, side])
    box = InterpolationMode.BOX if side > resolution else InterpolationMode.BILINEAR
    square = transforms.resize(square, [resolution, resolution], interpolation=box)
    return transforms.pil_to_tensor(square)[None]
