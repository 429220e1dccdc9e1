"""`python -m tinyldm.benchmark`: how fast, beside diffusers, beside the machine's peak, and how cost grows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyldm.cli import parse, run_command

SECTIONS = ("peak", "steps", "sample", "cold", "growth")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time training steps, sampling and a cold start, in turn with diffusers' at the same sizes; print tables."""

    parts: tuple[str, ...] = SECTIONS
    """What to time: peak, steps, sample, cold, growth; and quality, which compares samplers on --base in minutes."""
    base: Path = Path("runs/base")
    """Run folder of a trained base, for quality."""
    n: int = 500
    """Images per sampler, for quality."""
    networks: tuple[Literal["U-Net", "ControlNet", "VAE"], ...] = ("U-Net", "ControlNet", "VAE")
    """Of the part steps: which training steps."""
    preset: str = "cpu"
    """Whose sizes: tiny, cpu or gpu."""
    repeats: int = 7
    """Rounds; in each every candidate runs once, so that a noisy neighbour hits all alike."""
    compile: bool = False
    """Also time both sides under torch.compile with bf16; minutes of compiling each."""
    json: Path | None = None
    """Also write the numbers to this file; parts that it has from before and that are not measured now stay in it."""
    device: str = "auto"


if __name__ == "__main__":  # before torch is imported: --help and mistakes answer at once
    config = run_command(lambda: parse(BenchmarkConfig))

import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from tinyldm import files
from tinyldm.classifier import load_judge
from tinyldm.config import BASE_PRESETS, CONTROL_PRESETS
from tinyldm.dataset import to_float
from tinyldm.diffusion import Schedule
from tinyldm.errors import UserError
from tinyldm.ldm import LatentDiffusion
from tinyldm.metrics import frechet_distance
from tinyldm.runs import load_run, sample_images
from tinyldm.tables import cell, table
from tinyldm.text import TextEncoder, Tokenizer
from tinyldm.training import keep_freed_memory, pick_device, pick_precision
from tinyldm.unet import UNet
from tinyldm.vae import VAE
from tinyldm.workloads import AS_FIT, Sizes, Step, candidates, our_unet, our_vae, sampling

PAUSE = 0.3  # seconds before a candidate's turn: the threads of the one before spin for a while


def seconds(step: Step) -> float:
    """How long a step takes, until the device is done."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def serve(connection, sizes: Sizes, part: str, name: str, compile: bool) -> None:
    """In a process of its own: build a candidate, take a step for each message, answer its seconds; at None, its memory."""
    small = replace(sizes, unet=scaled(sizes.unet, 0.25), vae=scaled(sizes.vae, 0.25), batch=1, vae_batch=1)
    candidates(small, part, compile=False)[name.replace(", compiled", "")]()()  # imports are no part of a step's memory
    before = resident_peak()
    if name.startswith("tinyldm"):
        keep_freed_memory()  # as `fit` does, and diffusers' scripts do not
    step = candidates(sizes, part, compile)[name]()
    while connection.recv():
        connection.send(seconds(step))
    connection.send(torch.cuda.max_memory_allocated() / 2**20 if sizes.device == "cuda" else resident_peak() - before)


class Candidate:
    """A step that runs in a process of its own, whose memory is its own too. Call it for one step's seconds."""

    def __init__(self, sizes: Sizes, part: str, name: str, compile: bool = False):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, sizes, part, name, compile), daemon=True)
        self.process.start()

    def __call__(self) -> float:
        time.sleep(PAUSE)
        self.connection.send(True)
        return self.connection.recv()

    def memory(self) -> float:
        """MiB at most above what the process had before; ends the process."""
        self.connection.send(None)
        memory = self.connection.recv()
        self.process.join()
        return memory


