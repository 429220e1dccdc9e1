"""What a command configures once, for its whole process: device, precision, memory, signals."""

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch import Tensor, nn

from tinyldm.support.errors import Stopped, UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
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
    def hold(self, wanted: bool = True) -> Iterator[None]:
        """Inside, if `wanted`, a signal waits: what is done here is done as a whole."""
        self.held = wanted
        try:
            yield
        finally:
            self.held = False

    def check(self, message: str) -> None:
        """Raise Stopped if a signal waits."""
        if self.received:
            raise Stopped(self.received, message)


@dataclass(frozen=True)
class Machine:
    """Where and how networks are computed."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32  # of autocast
    compile: bool = False
    stop: StopSignal = field(default_factory=StopSignal)

    def autocast(self) -> torch.autocast:
        bf16 = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def place(self, *networks: nn.Module) -> None:
        """Move networks to the device, convolutions in channels_last."""
        for network in networks:
            network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compiled(self, *networks: nn.Module) -> None:
        """torch.compile the forward of networks in place, if asked; names and weights stay as they are.

        On CUDA each becomes a CUDA graph: such small networks spend most of a step on launching kernels.
        """
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        for network in networks if self.compile else ():
            network.compile(dynamic=False, mode=mode)

    def load(self, batch: tuple) -> tuple:
        """A batch with its tensors on the device, by pinned memory on CUDA, beside the computation."""
        pin = self.device.type == "cuda"
        tensors = [x.pin_memory() if isinstance(x, Tensor) and pin else x for x in batch]
        return tuple(
            x.to(self.device, non_blocking=True) if isinstance(x, Tensor) else x for x in tensors
        )


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is cuda if there is one, else cpu. Raises UserError if it is not here."""
    try:
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
        )
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"--device {name}: not available here; use auto, cpu or cuda") from error
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 for "bf16", and for "auto" where the device multiplies it natively; else float32."""
    on_cpu = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    native = {"cuda": torch.cuda.is_bf16_supported, "cpu": on_cpu}.get(device.type, lambda: False)
    return torch.bfloat16 if name == "bf16" or (name == "auto" and native()) else torch.float32


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next step.

    On a CPU a training step of the U-Net takes about a tenth less time. Does nothing but on Linux.
    """
    if sys.platform == "linux":
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(option, value)


@contextmanager
def process(
    device: str = "auto", precision: str = "auto", compile: bool = False
) -> Iterator[Machine]:
    """Configure this process, and yield what it computes on. Raises UserError for what is not here."""
    if compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise UserError("--compile: there is no C++ compiler; install one, or give --no-compile")
    picked = pick_device(device)
    machine = Machine(picked, pick_precision(precision, picked), compile)
    keep_freed_memory()
    if picked.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    before = {number: signal.signal(number, machine.stop.note) for number in SIGNALS}
    try:
        yield machine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
