"""The average of the weights that is saved in the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class EMA:
    """Exponential moving average of parameters [DDPM, appendix B]."""

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.parameters: list[Tensor] = list(parameters)
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """shadow <- d shadow + (1 - d) weights, d = min(decay, (1 + step) / (10 + step))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, self.parameters, 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        torch._foreach_copy_(self.parameters, self.shadow)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters have the averaged values."""
        weights = [p.detach().clone() for p in self.parameters]
        self.copy_to_parameters()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, weights)
