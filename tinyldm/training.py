"""`fit`: the one training loop, for the autoencoder, the base, the ControlNet and the evaluation classifier."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tinyldm.config import FitConfig, RunConfig
from tinyldm.data import Columns
from tinyldm.errors import UserError


def pick_device(name: str) -> torch.device:
    """ "auto" is cuda if there is one, else cpu. Raises UserError if the device is unknown or not here."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here; use auto, cpu or cuda") from error
    return device


def seed_step(seed: int, step: int) -> None:
    """Make everything that torch's global generators draw in this step a function of (seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint32)[0]))


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> Tensor:
    rng = np.random.default_rng((seed, epoch))
    return torch.from_numpy(rng.permutation(n))


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The images (batch_size,) of a step: epoch after epoch, each another permutation of n, without a gap."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return torch.stack([permutation(n, seed, i // n)[i % n] for i in positions])


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Linear from 1 / warmup to 1, then half a cosine towards 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class EMA:
    """Exponential moving average of a module's trainable parameters [DDPM, appendix B]."""

    def __init__(self, module: nn.Module, decay: float):
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """shadow <- decay shadow + (1 - decay) weights, decay = min(self.decay, (1 + step) / (10 + step))."""
        torch._foreach_lerp_(self.shadow, self.parameters, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def copy_to_module(self) -> None:
        torch._foreach_copy_(self.parameters, self.shadow)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        weights = [p.detach().clone() for p in self.parameters]
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, weights)


@dataclass
class Log:
    """Appends lines to metrics.jsonl and keeps the mean loss since the last line, without waiting for the device."""

    path: Path
    stage: str
    start: float = field(default_factory=time.perf_counter)
    losses: list[Tensor] = field(default_factory=list)

    def write(self, **values: float) -> None:
        seconds = round(time.perf_counter() - self.start, 2)
        with open(self.path, "a") as file:
            file.write(json.dumps({"stage": self.stage, **values, "seconds": seconds}) + "\n")

    def mean_loss(self, step: int, lr: float) -> float:
        """The mean of the losses so far. Raises UserError if it is not finite."""
        loss = torch.stack(self.losses).mean().item()
        self.losses.clear()
        if not math.isfinite(loss):
            raise UserError(
                f"loss is {loss} at step {step} of {self.stage}, learning rate {lr:.1e}; lower the learning rate"
            )
        return loss


def compile_networks(run: RunConfig, *networks: nn.Module) -> None:
    """torch.compile the forward of each network in place, if --compile; names and weights stay as they are."""
    for network in networks if run.compile else ():
        network.compile(dynamic=False)


def to_device(batch: tuple, device: torch.device) -> tuple:
    return tuple(x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in batch)


@torch.no_grad()
def validation_loss(stage: nn.Module, batch: tuple) -> float:
    """The loss of a fixed batch with the same noise and timesteps every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stage(*batch).item()


def fit(
    stage: nn.Module,
    data: Columns,
    config: FitConfig,
    run: RunConfig,
    out: Path,
    name: str,
    validation: tuple = (),
    preview: Callable[[int], None] = lambda step: None,
) -> float:
    """Minimise `stage(*batch) -> loss ()` over batches of `data`; leaves the averaged weights in the stage.

    Writes metrics.jsonl into `out`; every `preview_every` steps logs the loss of the batch `validation` and calls
    `preview(step)`, both with the averaged weights. Returns the seconds taken. Raises UserError if the loss is not
    finite. Steps are functions of (run.seed, step) alone.
    """
    device = pick_device(run.device)
    stage.to(device, memory_format=torch.channels_last)
    ema = EMA(stage, config.ema)
    optimizer = torch.optim.AdamW(ema.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    log = Log(out / "metrics.jsonl", name)
    bar = tqdm(range(config.steps), desc=name, unit="step", mininterval=1)
    for step in bar:
        seed_step(run.seed, step)
        lr = config.lr * lr_factor(step, config.steps, config.warmup)
        optimizer.param_groups[0]["lr"] = lr
        batch = to_device(data[batch_indices(len(data), config.batch_size, run.seed, step)], device)
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            loss = stage(*batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(ema.parameters, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
        log.losses.append(loss.detach())
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            mean = log.mean_loss(done, lr)
            speed = config.batch_size * (bar.format_dict["rate"] or 0)
            log.write(step=done, loss=mean, lr=lr, grad_norm=norm.item(), images_per_second=round(speed, 1))
            bar.set_postfix(loss=f"{mean:.4f}", images_per_s=f"{speed:.0f}", refresh=False)
        if done % config.preview_every == 0 or done == config.steps:
            with ema.applied(), torch.compiler.set_stance("force_eager"):
                if validation:
                    log.write(step=done, validation_loss=validation_loss(stage, to_device(validation, device)))
                preview(done)
    ema.copy_to_module()
    return time.perf_counter() - log.start


def plot_losses(out: Path) -> None:
    """Draw loss.png from metrics.jsonl, one panel per stage; needs matplotlib (the extra `report`)."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no loss.png: pip install 'tinyldm[report]' for it")
        return
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    figure, axes = plt.subplots(1, len(stages), figsize=(6 * len(stages), 4), squeeze=False, layout="constrained")
    for ax, stage in zip(axes[0], stages, strict=True):
        for key, style in (("loss", "-"), ("validation_loss", "o--")):
            points = [(line["step"], line[key]) for line in lines if line["stage"] == stage and key in line]
            ax.plot(*zip(*points, strict=True), style, label=key.replace("_", " "), color="black", linewidth=1)
        ax.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        ax.legend()
    figure.savefig(out / "loss.png", dpi=120)
    plt.close(figure)
