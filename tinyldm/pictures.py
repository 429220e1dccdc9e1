"""Pictures for people: labelled grids of images, and reading whatever picture a user has."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from tinyldm import files
from tinyldm.dataset import to_float, to_uint8
from tinyldm.errors import UserError

cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # a broken picture is our error, in one line, not OpenCV's in three
GAP, LINE = 4, 18  # pixels between tiles, height of a label


def tile(x: Tensor, size: int) -> np.ndarray:
    """x (k, H, W) in [-1, 1] -> (size, size, 3), uint8, enlarged without smoothing."""
    picture = to_uint8(x).cpu().permute(1, 2, 0).numpy()
    picture = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_NEAREST)


def row(images: Sequence[Tensor], label: str, size: int, columns: int) -> np.ndarray:
    """One line of text above one line of tiles, on white."""
    canvas = np.full((LINE + size + GAP, columns * (size + GAP), 3), 255, dtype=np.uint8)
    cv2.putText(canvas, label, (0, LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    for i, x in enumerate(images):
        canvas[LINE : LINE + size, i * (size + GAP) : i * (size + GAP) + size] = tile(x, size)
    return canvas


def save_grid(path: Path, rows: Sequence[tuple[str, Sequence[Tensor]]], size: int = 96) -> None:
    """Write a PNG with one labelled row of images (k, H, W) in [-1, 1] per entry; folders are made."""
    columns = max(len(images) for _, images in rows)
    write_png(path, np.concatenate([row(images, label, size, columns) for label, images in rows]))


def save_image(path: Path, x: Tensor) -> None:
    """Write one image (k, H, W) in [-1, 1] as a PNG, pixel by pixel; folders are made."""
    write_png(path, tile(x, x.shape[-1]))


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3), uint8 RGB."""
    _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    files.write(path, png.tobytes())


def hint_image(hint: Tensor) -> Tensor:
    """A hint (1, H, W) in [0, 1] as an image in [-1, 1]."""
    return hint * 2 - 1


def read_image(path: Path, channels: int, resolution: int) -> Tensor:
    """Any picture file -> x (1, k, H, H) in [-1, 1]: cropped to its middle square, scaled with area averaging.

    Raises UserError if it is missing or no picture. Transparency is ignored, EXIF rotation is applied.
    """
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a PNG or JPEG picture") from error
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        picture = cv2.imdecode(content, flag) if len(content) else None
    except cv2.error:  # larger than OpenCV is willing to decode
        picture = None
    if picture is None:
        raise UserError(f"{path}: not a picture; give a PNG or JPEG picture")
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = cv2.resize(
        picture[top : top + side, left : left + side], (resolution, resolution), interpolation=cv2.INTER_AREA
    )
    return to_float(torch.from_numpy(picture.reshape(resolution, resolution, channels)).permute(2, 0, 1))[None]
