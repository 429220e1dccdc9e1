"""`fit`: the one training loop, for the autoencoder, the base, the ControlNet and the evaluation classifier."""

import ctypes
import json
import math
import shutil
import sys
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

from tinyldm import checkpoint, files
from tinyldm.config import FitConfig, RunConfig
from tinyldm.dataset import Columns
from tinyldm.errors import UserError
from tinyldm.muon import Muon

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # names and numbers of malloc.h


def pick_device(name: str) -> torch.device:
    """ "auto" is cuda if there is one, else cpu. Raises UserError if the device is unknown or not here."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here; use auto, cpu or cuda") from error
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the device multiplies it natively, else float32."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    native = {"cuda": torch.cuda.is_bf16_supported, "cpu": native}.get(device.type, lambda: False)
    return torch.bfloat16 if name == "bf16" or (name == "auto" and native()) else torch.float32


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next one, not hand it back to the kernel and fault it in again.

    On a CPU a training step of the U-Net takes about a tenth less time. Elsewhere than on Linux nothing happens.
    """
    if sys.platform == "linux":
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(option, value)


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
    """Appends lines to metrics.jsonl and keeps the losses since the last line, without waiting for the device."""

    path: Path
    stage: str
    losses: Tensor  # (log_every,)
    pending: int = 0  # losses in use
    start: float = field(default_factory=time.perf_counter)

    def rewind(self, step: int) -> None:
        """Go on after this step of an earlier process: forget its later lines, and count its seconds."""
        self.pending = step % len(self.losses)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]  # a kill can tear the last one
        entries = [e for e in entries if e["stage"] != self.stage or e["step"] <= step]
        files.write(self.path, "".join(json.dumps(e) + "\n" for e in entries).encode())
        self.start -= max((e["seconds"] for e in entries if e["stage"] == self.stage), default=0.0)

    def add(self, loss: Tensor) -> None:
        self.losses[self.pending] = loss.detach()
        self.pending += 1

    def write(self, **values: float) -> None:
        seconds = round(time.perf_counter() - self.start, 2)
        with open(self.path, "a") as file:
            file.write(json.dumps({"stage": self.stage, **values, "seconds": seconds}) + "\n")

    def check(self, loss: Tensor, step: int, lr: float) -> None:
        """Raise UserError if a loss is not finite."""
        if not loss.isfinite():
            raise UserError(f"{self.stage}: loss is {loss.item()} by step {step}, learning rate {lr:.1e}; lower --lr")

    def report(self, bar: tqdm, step: int, lr: float, norm: Tensor, batch_size: int) -> None:
        """Write the mean of the losses since the last report, and show it."""
        loss = self.losses[: self.pending].mean()
        self.check(loss, step, lr)
        self.pending = 0
        speed = batch_size * (bar.format_dict["rate"] or 0)
        self.write(step=step, loss=loss.item(), lr=lr, grad_norm=norm.item(), images_per_second=round(speed, 1))
        bar.set_postfix(loss=f"{loss.item():.4f}", images_per_s=f"{speed:.0f}", refresh=False)


def compile_networks(run: RunConfig, *networks: nn.Module) -> None:
    """torch.compile the forward of each network in place, if --compile; names and weights stay as they are.

    On CUDA each becomes a CUDA graph, since networks this small spend most of a step on launching kernels.
    """
    if run.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise UserError("--compile: there is no C++ compiler; install one, or give --no-compile")
    mode = "reduce-overhead" if pick_device(run.device).type == "cuda" else "default"
    for network in networks if run.compile else ():
        network.compile(dynamic=False, mode=mode)


def build_optimizer(config: FitConfig, parameters: list[nn.Parameter], dtype: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer that `config` names; Muon computes its directions in `dtype`."""
    if config.optimizer == "muon":
        return Muon(parameters, config.lr, config.weight_decay, dtype=dtype)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def to_device(batch: tuple, device: torch.device) -> tuple:
    """The tensors of a batch on the device; to CUDA from pinned memory, so that the copy runs beside the computation."""
    tensors = [x.pin_memory() if isinstance(x, Tensor) and device.type == "cuda" else x for x in batch]
    return tuple(x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in tensors)


@torch.no_grad()
def validation_loss(stage: nn.Module, batch: tuple) -> float:
    """The loss of a fixed batch with the same noise and timesteps every time."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
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
) -> None:
    """Minimise `stage(*batch) -> loss ()` over batches of `data`; leaves the averaged weights in the stage.

    Writes metrics.jsonl into `out`; every `preview_every` steps saves a checkpoint, logs the loss of the batch
    `validation` and calls `preview(step)`, both with the averaged weights. A checkpoint that `out` holds is gone on
    from, and since steps are functions of (run.seed, step) alone, bit for bit. On SIGTERM or SIGINT the step is
    finished, saved, and the process exits. Raises UserError if the loss is not finite.
    """
    keep_freed_memory()
    device = pick_device(run.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    stage.to(device, memory_format=torch.channels_last)
    ema = EMA(stage, config.ema)
    dtype = pick_precision(run.precision, device)
    optimizer = build_optimizer(config, ema.parameters, dtype)
    log = Log(out / "metrics.jsonl", name, torch.zeros(config.log_every, device=device))
    path, columns = out / f"{name}.checkpoint", {"weights": ema.parameters, "ema": ema.shadow, "losses": [log.losses]}
    start = checkpoint.load(path, columns, optimizer)
    log.rewind(start)

    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc=name, unit="step", mininterval=1)
    with checkpoint.stop_signal() as stop:
        for step in bar:
            seed_step(run.seed, step)
            batch = to_device(data[batch_indices(len(data), config.batch_size, run.seed, step)], device)
            lr = config.lr * lr_factor(step, config.steps, config.warmup)
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = stage(*batch)
            norm = update(loss, optimizer, lr, config.clip)
            ema.update(step)
            log.add(loss)
            done, last = step + 1, step + 1 == config.steps
            if last or done % config.log_every == 0:
                log.report(bar, done, lr, norm, config.batch_size)
            if stop or last or done % config.preview_every == 0:
                log.check(loss, done, lr)
                checkpoint.save(path, done, columns, optimizer)
                if stop:
                    print(f"\nstopped after step {done} of {name}; --resume goes on", file=sys.stderr)
                    sys.exit(128 + stop[0])
                with ema.applied(), torch.compiler.set_stance("force_eager"):
                    if validation:
                        log.write(step=done, validation_loss=validation_loss(stage, to_device(validation, device)))
                    preview(done)
        if stop:
            sys.exit(128 + stop[0])
    ema.copy_to_module()


def update(loss: Tensor, optimizer: torch.optim.Optimizer, lr: float, clip: float) -> Tensor:
    """One optimizer step on the gradient of `loss`, clipped to norm `clip`; returns its norm before clipping, ()."""
    group = optimizer.param_groups[0]
    group["lr"] = lr
    loss.backward()
    norm = nn.utils.clip_grad_norm_(group["params"], clip)
    optimizer.step()
    optimizer.zero_grad()
    return norm


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
