"""The optimizer: Muon for matrices and convolutions, AdamW for everything else.

[Muon] K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. The factor 0.2 sqrt(columns)
makes a step as long as one of AdamW's, so that both share one learning rate: Liu et al.,
arXiv 2502.16982, eq. 4.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinyldm.training.settings import FitSettings

SMALLEST = (
    16  # rows and columns: below, as in the first convolution of an image, AdamW serves better
)
A, B, C = 3.4445, -4.7750, 2.0315  # of the polynomial that drives singular values towards 1 [Muon]


def polynomial(gram: Tensor) -> Tensor:
    """A + B g + C g^2 of matrices (n, r, r)."""
    p = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
    p.diagonal(dim1=1, dim2=2).add_(A)
    return p


def iterated(gram: Tensor, iterations: int) -> Tensor:
    """The q (n, r, r) for which so many iterations make q x of an x whose Gram matrix x x^T is given."""
    q = p = polynomial(gram)
    for _ in range(iterations - 1):
        gram = p @ gram @ p
        p = polynomial(gram)
        q = p @ q
    return q


def orthogonal(x: Tensor, rounds: Sequence[int] = (2, 3)) -> Tensor:
    """Matrices (n, r, c), r <= c -> about U V^T of each U S V^T: singular values within 0.7 to 1.2.

    Newton-Schulz iteration, five times x <- (A + B x x^T + C (x x^T)^2) x, carried out on the smaller Gram
    matrix. It is computed anew after two of them: so small singular values stay exact enough, with TF32 too.
    """
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for iterations in rounds:
        x = iterated(x @ x.mT, iterations) @ x
    return x


def wide(x: Tensor) -> Tensor:
    """A matrix, or a convolution (o, i, h, w) as the matrix (o, h w i), transposed if r > c: (r, c), r <= c.

    That order of columns is the memory's in channels_last, so it is a view there.
    """
    x = x.movedim(1, -1).flatten(1) if x.ndim > 2 else x
    return x if x.shape[0] <= x.shape[1] else x.T


def unwide(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `wide`: (r, c) -> the shape of `like`."""
    rows, columns = like.flatten(1).shape
    x = x if rows <= columns else x.T
    return x.unflatten(1, (*like.shape[2:], -1)).movedim(-1, 1) if like.ndim > 2 else x


class Muon(torch.optim.AdamW):
    """AdamW, but a matrix steps along its orthogonalised momentum, all its directions by the same length.

    All matrices of one shape are orthogonalised together. On CUDA a step can be captured in a graph, and the
    learning rate is a tensor () there.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float | Tensor,
        weight_decay: float,
        momentum: float = 0.95,
    ):
        super().__init__(parameters, **adamw(lr, weight_decay))
        self._step_supports_amp_scaling = False  # a GradScaler is to leave out steps that overflow
        self.momentum = momentum
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
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in matrices if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        nesterov = torch._foreach_lerp(gradients, momenta, self.momentum)
        directions = orthogonal(torch.stack([wide(x) for x in nesterov]))
        lr, weight_decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        directions *= lr * 0.2 * math.sqrt(directions.shape[2])
        steps: Any = [unwide(x, p) for x, p in zip(directions, matrices, strict=True)]
        weights: list[Tensor] = [*matrices]
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_sub_(weights, steps)
        for p in matrices:
            p.grad = None


def adamw(lr: float | Tensor, weight_decay: float) -> dict[str, Any]:
    """Arguments of torch's AdamW; a learning rate that is a tensor can be changed in a captured graph."""
    capturable = isinstance(lr, Tensor)
    return {"lr": lr, "weight_decay": weight_decay, "fused": True, "capturable": capturable}


def build_optimizer(
    settings: FitSettings, parameters: Iterable[nn.Parameter], lr: float | Tensor | None = None
) -> torch.optim.Optimizer:
    """The optimizer that the settings name, with their learning rate or with `lr`."""
    lr = settings.lr if lr is None else lr
    if settings.optimizer == "muon":
        return Muon(parameters, lr, settings.weight_decay)
    return torch.optim.AdamW(parameters, **adamw(lr, settings.weight_decay))
