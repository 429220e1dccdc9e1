"""How the benchmark times: in turn, each training step in a process of its own; medians of rounds."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch.utils.flop_counter import FlopCounterMode

from tinyldm.benchmark.machine import proc
from tinyldm.benchmark.steps import CANDIDATES, Sizes, Step
from tinyldm.evaluate.metrics import Estimate
from tinyldm.support.progress import progress
from tinyldm.training.machine import process

Steps = Mapping[str, Callable[[], object]]  # name -> what is timed

REPEATS = 7
PAUSE = 0.3  # seconds before a candidate's turn: the threads of the one before spin for a while


def seconds(step: Callable[[], object]) -> float:
    """How long a step takes, until the device is done."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib() -> float:
    """The most MiB that this process has had: of the GPU if it used one, else of RAM, as far as Linux tells."""
    if allocated := torch.cuda.max_memory_allocated():
        return allocated / 2**20
    kib = proc("self/status", "VmHWM").split()  # getrusage would count the parent's too
    return int(kib[0]) / 1024 if kib else 0.0


def serve(connection: Connection, sizes: Sizes, part: str, name: str) -> None:
    """In a process of its own: send the seconds of a step for each True received; at False, its MiB."""
    small = replace(Sizes.of("tiny", sizes.device), batch=1, vae_batch=1)
    CANDIDATES[name](small, part)()  # imports are not its memory
    before = peak_mib()
    ours = name.startswith("tinyldm")  # as our commands run; diffusers' scripts configure nothing
    configured = partial(process, sizes.device, threads=torch.get_num_threads())
    with suppress(KeyboardInterrupt), configured() if ours else nullcontext():
        step = CANDIDATES[name](sizes, part)
        while connection.recv():
            connection.send(seconds(step))
        connection.send(peak_mib() - before)


class Candidate:
    """A step that runs in a process of its own, whose memory is its own too. Call it for one step's seconds."""

    def __init__(self, sizes: Sizes, part: str, name: str):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        args = (theirs, sizes, part, name)
        self.process = context.Process(target=serve, args=args, daemon=True)
        self.process.start()
        theirs.close()  # or a dead process would be waited for, instead of an EOFError raised

    def __call__(self) -> float:
        time.sleep(PAUSE)
        self.connection.send(True)
        return self.connection.recv()

    def memory(self) -> float:
        """MiB at most above what the process had before; ends the process."""
        self.connection.send(False)
        memory = self.connection.recv()
        self.process.join()
        return memory


def in_turn(steps: Steps, repeats: int, what: str, warmup: int = 2) -> dict[str, list[float]]:
    """name -> seconds of each round: A B C A B C ..., after `warmup` rounds that do not count.

    So a noisy neighbour hits all alike. `what` names the bar of progress.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in progress(range(-warmup, repeats), desc=what, leave=False):
        for name, step in steps.items():
            taken = step() if isinstance(step, Candidate) else seconds(step)
            if i >= 0:
                times[name].append(taken)
    return times


def median(values: Iterable[float]) -> Estimate:
    """The median of the rounds with the smallest and the largest."""
    values = list(values)
    return Estimate(statistics.median(values), min(values), max(values))


def ratio(of: Sequence[float], to: Sequence[float]) -> Estimate:
    """How many times faster `to` is than `of`, round by round."""
    return median(a / b for a, b in zip(of, to, strict=True))


def count_gflop(step: Step) -> float:
    """Multiply-adds, counted as two, of a loss and its gradient: convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        step.loss().backward()
    return counter.get_total_flops() / 1e9
