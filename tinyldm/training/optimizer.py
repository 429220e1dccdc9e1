"""The optimizer: Muon for matrices and convolutions, AdamW for everything else.

[Muon] K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. The factor 0.2 sqrt(columns)
makes a step as long as one of AdamW's, so that both share one learning rate: Liu et al.,
arXiv 2502.16982, eq. 4.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tinyldm.training.settings import FitSettings

SMALLEST = (
    16  # rows and columns: below, as in the first convolution of an image, AdamW serves better
)
A, B, C = 3.4445, -4.7750, 2.0315  # of the polynomial that drives singular values towards 1 [Muon]


def orthogonal(x: Tensor, iterations: int = 5) -> Tensor:
    """Matrices (n, r, c), r <= c -> about U V^T of each U S V^T: singular values within 0.7 to 1.2.

    Newton-Schulz iteration: x <- a x + b (x x^T) x + c (x x^T)^2 x.
    """
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


def wide(x: Tensor) -> Tensor:
    """A matrix, or a convolution (o, i, h, w) as the matrix (o, i h w), transposed if r > c: (r, c), r <= c."""
    x = x.flatten(1)
    return x if x.shape[0] <= x.shape[1] else x.T


def unwide(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `wide`: (r, c) -> the shape of `like`."""
    rows, columns = like.flatten(1).shape
    return (x if rows <= columns else x.T).reshape(like.shape)


class Muon(torch.optim.AdamW):
    """AdamW, but a matrix steps along its orthogonalised momentum, all its directions by the same length.

    The iteration runs in `dtype`, for all matrices of one shape together.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        self.momentum, self.dtype = momentum, dtype
        self.shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in self.param_groups[0]["params"]:
            if parameter.ndim >= 2 and min(parameter.flatten(1).shape) >= SMALLEST:
                self.shapes.setdefault(wide(parameter).shape, []).append(parameter)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step; the gradients of the matrices are used up."""
        for matrices in self.shapes.values():
            if used := [p for p in matrices if p.grad is not None]:
                self.step_matrices(used)
        super().step()  # passes over the matrices, which have no gradient now

    def step_matrices(self, matrices: list[nn.Parameter]) -> None:
        """p <- (1 - lr wd) p - lr 0.2 sqrt(c) orthogonal(Nesterov momentum)."""
        for p in matrices:
            self.state[p].setdefault("momentum", torch.zeros_like(p))
        gradients = [p.grad for p in matrices if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        directions = torch._foreach_lerp(gradients, momenta, self.momentum)
        matrix = torch.stack([wide(d) for d in directions]).to(self.dtype)
        directions = orthogonal(matrix).float()
        group = self.param_groups[0]
        for p, direction in zip(matrices, directions, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(unwide(direction, p), alpha=group["lr"] * 0.2 * math.sqrt(direction.shape[1]))
            p.grad = None


def build_optimizer(
    settings: FitSettings, parameters: Iterable[nn.Parameter], dtype: torch.dtype
) -> torch.optim.Optimizer:
    """The optimizer that the settings name; Muon computes its directions in `dtype`."""
    lr, weight_decay = settings.lr, settings.weight_decay
    if settings.optimizer == "muon":
        return Muon(parameters, lr, weight_decay, dtype=dtype)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
