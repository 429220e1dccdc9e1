"""Checkpoints: folders with the state of a training, its log and their checksums, whole or not there."""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.support.sealed import Sealed, seal
from tinyldm.training.log import Log

STATE, METRICS = "state.safetensors", "metrics.jsonl"
REMEDY = "give --resume another checkpoint, or start over with --overwrite"


@dataclass
class State:
    """What changes in a training: weights, their average, the optimizer's moments, losses not yet logged."""

    parameters: Sequence[Tensor]
    average: Sequence[Tensor]  # of the parameters
    losses: Tensor  # since the last line of the log
    optimizer: torch.optim.Optimizer  # of the parameters

    def columns(self) -> dict[str, Tensor]:
        """All but the optimizer's, by name."""
        groups = {"weights": self.parameters, "ema": self.average, "losses": [self.losses]}
        return {f"{name}.{i}": x for name, group in groups.items() for i, x in enumerate(group)}

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        moments = {
            f"optimizer.{i}.{key}": value
            for i, parameter in enumerate(self.parameters)
            for key, value in self.optimizer.state[parameter].items()
        }
        return {**self.columns(), **moments}

    @torch.no_grad()
    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Copy what `tensors` gave into place. Raises KeyError, ValueError or RuntimeError."""
        for name, tensor in self.columns().items():
            tensor.copy_(alike(tensors.pop(name), tensor))
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{i}."
            names = [name for name in tensors if name.startswith(prefix)]
            self.optimizer.state[parameter] = {
                name.removeprefix(prefix): moment(tensors.pop(name), parameter) for name in names
            }
        if tensors:
            raise ValueError(f"{len(tensors)} tensors too many, the first is {next(iter(tensors))}")


def alike(value: Tensor, tensor: Tensor) -> Tensor:
    """The value. Raises ValueError unless it has the shape and the type of the tensor."""
    if value.shape != tensor.shape or value.dtype != tensor.dtype:
        raise ValueError(f"{value.dtype} {[*value.shape]}, not {tensor.dtype} {[*tensor.shape]}")
    return value


def moment(value: Tensor, parameter: Tensor) -> Tensor:
    """On the parameter's device and, unless a number, in its memory format: fused AdamW pairs raw memory."""
    if not value.ndim:
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(alike(value, parameter))


@dataclass
class Checkpoints:
    """The folders checkpoint-N of a run; N counts the steps of all its trainings, one after the other."""

    folder: Path
    every: int = 250  # steps
    limit: int = 2  # of a training that are kept, the newest
    at: int | None = None  # the N to resume from, 0 is the start; None finds the newest
    run: str = ""  # identifies the run
    before: int = 0  # steps of the trainings that are done

    def path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number}"

    def numbers(self) -> list[int]:
        """Every N, rising, damaged ones included."""
        found = (
            re.fullmatch(r"checkpoint-(\d+)", p.name) for p in self.folder.glob("checkpoint-*")
        )
        return sorted(int(match[1]) for match in found if match)

    def open(self, number: int) -> Sealed:
        """A checkpoint of this run, complete and undamaged. Raises UserError otherwise."""
        sealed = Sealed(self.path(number), REMEDY)
        sealed.verify()
        facts = sealed.manifest.facts
        if (facts.get("run"), facts.get("step")) != (self.run, str(number)):
            raise UserError(f"{sealed.folder}: a checkpoint of another run or step; {REMEDY}")
        return sealed

    def newest(self) -> int:
        """The newest N that is complete and undamaged, 0 if there is none; warns of those it skips."""
        for number in reversed(self.numbers()):
            try:
                self.open(number)
                return number
            except UserError as error:
                print(f"warning: {error}; it is skipped", file=sys.stderr)
        return 0

    def due(self, step: int) -> bool:
        """Is a checkpoint to be saved after this step of the current training?"""
        return (self.before + step) % self.every == 0

    def load(self, state: State, log: Log, steps: int) -> int:
        """Load the state from which the current training, of so many steps, resumes; return its step or 0.

        Puts the log back as it was then. Raises UserError.
        """
        self.at = self.newest() if self.at is None else self.at
        number = min(self.at, self.before + steps)
        if number > self.before:
            sealed = self.open(number)
            if sealed.manifest.facts.get("training") != log.stage:
                raise UserError(f"{sealed.folder}: a checkpoint of another training; {REMEDY}")
            path = sealed.folder / STATE
            with files.expecting("the state of this training", path, REMEDY, RuntimeError):
                state.fill(sealed.tensors(STATE))
            files.write(self.folder / METRICS, sealed.read(METRICS))
        start = max(0, number - self.before)
        log.rewind(start)
        return start

    def save(self, state: State, log: Log, step: int) -> None:
        """Save a step of the current training, verify that, and only then delete the oldest. UserError."""
        number = self.before + step
        path = self.path(number)
        saved, start = log.entry(step=step, checkpoint=path.name), time.perf_counter()
        files.discard(path)
        with files.whole_folder(path) as folder:
            sums = {
                STATE: files.write_tensors(folder / STATE, state.tensors()),
                METRICS: files.write_lines(folder / METRICS, [*log.entries, saved]),
            }
            seal(folder, sums, run=self.run, training=log.stage, step=str(number))
        self.open(number)
        log.write({**saved, "save_seconds": round(time.perf_counter() - start, 3)})
        kept = [n for n in self.numbers() if self.before < n <= number]
        for old in kept[: -self.limit]:
            files.discard(self.path(old))

    def clear(self) -> None:
        """Delete all of them."""
        for number in self.numbers():
            files.discard(self.path(number))
