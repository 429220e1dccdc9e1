"""The state of a training, whole or not at all: weights, their average, the optimizer's moments, the step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tinyldm import files
from tinyldm.errors import UserError


def save(path: Path, step: int, columns: dict[str, list[Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Write lists of tensors, among them the optimizer's parameters as "weights", and the optimizer's state."""
    tensors = {f"{name}.{i}": tensor for name, column in columns.items() for i, tensor in enumerate(column)}
    for i, parameter in enumerate(columns["weights"]):
        tensors |= {f"optimizer.{i}.{key}": value for key, value in optimizer.state[parameter].items()}
    files.write_tensors(path, {"step": torch.tensor(step), **tensors})


@torch.no_grad()
def load(path: Path, columns: dict[str, list[Tensor]], optimizer: torch.optim.Optimizer) -> int:
    """Read into the same lists what `save` wrote, and return the step: 0 if there is no file yet. Raises UserError."""
    if not path.exists():
        return 0
    tensors = files.read_tensors(path, "it is damaged: start over with --overwrite")
    try:
        for name, column in columns.items():
            for i, tensor in enumerate(column):
                tensor.copy_(tensors[f"{name}.{i}"])
        for i, parameter in enumerate(columns["weights"]):
            state = {k.rsplit(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"optimizer.{i}.")}
            optimizer.state[parameter] = {name: placed(value, parameter) for name, value in state.items()}
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path}: not a checkpoint of this model ({error}); start over with --overwrite") from error
    return int(tensors["step"])


def placed(value: Tensor, parameter: Tensor) -> Tensor:
    """On the parameter's device and, if a moment, in its memory format: fused AdamW pairs raw memory, not indices."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value)


@contextmanager
def stop_signal() -> Iterator[list[int]]:
    """Inside, the first SIGTERM or SIGINT only adds its number to this list; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