def in_turn(steps: dict[str, Step], repeats: int, what: str, warmup: int = 2) -> dict[str, list[float]]:
    """name -> seconds of each round: A B C A B C ..., after `warmup` rounds that do not count.

    A step may time itself, and return its seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in tqdm(range(-warmup, repeats), desc=what, leave=False):
        for name, step in steps.items():
            taken = step() if isinstance(step, Candidate) else seconds(step)
            if i >= 0:
                times[name].append(taken)
    return times


def spread(values: Iterable[float]) -> dict[str, float]:
    values = sorted(values)
    return {"median": statistics.median(values), "min": values[0], "max": values[-1]}


def ratio(of: list[float], to: list[float]) -> dict[str, float]:
    """How many times faster `to` is than `of`, round by round."""
    return spread(a / b for a, b in zip(of, to, strict=True))


def measure_peak(device: torch.device, repeats: int) -> dict[str, dict]:
    """GFLOP/s of a matrix product, in fp32 and bf16: the roof that everything else is measured against."""
    n = 8192 if device.type == "cuda" else 2048
    steps = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        steps[name] = partial(torch.mm, a, b)
    times = in_turn(steps, 3 * repeats, "peak")
    return {name: spread(2 * n**3 / t / 1e9 for t in times[name]) for name in steps}


def count_gflop(step: Step) -> float:
    """Multiply-adds, counted as two, of a loss and its gradient: convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        step.loss().backward()
    return counter.get_total_flops() / 1e9


