"""`fit`: the one training loop, for the autoencoder, the base, the ControlNet and the judge."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from tinyldm.data.dataset import Columns
from tinyldm.support.progress import progress
from tinyldm.training.checkpoint import METRICS, Checkpoints, State
from tinyldm.training.ema import EMA
from tinyldm.training.log import Log
from tinyldm.training.machine import Machine
from tinyldm.training.optimizer import build_optimizer
from tinyldm.training.settings import FitSettings
from tinyldm.training.step import LossFn, Step


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


def lr_factor(settings: FitSettings, step: int) -> float:
    """Linear from 1 / warmup to 1, then half a cosine towards 0, or 1 to the end."""
    warmup, steps = settings.warmup, settings.steps
    if step < warmup:
        return (step + 1) / warmup
    if settings.lr_scheduler == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def look(
    log: Log, step: int, loss_fn: LossFn, batch: tuple, preview: Callable[[int], None]
) -> None:
    """Log the loss of a fixed batch, if there is one, with the same noise every time; call `preview`."""
    if batch:
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            log.write(log.entry(step=step, validation_loss=loss_fn(*batch).item()))
    preview(step)


def fit(
    loss_fn: LossFn,
    networks: Sequence[nn.Module],
    data: Columns,
    settings: FitSettings,
    *,
    checkpoints: Checkpoints,
    name: str,
    seed: int,
    machine: Machine,
    validation: tuple = (),
    preview: Callable[[int], None] = lambda step: None,
) -> None:
    """Minimise `loss_fn(*batch) -> ()` over batches of `data`; leave the averaged weights in `networks`.

    Trains what is not frozen. Logs into metrics.jsonl of the run folder; every `preview_every` steps looks at
    the averaged weights. Saves and resumes by `checkpoints`: a step is a function of (seed, step), so on a CPU
    the same bits come out. In a team all take the same steps, the first one looks. Raises UserError before a
    step whose gradient is not finite, with CUDA graphs before the next report or checkpoint, and Stopped on a
    signal, once a step is saved.
    """
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    ema, steps = EMA(parameters, settings.ema), settings.steps
    optimizer = build_optimizer(settings, parameters, machine.number(settings.lr))
    take = Step(loss_fn, data, optimizer, settings, machine)
    log = Log(checkpoints.folder / METRICS, name, settings.log_every, machine.device)
    state = State(parameters, ema.shadow, log.losses, optimizer)
    start = checkpoints.load(state, log, steps)
    bar = progress(range(start, steps), initial=start, total=steps, desc=name, unit="step")
    for step in bar:
        done, lr = step + 1, settings.lr * lr_factor(settings, step)
        with machine.stop.hold():
            seed_step(seed, step)
            indices = batch_indices(len(data), settings.batch_size, seed, step)
            loss, norm = take(indices, lr, partial(log.check, step=done, lr=lr))
            ema.update(step)
            log.add(loss, norm)
            log.report(bar, done, lr, settings.batch_size, done == steps)
            if machine.team.rank == 0 and (done == steps or done % settings.preview_every == 0):
                log.check_pending(done, lr)
                with ema.applied():
                    look(log, done, loss_fn, machine.load(validation), preview)
            if saving := done == steps or checkpoints.due(done) or machine.stopping():
                log.check_pending(done, lr)
                checkpoints.save(state, log, done)
        if saving:
            message = f"stopped after step {done} of {name}; a run resumes by --resume latest"
            machine.stop.check(message, machine.stopping())
    checkpoints.before += steps
    ema.copy_to_parameters()
