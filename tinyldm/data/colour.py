"""Colour words by hue: measuring, without a neural network, which one a picture has; giving it another."""

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

HUES = {  # degrees of HSV's circle
    "red": 0,
    "orange": 30,
    "yellow": 55,
    "green": 120,
    "cyan": 185,
    "blue": 225,
    "purple": 275,
    "pink": 325,
}
COLOURFUL = 0.15  # chroma, in 0..1, from which on a pixel has a colour
LEAST = 0.01  # share of such pixels without which a picture has none
NONE = -1
SMOOTH = 10.0  # degrees, the width of the kernel over the histogram of hues


def to_hsv(images: Tensor) -> np.ndarray:
    """Images uint8 (n, 3, H, W) -> hue in [0, 360), saturation and value in 0..1, (n, H, W, 3)."""
    rgb = rearrange(images.float() / 255, "n k H W -> n H W k").contiguous().cpu().numpy()
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2HSV) for picture in rgb])


def from_hsv(hsv: np.ndarray) -> Tensor:
    """The reverse, rounded."""
    rgb = np.stack([cv2.cvtColor(picture, cv2.COLOR_HSV2RGB) for picture in hsv])
    pictures = torch.from_numpy((rgb * 255).round().clip(0, 255).astype(np.uint8))
    return rearrange(pictures, "n H W k -> n k H W").contiguous()


def kernel() -> Tensor:
    """(360, 360): what a pixel of hue j adds to the histogram at hue i."""
    degrees = torch.arange(360)
    distance = (degrees[:, None] - degrees + 180) % 360 - 180
    return torch.exp(-((distance / SMOOTH) ** 2) / 2)


def dominant_hue(hsv: np.ndarray) -> tuple[Tensor, Tensor]:
    """Pictures in HSV (n, H, W, 3) -> the commonest hue (n,) in degrees, the share of coloured pixels (n,).

    It is the peak of the smoothed histogram of hues, in which a pixel counts by its chroma.
    """
    hue, saturation, value = rearrange(torch.from_numpy(hsv), "n H W k -> k n (H W)")
    chroma = saturation * value  # (n, H W)
    coloured = chroma > COLOURFUL
    histogram = torch.zeros(len(hsv), 360)
    histogram.scatter_add_(1, hue.round().long() % 360, chroma * coloured)
    return (histogram @ kernel()).argmax(1).float(), coloured.float().mean(1)


def colour_of(images: Tensor) -> Tensor:
    """Images uint8 (n, 3, H, W) -> index into HUES (n,) of the nearest to the dominant hue, NONE if grey."""
    hue, share = dominant_hue(to_hsv(images))
    distance = (hue[:, None] - torch.tensor([*HUES.values()]) + 180) % 360 - 180
    return torch.where(share >= LEAST, distance.abs().argmin(1), NONE)


def recolour(images: Tensor) -> Tensor:
    """Images uint8 (n, 3, H, W) -> (n, 8, 3, H, W): each in every colour of HUES.

    All hues of a picture are turned by the angle that makes the dominant one that of the word; saturation
    and value stay, and so, nearly, do the edges.
    """
    hsv = to_hsv(images)
    (hue, _), turned = dominant_hue(hsv), []
    for wanted in HUES.values():
        angle = (wanted - hue).numpy()
        copy = hsv.copy()
        copy[..., 0] = (hsv[..., 0] + rearrange(angle, "n -> n 1 1")) % 360
        turned.append(from_hsv(copy))
    return torch.stack(turned, dim=1)