def resident_peak() -> float:
    """The most MiB that this process has had, where Linux tells it; getrusage would count its parent's before exec."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else ["VmHWM 0"]
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure_steps(sizes: Sizes, part: str, config: BenchmarkConfig, peak: dict) -> dict[str, dict]:
    """One training step: every candidate's time, speed, share of the fp32 peak, memory, and ratio to the first's."""
    gflop = count_gflop(candidates(sizes, part, False)["tinyldm fp32"]())
    images = sizes.vae_batch if part == "VAE" else sizes.batch
    steps = {name: Candidate(sizes, part, name, config.compile) for name in candidates(sizes, part, config.compile)}
    times = in_turn(steps, config.repeats, part)
    first, rows = next(iter(times)), {}
    for name, values in times.items():
        middle = statistics.median(values)
        rows[name] = {"seconds": spread(values), "images_per_second": images / middle}
        rows[name] |= {"gflop_per_second": gflop / middle, "times_as_fast": ratio(times[first], values)}
        if peak:
            rows[name]["share_of_fp32_peak"] = gflop / middle / peak["fp32"]["median"]
        rows[name]["peak_mib"] = steps[name].memory()
    if config.compile:
        pair = ratio(times["diffusers bf16, compiled"], times["tinyldm bf16, compiled"])
        rows["tinyldm bf16, compiled"]["times_as_fast_as_diffusers_compiled"] = pair
    return rows


def control_over_base(sizes: Sizes, config: BenchmarkConfig) -> dict[str, dict]:
    """A ControlNet's training step over the base's, in turn: 1 is as long."""
    rows = {}
    for name in ("tinyldm fp32", "tinyldm bf16", AS_FIT):
        steps = {part: Candidate(sizes, part, name) for part in ("U-Net", "ControlNet")}
        times = in_turn(steps, config.repeats, "ControlNet / U-Net")
        rows[name] = {"time": ratio(times["ControlNet"], times["U-Net"])}
        rows[name]["memory"] = steps["ControlNet"].memory() / max(1.0, steps["U-Net"].memory())
    return rows


def measure_sampling(sizes: Sizes, repeats: int) -> dict[str, dict]:
    """Images a second of latents for each sampler and step count, guidance 2, without and with a ControlNet."""
    sizes = replace(sizes, batch=max(1, sizes.batch // 4))
    rows = {}
    for sampler, number in (("dpm++", 10), ("dpm++", 15), ("dpm++", 25), ("ddim", 50), ("ddpm", 1000)):
        steps = {f"{n} ControlNets": sampling(sizes, sampler, number, n) for n in (0, 1)}
        times = in_turn(steps, 1 if number > 100 else repeats, f"{sampler} {number}", warmup=0 if number > 100 else 1)
        for name, values in times.items():
            rows[f"{sampler}, {number} steps, {name}"] = {
                "seconds": spread(values),
                "images_per_second": sizes.batch / statistics.median(values),
            }
    return rows


def measure_cold(config: BenchmarkConfig) -> dict[str, dict]:
    """Seconds of whole processes: --help, and the first image of a base with random weights."""
    preset = BASE_PRESETS[config.preset]
    tokenizer = Tokenizer.from_captions(["a photo"], preset.text.length)
    text = TextEncoder(replace(preset.text, vocabulary=len(tokenizer.vocabulary)))
    parts = VAE(preset.vae), tokenizer, text, UNet(preset.unet), Schedule()
    with tempfile.TemporaryDirectory() as folder:
        LatentDiffusion(*parts, preset.data.resolution).save(Path(folder))
        sample = [sys.executable, "-m", "tinyldm.sample"]
        image = [*sample, "--base", folder, "--out", f"{folder}/x.png", "--num-images", "1", "--device", config.device]
        run = partial(subprocess.run, check=True, capture_output=True, cwd=Path(__file__).parents[1])
        steps = {"tinyldm.sample --help": partial(run, [*sample, "--help"]), "first image": partial(run, image)}
        return {name: {"seconds": spread(t)} for name, t in in_turn(steps, 5, "cold start", warmup=1).items()}


def measure_growth(sizes: Sizes, repeats: int) -> dict[str, dict[str, dict]]:
    """Seconds of a step as one thing grows, and over the first in the list."""
    quarter = replace(sizes, batch=max(1, sizes.batch // 4))
    fit = {"bf16": True}
    grown: dict[str, dict[str, Callable[[], Step]]] = {
        "batch": {str(b): partial(our_unet, replace(sizes, batch=b), **fit) for b in (16, 32, 64, 128, 256)},
        "VAE batch": {str(b): partial(our_vae, replace(sizes, vae_batch=b), **fit) for b in (8, 16, 32, 64)},
        "resolution": {str(r): partial(our_unet, replace(quarter, resolution=r), **fit) for r in (32, 64, 128)},
        "width": {
            f"x {k}": partial(our_unet, replace(quarter, unet=scaled(sizes.unet, k)), **fit) for k in (0.5, 1, 2)
        },
        "ControlNets": {str(n): partial(sampling, quarter, "dpm++", 5, n, 1.0) for n in range(4)},
    }
    rows = {}
    for what, builds in grown.items():
        times = in_turn({name: build() for name, build in builds.items()}, repeats, what)
        first = next(iter(times))
        rows[what] = {n: {"seconds": spread(t), "over_first": ratio(t, times[first])} for n, t in times.items()}
    return rows


SAMPLINGS = (("dpm++", 15), ("dpm++", 25), ("ddim", 50), ("ddpm", 1000))


def measure_quality(config: BenchmarkConfig, device: torch.device) -> dict[str, dict]:
    """FD of a base's samples with the test captions, guidance 2, for each sampler; seconds an image; both over ddpm's."""
    ldm, test = load_run(config.base, "test")
    ldm.to(device, memory_format=torch.channels_last)
    judge = load_judge(files.read_json(config.base / "settings.json", "")["data"]["dataset"])
    reference, _ = judge(to_float(test.images))
    prompts = test.captions.full()[: config.n]
    dtype, rows = pick_precision("auto", device), {}
    for sampler, steps in SAMPLINGS:
        start, name = time.perf_counter(), f"{sampler}, {steps} steps"
        x = sample_images(ldm, prompts, dtype, desc=name, sampler=sampler, steps=steps)
        taken = (time.perf_counter() - start) / len(prompts)
        rows[name] = {"fd": frechet_distance(judge(x)[0], reference), "seconds": taken}
    slowest = rows["ddpm, 1000 steps"]
    for row in rows.values():
        row |= {"fd_over_ddpm": row["fd"] / slowest["fd"], "times_as_fast": slowest["seconds"] / row["seconds"]}
    return rows


def scaled(config, factor: float):
    return replace(config, widths=tuple(int(width * factor) for width in config.widths))


def machine(device: torch.device) -> dict[str, object]:
    """What the numbers belong to."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    about = {"processor": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_before": load}
    about |= {"torch": torch.__version__, "python": platform.python_version()}
    return about | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def number(value: object) -> str:
    """A median with its smallest and largest, or any other value."""
    if isinstance(value, dict):
        return f"{value['median']:.3g} [{value['min']:.3g}, {value['max']:.3g}]"
    return cell(value)


