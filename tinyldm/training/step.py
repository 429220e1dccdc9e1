"""One training step: batch, loss, clipped gradient, optimizer; on CUDA, captured as one graph."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyldm.data.dataset import Columns
from tinyldm.training.machine import Machine
from tinyldm.training.settings import FitSettings
from tinyldm.training.team import Loss, check_parts, part_of_draws

LossFn = Callable[..., Tensor]  # of the columns of a batch -> ()
Check = Callable[[Tensor, Tensor], None]  # of a loss and the norm of its gradient
OFF = torch.amp.GradScaler("cpu", enabled=False)
WARM_UP = 3  # steps before one is captured: libraries choose their kernels, optimizers allocate


def gradient(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> Tensor:
    """Leave the gradient of `loss` in the parameters, clipped to norm `clip`; its norm before that, ()."""
    loss.backward()
    return clipped(optimizer, clip)


def clipped(optimizer: torch.optim.Optimizer, clip: float) -> Tensor:
    """Clip the gradient to norm `clip`; its norm before that, ()."""
    return nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)


def take_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler = OFF) -> None:
    """One step of the optimizer, unless a scaled gradient overflowed; the gradients are used up."""
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate; where it is a tensor, in place: a captured graph reads it there."""
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def later(loss: nn.Module) -> AbstractContextManager:
    """Inside, processes do not exchange the gradient of their loss yet."""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext()


class Step:
    """`step(indices, lr, check)`: one step of the optimizer on `loss_fn(*data[indices])`.

    With `machine.graphs` whole steps are replayed as a CUDA graph: launching the kernels of a small network one
    by one takes longer than computing them. So `loss_fn` must draw on the device, and must not wait for it.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        data: Columns,
        optimizer: torch.optim.Optimizer,
        settings: FitSettings,
        machine: Machine,
    ):
        self.optimizer, self.machine, self.scaler = optimizer, machine, machine.scaler()
        self.parts = check_parts(settings.batch_size, machine.team, machine.accumulate)
        self.loss = machine.team.share(Loss(loss_fn, optimizer.param_groups[0]["params"]))
        self.data, self.clip = data.to(machine.device), settings.clip
        self.indices = torch.zeros(settings.batch_size, dtype=torch.long, device=machine.device)
        graphs = machine.graphs and self.parts == 1
        self.graph, self.taken = torch.cuda.CUDAGraph() if graphs else None, 0

    def __call__(self, indices: Tensor, lr: float, check: Check) -> tuple[Tensor, Tensor]:
        """The loss and the norm of its gradient, () each; `check` sees them first, but not in a graph."""
        self.indices.copy_(indices, non_blocking=True)
        set_lr(self.optimizer, lr)
        self.taken += 1
        if self.graph is None:
            return self.compute(check)
        if self.taken <= WARM_UP:
            return self.warm_up(check)
        if self.taken == WARM_UP + 1:
            with torch.cuda.graph(self.graph):
                self.result = self.compute()
        self.graph.replay()
        return self.result

    def compute(self, check: Check = lambda *_: None) -> tuple[Tensor, Tensor]:
        machine, number = self.machine, self.machine.accumulate
        losses = [self.part(machine.team.rank * number + i, i == number - 1) for i in range(number)]
        loss = machine.team.mean(torch.stack(losses).mean())
        self.scaler.unscale_(self.optimizer)
        norm = clipped(self.optimizer, self.clip)
        if self.scaler.is_enabled():  # it leaves out a step that overflows, whose norm counts as 0
            norm = norm.nan_to_num(0, posinf=0)
        check(loss, norm)
        take_step(self.optimizer, self.scaler)
        return loss, norm

    def part(self, i: int, last: bool) -> Tensor:
        """The loss () of part i of the batch; its gradient is added, after the last one over all processes."""
        indices, together = self.indices.chunk(self.parts)[i], self.loss
        with (
            later(together) if not last else nullcontext(),
            part_of_draws(len(self.indices), i, self.parts, self.machine.device),
        ):
            with self.machine.autocast():
                loss = together(*self.data[indices])
            self.scaler.scale(loss / self.machine.accumulate).backward()
        return loss.detach()

    def warm_up(self, check: Check) -> tuple[Tensor, Tensor]:
        """A step beside the default stream, where nothing can be captured."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = self.compute(check)
        current.wait_stream(stream)
        return result
