"""What a command configures once, for its whole process: device, precision, threads, memory, signals."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from tinyldm.support.errors import Stopped, UserError
from tinyldm.training.memory import recompute
from tinyldm.training.team import Team, joined

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LINUX = sys.platform == "linux"
SPARE = 0.75  # of a core may be busy without its being left out
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # names and numbers of malloc.h


class StopSignal:
    """SIGTERM and SIGINT as the exception Stopped: at once, or where it is `held`, when `check` is called.

    After the first signal the next one ends the process at once.
    """

    def __init__(self) -> None:
        self.received, self.held = 0, False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self.received = number
        if not self.held:
            raise Stopped(number)
        with suppress(OSError):
            os.write(2, b"\nstopping: this step is saved first; a second signal stops at once\n")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, a signal waits: what is done here is done as a whole."""
        before, self.held = self.held, True
        try:
            yield
        finally:
            self.held = before

    def check(self, message: str, elsewhere: bool = False) -> None:
        """Raise Stopped if a signal waits, here or `elsewhere` in the team."""
        if self.received or elsewhere:
            raise Stopped(self.received or signal.SIGTERM, message)


@dataclass(frozen=True)
class Machine:
    """Where and how networks are computed."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32  # of autocast
    capture: bool = True  # whole training steps as CUDA graphs, on CUDA
    stop: StopSignal = field(default_factory=StopSignal)
    team: Team = Team()
    accumulate: int = 1  # parts in which a process computes its share of a batch
    recompute: bool = False  # activations, instead of keeping them

    def autocast(self) -> torch.autocast:
        low = self.dtype != torch.float32
        dtype = self.dtype if low else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=low)

    def scaler(self) -> torch.amp.GradScaler:
        """What keeps small gradients of fp16 from vanishing; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def place(self, *networks: nn.Module) -> None:
        """Move networks to the device, convolutions in channels_last where that is the faster format."""
        known = self.device.type in ("cpu", "cuda")
        layout = torch.channels_last if known else torch.preserve_format
        for network in networks:
            network.to(self.device, memory_format=layout)  # type: ignore[call-overload]
            if self.recompute:
                recompute(network)

    @property
    def graphs(self) -> bool:
        """Are whole training steps captured as CUDA graphs? Not those of fp16, whose scale needs a look."""
        return self.device.type == "cuda" and self.capture and self.dtype != torch.float16

    def stopping(self) -> bool:
        """Was a signal received, here or elsewhere in the team?"""
        return self.team.any(self.stop.received > 0, self.device)

    def number(self, value: float) -> float | Tensor:
        """The number, as a tensor () on the device where a captured graph is to read it."""
        return torch.tensor(value, device=self.device) if self.graphs else value

    def load(self, batch: tuple) -> tuple:
        """A batch with its tensors on the device."""
        return tuple(x.to(self.device) for x in batch)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is cuda, else mps, else cpu. Raises UserError if it is not here."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    try:
        found = next((kind for kind, available in there.items() if available), "cpu")
        device = torch.device(found if name == "auto" else name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"--device {name}: not available here; use auto, cpu, cuda or mps"
        ) from error
    return device


def own_device(device: torch.device) -> torch.device:
    """Under torchrun each process of a machine has a GPU of its own. Raises UserError if there are too few."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    if (own := int(os.environ["LOCAL_RANK"])) >= (count := torch.cuda.device_count()):
        raise UserError(f"--nproc-per-node: process {own + 1} has no GPU of its own; give {count}")
    return torch.device("cuda", own)


def native_bf16(device: torch.device) -> bool:
    """Does the device multiply bfloat16 itself, without emulating it?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    on_cpu = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cpu" and on_cpu()


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast. "auto" is bfloat16 on a CPU that multiplies it natively, else float32.

    On a GPU TF32 is faster than autocast, whose casts are kernels too, for networks of this size. fp16 stands
    in for bf16 on a GPU that does not have it. Raises UserError for fp16 elsewhere.
    """
    if name == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16: needs a CUDA GPU; use bf16 or fp32")
    if name == "bf16" and device.type == "cuda" and not native_bf16(device):
        print("note: this GPU has no bf16: fp16, with scaled gradients", file=sys.stderr)
        return torch.float16
    if name == "auto":
        return torch.bfloat16 if device.type == "cpu" and native_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next step.

    On a CPU a training step of the U-Net takes about a tenth less time. Does nothing but on Linux.
    """
    if LINUX:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(option, value)


def read_ticks() -> list[int]:
    """What the cores of this process did since the start, summed, as `man 5 proc_stat` lists it."""
    lines = Path("/proc/stat").read_text().splitlines()
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = [[int(x) for x in rest] for name, *rest in map(str.split, lines) if name in names]
    return [sum(column) for column in zip(*ticks, strict=True)][:8]


def idle_cores(seconds: float = 0.5) -> float:
    """How many of its cores had nothing to do for so long; all of them where the system does not tell."""
    cores = float(os.cpu_count() or 1)
    try:
        cores = float(len(os.sched_getaffinity(0)))
        before = read_ticks()
        time.sleep(seconds)
        ticks = [b - a for a, b in zip(before, read_ticks(), strict=True)]
        return cores * (ticks[3] + ticks[4]) / sum(ticks)  # idle, or waiting for a disk
    except (AttributeError, OSError, ValueError, IndexError, ZeroDivisionError):
        return cores


def pick_threads(wanted: int) -> int:
    """As many threads as wanted; for 0 as many as there are cores that nothing else keeps busy.

    In every operation threads wait for the slowest of them. $OMP_NUM_THREADS stands for those that are idle.
    """
    most = torch.get_num_threads()
    if wanted or most == 1 or "OMP_NUM_THREADS" in os.environ:
        return wanted or most
    free = max(1, int(idle_cores() + SPARE))
    if free < most:  # look again: it may have been a moment's work
        free = max(free, int(idle_cores(1.5) + SPARE))
    if free < most:
        print(f"note: other work is running: {free} of {most} threads", file=sys.stderr)
    return min(free, most)


def keep_threads(begun: int) -> None:
    """Compute with as many threads as a run was begun with, if there are so many cores. For the same bits."""
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ and begun != threads and begun <= (os.cpu_count() or 1):
        torch.set_num_threads(begun)
        print(f"note: {begun} threads, as this run was begun with", file=sys.stderr)


@contextmanager
def process(
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    accumulate: int = 1,
    recompute: bool = False,
) -> Iterator[Machine]:
    """Configure this process, and yield what it computes on. Raises UserError for what is not here."""
    picked = own_device(pick_device(device))
    keep_freed_memory()
    most = torch.get_num_threads()
    if picked.type == "cpu":
        torch.set_num_threads(pick_threads(threads))
    if picked.index is not None and picked.type == "cuda":
        torch.cuda.set_device(picked)  # where graphs are captured
    if picked.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    stop = StopSignal()
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        with joined(picked) as team:
            stop.held = team.size > 1  # all stop after the same step
            dtype = pick_precision(precision, picked)
            yield Machine(picked, dtype, True, stop, team, accumulate, recompute)
    finally:
        torch.set_num_threads(most)
        for number, handler in before.items():
            signal.signal(number, handler)
