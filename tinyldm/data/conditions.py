"""Conditions: functions from images to the hints that a ControlNet is given."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def canny(images: Tensor, low: float = 100, high: float = 200) -> Tensor:
    """Images uint8 (b, k, H, W), k = 1 or 3 -> edges bool (b, 1, H, W), by OpenCV [CN, 3.1].

    `low` and `high` are the hysteresis thresholds on the gradient of the image (Canny 1986).
    """
    pictures = rearrange(images, "b k H W -> b H W k").contiguous().cpu().numpy()
    edges = np.stack([cv2.Canny(picture, low, high) for picture in pictures])  # (b, H, W)
    return rearrange(torch.from_numpy(edges) > 0, "b H W -> b 1 H W").to(images.device)


def silhouette(images: Tensor) -> Tensor:
    """Images uint8 (b, k, H, W) on black -> where something is, bool (b, 1, H, W)."""
    return images.float().mean(1, keepdim=True) > 25.5  # a tenth of white


Name = Literal["canny", "silhouette", "given"]


@dataclass(frozen=True)
class Condition:
    """What hints are: found in images, or "given" with them; `low` and `high` are Canny's thresholds."""

    name: Name = "canny"
    low: float = 100
    high: float = 200

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 (b, k, H, W) -> hints bool (b, 1, H, W). Raises ValueError for given ones."""
        if self.name == "given":
            raise ValueError("hints that are given cannot be found in images")
        return (
            silhouette(images) if self.name == "silhouette" else canny(images, self.low, self.high)
        )
