"""The state of a training, whole or not at all: weights, their average, the optimizer's moments, the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinyldm.support import files


@dataclass
class Checkpoint:
    """A file, and the tensors that it keeps; the step is kept with them."""

    path: Path
    parameters: Sequence[Tensor]
    average: Sequence[Tensor]  # of the parameters
    losses: Tensor  # since the last line of the log
    optimizer: torch.optim.Optimizer  # of the parameters

    @property
    def columns(self) -> dict[str, Sequence[Tensor]]:
        return {"weights": self.parameters, "ema": self.average, "losses": [self.losses]}

    def save(self, step: int) -> None:
        """Write all of it."""
        tensors = {
            f"{n}.{i}": x for n, column in self.columns.items() for i, x in enumerate(column)
        }
        for i, parameter in enumerate(self.parameters):
            state = self.optimizer.state[parameter]
            tensors |= {f"optimizer.{i}.{key}": value for key, value in state.items()}
        files.write_tensors(self.path, {"step": torch.tensor(step), **tensors})

    def load(self) -> int:
        """Load all of it in place; return the step, 0 if there is no file yet. Raises UserError."""
        if not self.path.exists():
            return 0
        remedy = "start over with --overwrite"
        tensors = files.read_tensors(self.path, remedy)
        with files.expecting("a checkpoint of this model", self.path, remedy, RuntimeError):
            self.fill(tensors)
        return int(tensors["step"])

    @torch.no_grad()
    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Copy what `save` wrote into the tensors and the optimizer. Raises KeyError or RuntimeError."""
        for name, column in self.columns.items():
            for i, tensor in enumerate(column):
                tensor.copy_(tensors[f"{name}.{i}"])
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{i}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            placed = {name: like(parameter, value) for name, value in state.items()}
            self.optimizer.state[parameter] = placed


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """On the parameter's device and, if a moment, in its memory format: fused AdamW pairs raw memory."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value)
