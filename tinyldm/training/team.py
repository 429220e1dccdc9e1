"""Many processes, one training: torchrun starts them, and each computes its part of every batch.

What is drawn for a batch does not depend on how many they are, so that one process or eight, with or without
accumulated gradients, take the same steps, up to rounding.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from tinyldm.support.errors import UserError

DRAWS = (torch.rand, torch.randn, torch.randint)
OTHERS = (torch.rand_like, torch.randn_like, torch.normal, torch.bernoulli, torch.Tensor.normal_)


class Team(NamedTuple):
    """The processes of a training; this one is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def any(self, value: bool, device: torch.device) -> bool:
        """Is it so in one of them?"""
        if self.size == 1:
            return value
        found = torch.tensor(float(value), device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item() > 0

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """All leave this together; where one of them raises an error, the others end in silence."""
        failed = True
        try:
            yield
            failed = False
        finally:
            stop = self.any(failed, device)
        if stop:
            raise SystemExit(2)

    def mean(self, x: Tensor) -> Tensor:
        """Over all of them."""
        if self.size == 1:
            return x
        dist.all_reduce(x)
        return x / self.size

    def share(self, loss: "Loss") -> nn.Module:
        """The loss, after whose backward pass all have the mean gradient."""
        return DistributedDataParallel(loss, broadcast_buffers=False) if self.size > 1 else loss


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """The team that torchrun started this process in; by itself where it did not."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Team()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class Loss(nn.Module):
    """A loss function with the parameters that it is to be minimised over."""

    def __init__(self, loss_fn: Callable[..., Tensor], parameters: list[nn.Parameter]):
        super().__init__()
        self.loss_fn, self.parameters_ = loss_fn, nn.ParameterList(parameters)

    def forward(self, *batch: Any) -> Tensor:
        return self.loss_fn(*batch)


class PartOfDraws(TorchFunctionMode):
    """Inside, what is drawn for images of a part of a batch is that part of what all of it would draw."""

    def __init__(self, images: int, part: int, parts: int):
        self.images, self.part, self.parts = images, part, parts
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in OTHERS:
            raise RuntimeError(f"{func.__name__} in a loss: draw by torch.rand, randn or randint")
        if func not in DRAWS:
            return func(*args, **kwargs)
        first, *rest = func(*args, **{**kwargs, "device": "meta"}).shape or (0,)
        if first != self.images:
            return func(*args, **kwargs)
        size, bounds = (first * self.parts, *rest), args[:-1] if func is torch.randint else ()
        return func(*bounds, size, **kwargs).chunk(self.parts)[self.part]


def part_of_draws(
    images: int, part: int, parts: int, device: torch.device
) -> AbstractContextManager:
    """For one part of a batch of so many images; the generators are afterwards where they were before."""
    if parts == 1:
        return nullcontext()
    return restored(PartOfDraws(images // parts, part, parts), device)


@contextmanager
def restored(mode: PartOfDraws, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), mode:
        yield


def check_parts(batch_size: int, team: Team, accumulate: int, flag: str = "--batch-size") -> int:
    """How many parts a batch has. Raises UserError if they cannot be equal."""
    parts = team.size * accumulate
    if batch_size % parts:
        split = f"{team.size} processes, {accumulate} --gradient-accumulation-steps"
        raise UserError(f"{flag} {batch_size}: must be a multiple of {parts} ({split})")
    return parts