def markdown(title: str, rows: dict[str, dict]) -> str:
    """Named rows as a table."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    return table(
        [{title: name, **{key.replace("_", " "): number(row.get(key)) for key in keys}} for name, row in rows.items()]
    )


def check(config: BenchmarkConfig) -> None:
    """Raise UserError for flags that cannot be used."""
    if unknown := set(config.parts) - {*SECTIONS, "quality"}:
        raise UserError(f"--parts {' '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}, quality")
    if config.preset not in BASE_PRESETS or config.repeats < 1:
        raise UserError(f"--preset must be one of {', '.join(BASE_PRESETS)}, --repeats at least 1")
    if config.json and not config.json.absolute().parent.is_dir():
        raise UserError(f"--json {config.json}: its folder does not exist")
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise UserError("the benchmark compares with diffusers: pip install 'tinyldm[export]'") from error


def main(config: BenchmarkConfig) -> None:
    """Measure part by part, printing each table as soon as it is there."""
    check(config)
    device = pick_device(config.device)
    keep_freed_memory()
    base, control = BASE_PRESETS[config.preset], CONTROL_PRESETS[config.preset]
    batches = {"batch": base.fit.batch_size, "vae_batch": base.vae_fit.batch_size}
    sizes = Sizes(
        base.unet, base.vae, control.hint_widths, **batches, resolution=base.data.resolution, device=device.type
    )
    about = {"machine": machine(device), "preset": config.preset, "repeats": config.repeats}
    before = files.read_json(config.json, "delete it") if config.json and config.json.exists() else {}
    results: dict[str, dict] = {**before, **about} if before.get("preset") == config.preset else about
    print("machine: " + ", ".join(f"{key} {value}" for key, value in results["machine"].items()))

    def report(title: str, key: str, rows: dict) -> None:
        results[key] = rows
        print(f"\n{markdown(title, rows)}", flush=True)
        if config.json:
            files.write_json(config.json, results)

    if "peak" in config.parts:
        peak = measure_peak(device, config.repeats)
        report("matrix product", "peak", {name: {"gflop_per_second": value} for name, value in peak.items()})
    if "steps" in config.parts:
        for part in config.networks:
            report(
                f"training step: {part}",
                part,
                measure_steps(sizes, part, config, peak if "peak" in config.parts else {}),
            )
        if {"U-Net", "ControlNet"} <= {*config.networks}:
            report("ControlNet / U-Net", "control_over_base", control_over_base(sizes, config))
    if "sample" in config.parts:
        report("sampling", "sampling", measure_sampling(sizes, config.repeats))
    if "cold" in config.parts:
        report("cold start", "cold", measure_cold(config))
    if "growth" in config.parts:
        for what, rows in measure_growth(sizes, config.repeats).items():
            report(f"growth: {what}", f"growth, {what}", rows)
    if "quality" in config.parts:
        report(f"samplers, {config.n} images of {config.base}", "quality", measure_quality(config, device))


if __name__ == "__main__":
    run_command(lambda: main(config))
