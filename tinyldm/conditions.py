"""Hints: functions from images to what a ControlNet is told about them."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from tinyldm.dataset import to_uint8


def canny(x: Tensor, low: float = 100, high: float = 200) -> Tensor:
    """x (b, k, H, W) in [-1, 1], k = 1 or 3 -> edges (b, 1, H, W) in {0, 1}, white on black, by OpenCV [CN, 3.1 and appendix].

    `low` and `high` are the hysteresis thresholds on the gradient of the 0..255 image (Canny 1986).
    """
    pictures = to_uint8(x).permute(0, 2, 3, 1).contiguous().cpu().numpy()  # (b, H, W, k)
    edges = np.stack([cv2.Canny(picture, low, high) for picture in pictures])  # (b, H, W) in {0, 255}
    return torch.from_numpy(edges)[:, None].float().div(255).to(x.device)


CONDITIONS: dict[str, Callable[[Tensor], Tensor]] = {"canny": canny}
