"""`python -m tinyldm.benchmark`: how fast, beside diffusers, beside the machine's peak, and how cost grows."""

from dataclasses import dataclass
from pathlib import Path

from tinyldm.cli import parse, run_command

ALL = ("peak", "steps", "sample", "cold", "growth")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time training steps, sampling and a cold start, in turn with diffusers' at the same sizes; print tables."""

    parts: tuple[str, ...] = ALL
    """What to time: peak, steps, sample, cold, growth."""
    preset: str = "cpu"
    """Whose sizes: tiny, cpu or gpu."""
    repeats: int = 7
    """Rounds; in each every candidate runs once, so that a noisy neighbour hits all alike."""
    compile: bool = False
    """Also time both sides under torch.compile with bf16; minutes of compiling each."""
    memory: bool = True
    """Also measure each step's peak memory, in a process of its own."""
    json: Path | None = None
    """Also write the numbers to this file."""
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from tinyldm import files
from tinyldm.config import BASE_PRESETS, CONTROL_PRESETS
from tinyldm.diffusion import Schedule
from tinyldm.errors import UserError
from tinyldm.ldm import LatentDiffusion
from tinyldm.text import TextEncoder, Tokenizer
from tinyldm.training import keep_freed_memory, pick_device
from tinyldm.unet import UNet
from tinyldm.vae import VAE
from tinyldm.workloads import PARTS, Sizes, Step, candidates, our_unet, our_vae, sampling


def seconds(step: Step) -> float:
    """How long a step takes, until the device is done."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(steps: dict[str, Step], repeats: int, what: str, warmup: int = 2) -> dict[str, list[float]]:
    """name -> seconds of each round: A B C A B C ..., after `warmup` rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in tqdm(range(-warmup, repeats), desc=what, leave=False):
        for name, step in steps.items():
            taken = seconds(step)
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


def peak_memory(sizes: Sizes, part: str, name: str) -> float:
    """MiB that three steps need above what the process had before, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(memory_of, sizes, part, name).result()


def memory_of(sizes: Sizes, part: str, name: str) -> float:
    build = candidates(sizes, part, compile=False)[name]
    build()  # whatever is imported on the way is not what a step needs
    torch.randn(8, 8) @ torch.randn(8, 8)
    before = resident_peak()
    step = build()
    for _ in range(3):
        step()
    if sizes.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_peak() - before


def resident_peak() -> float:
    """The most MiB of memory that this process has had; getrusage would count what its parent had before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure_steps(sizes: Sizes, part: str, config: BenchmarkConfig, peak: dict) -> dict[str, dict]:
    """One training step: every candidate's time, speed, share of the fp32 peak, memory, and ratio to the first's."""
    steps = {name: build() for name, build in candidates(sizes, part, config.compile).items()}
    gflop = count_gflop(steps["tinyldm fp32"])
    images = sizes.vae_batch if part == "VAE" else sizes.batch
    times = in_turn(steps, config.repeats, part)
    first = next(iter(times))
    rows = {}
    for name, values in times.items():
        middle = statistics.median(values)
        rows[name] = {
            "seconds": spread(values),
            "images_per_second": images / middle,
            "gflop_per_second": gflop / middle,
        }
        rows[name] |= {"times_as_fast": ratio(times[first], values)}
        if peak:
            rows[name]["share_of_fp32_peak"] = gflop / middle / peak["fp32"]["median"]
        if measurable(config) and "compiled" not in name:
            rows[name]["peak_mib"] = peak_memory(sizes, part, name)
    if config.compile:
        pair = ratio(times["diffusers bf16, compiled"], times["tinyldm bf16, compiled"])
        rows["tinyldm bf16, compiled"]["times_as_fast_as_diffusers_compiled"] = pair
    return rows


def measurable(config: BenchmarkConfig) -> bool:
    """Is peak memory wanted, and to be had: on CUDA, or where Linux tells it?"""
    return config.memory and (torch.cuda.is_available() or Path("/proc/self/status").exists())


def control_over_base(sizes: Sizes, config: BenchmarkConfig) -> dict[str, dict]:
    """A ControlNet's training step over the base's, as `fit` runs both, in turn: 1 is as long."""
    name = "tinyldm as fit runs it: bf16, Muon, EMA"
    builds = {part: candidates(sizes, part, False)[name] for part in ("U-Net", "ControlNet")}
    times = in_turn({part: build() for part, build in builds.items()}, config.repeats, "ControlNet / U-Net")
    row = {"time": ratio(times["ControlNet"], times["U-Net"])}
    if measurable(config):
        row["memory"] = peak_memory(sizes, "ControlNet", name) / peak_memory(sizes, "U-Net", name)
    return row


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


def scaled(config, factor: float):
    return replace(config, widths=tuple(int(width * factor) for width in config.widths))


def machine(device: torch.device) -> dict[str, object]:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    about = {"processor": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_before": load}
    about |= {"torch": torch.__version__, "python": platform.python_version()}
    return about | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def number(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.3g} [{value['min']:.3g}, {value['max']:.3g}]"
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def table(title: str, rows: dict[str, dict]) -> str:
    """Rows as Markdown; medians with smallest and largest."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [
        f"\n| {title} | " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "|" + " --- |" * (len(keys) + 1),
    ]
    lines += [f"| {name} | " + " | ".join(number(row.get(key)) for key in keys) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def check(config: BenchmarkConfig) -> None:
    """Raise UserError for flags that cannot be used."""
    if unknown := set(config.parts) - set(ALL):
        raise UserError(f"--parts {' '.join(sorted(unknown))}: choose from {', '.join(ALL)}")
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
    results: dict[str, dict] = {"machine": machine(device), "preset": config.preset, "repeats": config.repeats}
    print("machine: " + ", ".join(f"{key} {value}" for key, value in results["machine"].items()))

    def report(title: str, key: str, rows: dict) -> None:
        results[key] = rows
        print(table(title, rows), flush=True)
        if config.json:
            files.write_json(config.json, results)

    if "peak" in config.parts:
        peak = measure_peak(device, config.repeats)
        report("matrix product", "peak", {name: {"gflop_per_second": value} for name, value in peak.items()})
    if "steps" in config.parts:
        for part in PARTS:
            report(
                f"training step: {part}",
                part,
                measure_steps(sizes, part, config, peak if "peak" in config.parts else {}),
            )
        report("as fit runs them", "control_over_base", {"ControlNet / U-Net": control_over_base(sizes, config)})
    if "sample" in config.parts:
        report("sampling", "sampling", measure_sampling(sizes, config.repeats))
    if "cold" in config.parts:
        report("cold start", "cold", measure_cold(config))
    if "growth" in config.parts:
        for what, rows in measure_growth(sizes, config.repeats).items():
            report(f"growth: {what}", f"growth, {what}", rows)


if __name__ == "__main__":
    run_command(lambda: main(config))
