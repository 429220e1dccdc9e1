"""Other hints than the default: conditions to train on, and edges that are worn, as people's are."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyldm.data.conditions import canny

SPARSE = 0.1  # share of edge pixels
BLUR = 9  # pixels


def noise(shape: torch.Size | tuple[int, ...], seed: int = 0) -> Tensor:
    """Uniform in [0, 1), the same every time."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def silhouette(images: Tensor) -> Tensor:
    """Images uint8 (b, k, H, W) on a plain ground -> where something is, bool (b, 1, H, W)."""
    ground = images[:, :, :1, :1].float()
    return (images.float() - ground).abs().amax(1, keepdim=True) > 25.5  # a tenth of white


def sparse(images: Tensor) -> Tensor:
    """A tenth of the edge pixels, drawn at random: a cloud of points, bool (b, 1, H, W)."""
    edges = canny(images)
    return edges & (noise(edges.shape) < SPARSE)


def blurred(images: Tensor) -> Tensor:
    """Edges averaged over 9 x 9 pixels: where there are many, not where they are, float (b, 1, H, W)."""
    return F.avg_pool2d(canny(images).float(), BLUR, 1, BLUR // 2)


HINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "canny": canny,
    "silhouette": silhouette,
    "sparse": sparse,
    "blurred": blurred,
}


def shifted(edges: Tensor, pixels: int) -> Tensor:
    """Edges bool (b, 1, H, W) moved to the right and down."""
    return F.pad(edges, (pixels, 0, pixels, 0))[..., : edges.shape[-2], : edges.shape[-1]]


def thickened(edges: Tensor, pixels: int) -> Tensor:
    """Edges so many pixels wide, an odd number."""
    return F.max_pool2d(edges.float(), pixels, 1, pixels // 2) > 0


def broken(edges: Tensor, share: float) -> Tensor:
    """Without that share of the 4 x 4 squares of the picture."""
    squares = noise((len(edges), 1, edges.shape[-2] // 4, edges.shape[-1] // 4)) >= share
    return edges & F.interpolate(squares.float(), scale_factor=4).bool()


def hand_drawn(edges: Tensor, pixels: float) -> Tensor:
    """Edges displaced by up to so many pixels, slowly along the line, as an unsteady hand does."""
    n, _, height, width = edges.shape
    rough = 2 * noise((n, 2, height // 8, width // 8), 1) - 1
    moves = F.interpolate(rough, (height, width), mode="bicubic") * 2 * pixels / width
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    return (
        F.grid_sample(
            edges.float(), grid + moves.movedim(1, -1), mode="nearest", align_corners=True
        )
        > 0
    )


def rolled(images: Tensor) -> Tensor:
    """Images (n, 3, H, W) with their channels changed in turn: red is green, green blue, blue red."""
    return images.roll(1, dims=1)


STYLES: dict[str, Callable[[Tensor], Tensor]] = {"": lambda images: images, "rolled": rolled}
