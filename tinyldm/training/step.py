"""One training step: batch, loss, clipped gradient, optimizer; on CUDA, captured as one graph."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tinyldm.data.dataset import Columns
from tinyldm.training.machine import Machine
from tinyldm.training.settings import FitSettings

LossFn = Callable[..., Tensor]  # of the columns of a batch -> ()
Check = Callable[[Tensor, Tensor], None]  # of a loss and the norm of its gradient
WARM_UP = 3  # steps before one is captured: libraries choose their kernels, optimizers allocate


def gradient(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> Tensor:
    """Leave the gradient of `loss` in the parameters, clipped to norm `clip`; its norm before that, ()."""
    loss.backward()
    return nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer; the gradients are used up."""
    optimizer.step()
    optimizer.zero_grad()


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate; where it is a tensor, in place: a captured graph reads it there."""
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


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
        self.loss_fn, self.optimizer, self.machine = loss_fn, optimizer, machine
        self.data, self.clip = data.to(machine.device), settings.clip
        self.indices = torch.zeros(settings.batch_size, dtype=torch.long, device=machine.device)
        self.graph, self.taken = torch.cuda.CUDAGraph() if machine.graphs else None, 0

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
        with self.machine.autocast():
            loss = self.loss_fn(*self.data[self.indices])
        norm = gradient(loss, self.optimizer, self.clip)
        check(loss, norm)
        take_step(self.optimizer)
        return loss.detach(), norm

    def warm_up(self, check: Check) -> tuple[Tensor, Tensor]:
        """A step beside the default stream, where nothing can be captured."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = self.compute(check)
        current.wait_stream(stream)
        return result
