"""`python -m tinyldm.benchmark`: how fast, beside diffusers, beside the machine's peak, and how cost grows."""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from tinyldm.benchmark.machine import describe
from tinyldm.benchmark.measure import REPEATS, Candidate, Steps, count_gflop, in_turn, median, ratio
from tinyldm.benchmark.steps import TOKENS, UNET, VAE_PART, Sizes, candidates, our_step, sampling
from tinyldm.evaluate.metrics import Estimate
from tinyldm.evaluate.tables import table
from tinyldm.ldm import LatentDiffusion
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.text import Tokenizer
from tinyldm.training.machine import process
from tinyldm.training.networks import save_base
from tinyldm.training.presets import BASE_PRESETS
from tinyldm.training.settings import within
from tinyldm.vae import VAE

Rows = dict[str, dict[str, Any]]  # name -> column -> Estimate or number
Tables = Iterator[tuple[str, Rows]]
Part = Literal["peak", "steps", "sample", "cold", "growth", "recipe"]
MICRO: tuple[Part, ...] = ("peak", "steps", "sample", "cold", "growth")
Network = Literal["U-Net", "ControlNet", "VAE"]

SAMPLINGS = (("dpm++", 10), ("dpm++", 15), ("dpm++", 25), ("ddim", 50), ("ddpm", 1000))
SCRIPTS = Path(__file__).resolve().parents[2]  # of a clone
LONG = 100  # steps of sampling, above which it runs only once


