"""`fit`: the one training loop, for the autoencoder, the base, the ControlNet and the judge."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tinyldm.data.dataset import Columns
from tinyldm.support.progress import progress
from tinyldm.training.checkpoint import Checkpoint
from tinyldm.training.ema import EMA
from tinyldm.training.log import Log
from tinyldm.training.machine import Machine
from tinyldm.training.optimizer import build_optimizer
from tinyldm.training.settings import FitSettings

LossFn = Callable[..., Tensor]  # of the columns of a batch -> ()


def seed_step(seed: int, step: int) -> None:
    """Make all that torch's global generators draw in this step a function of (seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint32)[0]))


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The images (batch_size,) of a step: epoch after epoch, each another permutation of n."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return torch.stack([permutation(n, seed, i // n)[i % n] for i in positions])


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Linear from 1 / warmup to 1, then half a cosine towards 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def log_validation(log: Log, step: int, loss_fn: LossFn, batch: tuple) -> None:
    """Log the loss of a fixed batch, with the same noise and timesteps every time."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        log.write(step=step, validation_loss=loss_fn(*batch).item())


def update(loss: Tensor, optimizer: torch.optim.Optimizer, lr: float, clip: float) -> Tensor:
    """One optimizer step on the gradient of `loss`, clipped to norm `clip`; its norm before that, ()."""
    group = optimizer.param_groups[0]
    group["lr"] = lr
    loss.backward()
    norm = nn.utils.clip_grad_norm_(group["params"], clip)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def fit(
    loss_fn: LossFn,
    networks: Sequence[nn.Module],
    data: Columns,
    settings: FitSettings,
    *,
    out: Path,
    name: str,
    seed: int,
    machine: Machine,
    validation: tuple = (),
    preview: Callable[[int], None] = lambda step: None,
) -> None:
    """Minimise `loss_fn(*batch) -> ()` over batches of `data`; leave the averaged weights in `networks`.

    Trains what is not frozen. Logs into metrics.jsonl of the folder `out`. Every `preview_every` steps it saves
    a checkpoint and, with the averaged weights, logs the loss of the batch `validation` and calls `preview`.
    If `out` holds a checkpoint, training resumes from it bit for bit: a step is a function of (seed, step).
    Raises UserError if a loss is not finite, and Stopped on a signal, once the step is saved.
    """
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    ema = EMA(parameters, settings.ema)
    optimizer = build_optimizer(settings, parameters, machine.dtype)
    log = Log(out / "metrics.jsonl", name, settings.log_every, machine.device)
    saved = Checkpoint(out / f"{name}.checkpoint", parameters, ema.shadow, log.losses, optimizer)
    start, steps = saved.load(), settings.steps
    log.rewind(start)
    bar = progress(range(start, steps), initial=start, total=steps, desc=name, unit="step")
    for step in bar:
        done, lr = step + 1, settings.lr * lr_factor(step, steps, settings.warmup)
        due = done == steps or done % settings.preview_every == 0
        with machine.stop.hold(step > start or not machine.compile):
            seed_step(seed, step)
            batch = data[batch_indices(len(data), settings.batch_size, seed, step)]
            with machine.autocast():
                loss = loss_fn(*machine.load(batch))
            log.add(loss, update(loss, optimizer, lr, settings.clip))
            ema.update(step)
            log.report(bar, done, lr, settings.batch_size, done == steps)
            if saving := due or machine.stop.received > 0:
                log.check(loss, done, lr)
                saved.save(done)
            if due:
                with ema.applied(), torch.compiler.set_stance("force_eager"):
                    if validation:
                        log_validation(log, done, loss_fn, machine.load(validation))
                    preview(done)
        if saving:
            machine.stop.check(f"stopped after step {done} of {name}; resume it with --resume")
    ema.copy_to_parameters()