@dataclass(frozen=True)
class BenchmarkSettings:
    """Time training steps beside diffusers' at the same sizes, sampling and a cold start; print tables."""

    parts: tuple[Part, ...] = MICRO
    """What to time. recipe is `make run` but for its pictures, in a clone of the repository: minutes
    for each of --seeds."""
    networks: tuple[Network, ...] = get_args(Network)
    """Of the part steps: which training steps."""
    preset: Literal["tiny", "cpu", "long", "gpu"] = "cpu"
    """Whose sizes."""
    seeds: int = 1
    """Of the part recipe: how many trainings, with the seeds 0, 1, ..."""
    runs: Path | None = None
    """Of the part recipe: a folder to keep them in, with their evaluations."""
    repeats: int = REPEATS
    """Rounds; in each every candidate runs once, so that a noisy neighbour hits all alike."""
    json: Path | None = None
    """Also write the numbers to this file; parts in it that are not measured now stay."""
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the part recipe."""

    def __post_init__(self) -> None:
        within(self, 1, math.inf, "repeats", "seeds")


def measure(what: str, steps: Steps, repeats: int, warmup: int = 2, amounts=(), against=()) -> Rows:
    """Time steps in turn; a row for each has its seconds, and these over the first's.

    For each (column, number) of `amounts`: how much of it the step does in a second. For each (column, name)
    of `against`: how many times as fast it is as the step of that name.
    """
    times = in_turn(steps, repeats, what, warmup)
    first = next(iter(times.values()))
    rows: Rows = {}
    for name, taken in times.items():
        rows[name] = {"seconds": median(taken), "over_first": ratio(taken, first)}
        rows[name] |= {column: number / median(taken).mean for column, number in amounts}
        rows[name] |= {column: ratio(times[other], taken) for column, other in against}
    return rows


class Benchmark:
    """A method for each part: it yields keys of the JSON file with their rows, as soon as they are measured."""

    def __init__(self, settings: BenchmarkSettings, device: torch.device):
        self.settings, self.repeats = settings, settings.repeats
        self.sizes = Sizes.of(settings.preset, str(device))
        self.quarter = replace(self.sizes, batch=max(1, self.sizes.batch // 4))
        self.roof = 0.0  # GFLOP/s of a matrix product in fp32, once it is measured

    def peak(self) -> Tables:
        """GFLOP/s of a matrix product, in fp32 and bf16: the roof that everything else is measured against."""
        device = self.sizes.device
        n = 2048 if device == "cpu" else 8192
        steps = {
            name: partial(torch.mm, *torch.randn(2, n, n, dtype=dtype, device=device))
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        }
        times = in_turn(steps, 3 * self.repeats, "peak")
        speeds = {name: median(2 * n**3 / 1e9 / s for s in taken) for name, taken in times.items()}
        self.roof = speeds["fp32"].mean
        yield "peak", {name: {"gflop_per_second": speed} for name, speed in speeds.items()}

    def steps(self) -> Tables:
        """Training steps, with their peak memory and, if it is known, their share of the fp32 peak."""
        for part in self.settings.networks:
            gflop = count_gflop(our_step(self.sizes, part))
            images = self.sizes.vae_batch if part == VAE_PART else self.sizes.batch
            amounts = [("images_per_second", images), ("gflop_per_second", gflop)]
            if self.roof:
                amounts.append(("share_of_fp32_peak", gflop / self.roof))
            names = candidates(part)
            against = [("times_as_fast", names[0])]
            steps = {name: Candidate(self.sizes, part, name) for name in names}
            rows = measure(part, steps, self.repeats, 2, amounts, against)
            for name, row in rows.items():
                row["peak_mib"] = steps[name].memory()
            yield part, rows

    def sample(self) -> Tables:
        """Sampling of latents by each sampler and step count, without and with a ControlNet."""
        sizes = self.quarter
        rows: Rows = {}
        for sampler, number in SAMPLINGS:
            what = f"{sampler}, {number} steps"
            pair = {f"{what}, {n} ControlNets": sampling(sizes, sampler, number, n) for n in (0, 1)}
            rounds, warmup = (1, 0) if number > LONG else (self.repeats, 1)
            speed = [("images_per_second", sizes.batch)]
            rows |= measure(what, pair, rounds, warmup, speed)
        yield "sampling", rows

    def cold(self) -> Tables:
        """Whole processes: --help, and the first image of a base with random weights."""
        base = BASE_PRESETS[self.settings.preset]
        tokenizer = Tokenizer.from_captions(["a photo"], base.text.length or TOKENS)
        sizes = base.text, base.unet, base.data.resolution
        command = [sys.executable, "-m", "tinyldm.sample"]
        with tempfile.TemporaryDirectory() as folder:
            save_base(Path(folder), LatentDiffusion.build(VAE(base.vae), tokenizer, *sizes))
            image = ["--base", folder, "--out", f"{folder}/x.png", "--num-images", "1"]
            image += "--device", self.settings.device
            run = partial(subprocess.run, check=True, capture_output=True)
            steps = {
                "tinyldm.sample --help": partial(run, [*command, "--help"]),
                "first image": partial(run, [*command, *image]),
            }
            yield "cold", measure("cold start", steps, self.repeats)

    def recipe(self) -> Tables:
        """The trainings of the preset and their evaluation, command by command: seconds and quality."""
        s = self.settings
        with tempfile.TemporaryDirectory() as folder:
            runs = files.real(s.runs or Path(folder))
            if (runs / "0").exists():
                raise UserError(f"--runs {s.runs}: holds runs; name a new folder")
            rows = [train_and_evaluate(runs / str(seed), s, seed) for seed in range(s.seeds)]
        columns = {key: median(row[key] for row in rows) for key in rows[0]}
        named: Rows = {f"seed {seed}": row for seed, row in enumerate(rows)}
        yield "recipe", {**named, "median [smallest, largest]": columns}

    def growth(self) -> Tables:
        """A step as one thing grows."""
        for what, steps in growing(self.quarter):
            yield f"growth, {what}", measure(what, steps, self.repeats)


def train_and_evaluate(folder: Path, settings: BenchmarkSettings, seed: int) -> dict[str, float]:
    """Seconds of each command, whole processes, and what its evaluation found. Raises UserError."""
    if not (SCRIPTS / "train_base.py").exists():
        raise UserError("--parts recipe: needs train_base.py; run it in a clone of the repository")
    folder.mkdir(parents=True, exist_ok=True)
    base, control, results = (str(folder / x) for x in ("base", "control", "evaluation.json"))
    how = ["--device", settings.device, "--precision", settings.precision]
    fit = [*how, "--preset", settings.preset, "--seed", str(seed)]
    commands = {
        "base_s": [str(SCRIPTS / "train_base.py"), *fit, "--out", base],
        "control_s": [str(SCRIPTS / "train_control.py"), *fit, "--base", base, "--out", control],
        "evaluate_s": ["-m", "tinyldm.evaluate", *how, "--base", base, "--control", control],
    }
    commands["evaluate_s"] += ["--json", results]
    taken = {}
    for name, command in commands.items():
        start = time.perf_counter()
        if subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode:
            raise UserError(f"--parts recipe: {' '.join(command)} failed")
        taken[name] = time.perf_counter() - start
    return {**taken, "together_s": sum(taken.values()), **quality(Path(results))}


def quality(path: Path) -> dict[str, float]:
    """The numbers that decide, from what `tinyldm.evaluate --json` wrote."""
    results = files.read_json(path, "evaluate again")
    base, control = results["base"], results["control"]
    found = {"ce": results["vae"]["ce"], "class": base["acc_class"], "base_fd": base["fd"]}
    for row in (row for name, row in control.items() if name.startswith("perfect")):
        found |= {f"gain_{row['passes']}": row["gain"], f"fd_{row['passes']}": row["fd"]}
    return found


def growing(sizes: Sizes) -> Iterator[tuple[str, Steps]]:
    """Yield what grows, with a step for each size of it."""
    unet, vae = (partial(our_step, part=part, bf16=True) for part in (UNET, VAE_PART))
    yield "batch", {str(n): unet(replace(sizes, batch=n)) for n in (16, 32, 64, 128, 256)}
    yield "VAE batch", {str(n): vae(replace(sizes, vae_batch=n)) for n in (8, 16, 32, 64)}
    yield "resolution", {str(n): unet(replace(sizes, resolution=n)) for n in (32, 64, 128)}
    widths = {f"x {k}": tuple(int(k * width) for width in sizes.unet.widths) for k in (0.5, 1, 2)}
    wider = {name: replace(sizes.unet, widths=wide) for name, wide in widths.items()}
    yield "width", {name: unet(replace(sizes, unet=config)) for name, config in wider.items()}
    yield "ControlNets", {str(n): sampling(sizes, "dpm++", 5, n, w=1.0) for n in range(4)}


def stored(value: Any) -> Any:
    """Rows for the JSON file: a spread as its median, min and max."""
    if isinstance(value, Estimate):
        return dict(zip(("median", "min", "max"), value, strict=True))
    return {key: stored(v) for key, v in value.items()} if isinstance(value, dict) else value


def main(settings: BenchmarkSettings) -> None:
    """Measure part by part; print each table, and store its rows, as soon as it is there. Raises UserError."""
    if "steps" in settings.parts and find_spec("diffusers") is None:
        raise UserError("the steps are timed beside diffusers': pip install 'tinyldm[export]'")
    path = settings.json
    results = files.read_json(path, "delete it") if path and path.exists() else {}
    if results.get("preset") != settings.preset:
        results = {}
    with process(settings.device, "fp32") as machine:
        about = describe(machine.device)
        print("machine:", about)
        results |= {"machine": about, "preset": settings.preset, "repeats": settings.repeats}
        benchmark = Benchmark(settings, machine.device)
        for part in sorted(settings.parts, key=get_args(Part).index):
            for key, rows in getattr(benchmark, part)():
                results[key] = stored(rows)
                title = f"training step: {key}" if part == "steps" else key
                named = [{title: name, **row} for name, row in rows.items()]
                print(f"\n{table(named)}", flush=True)
                if path:
                    files.write_json(path, results)


if __name__ == "__main__":
    run_command(lambda: main(parse(BenchmarkSettings)))
