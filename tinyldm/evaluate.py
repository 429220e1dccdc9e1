"""`python -m tinyldm.evaluate`: how good are the autoencoder, the base and the control, on the test split?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyldm.cli import parse, run_command


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a base, and a ControlNet if one is given, on images of the test split; print a table."""

    base: Path = Path("runs/base")
    """Run folder of train_base.py."""
    control: Path | None = None
    """Run folder of train_control.py."""
    n: int = 500
    """Test images, and so generated images per row of the table."""
    guidance: float = 2.0
    """Classifier-free guidance: 1 is off."""
    steps: int = 15
    """Steps of the sampler, dpm++."""
    seed: int = 0
    """Choice of test images, noise and chance pairs."""
    json: Path | None = None
    """Also write the numbers to this file."""
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 samples in bfloat16 by autocast; auto does so where the processor multiplies it natively."""


if __name__ == "__main__":  # before torch is imported: --help and mistakes answer at once
    config = run_command(lambda: parse(EvaluateConfig))

import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from tinyldm import files
from tinyldm.classifier import Judge, accuracy, load_judge
from tinyldm.conditions import CONDITIONS, canny
from tinyldm.controlnet import ControlNet
from tinyldm.dataset import Dataset, to_float
from tinyldm.errors import UserError
from tinyldm.ldm import LatentDiffusion, bind_hint, load_control
from tinyldm.metrics import (
    edge_f1,
    frechet_distance,
    gain,
    interval,
    kernel_distance,
    partners,
    precision_recall,
    psnr,
    torch_fidelity,
)
from tinyldm.runs import load_run, sample_images
from tinyldm.tables import table
from tinyldm.training import keep_freed_memory, pick_device, pick_precision

BATCH = 100


@dataclass
class Evaluation:
    """What every row of the table needs: the model, the judge, n test images, and the reference for FD."""

    config: EvaluateConfig
    ldm: LatentDiffusion
    judge: Judge
    data: Dataset  # n images of the test split
    reference: Tensor  # features of the whole test split (m, d)
    dtype: torch.dtype  # of sampling

    def samples(self, prompts: Sequence[str], name: str, controlnet: ControlNet | None = None, hints=None) -> Tensor:
        """One image per prompt (and hint (n, 1, H, W)) -> x (n, k, H, W) in [-1, 1], on the CPU."""
        bound = lambda part: [bind_hint(controlnet, hints[part].to(self.ldm.device))] if controlnet else []  # noqa: E731
        settings = {"guidance": self.config.guidance, "steps": self.config.steps, "seed": self.config.seed}
        return sample_images(self.ldm, prompts, self.dtype, bound, desc=name, **settings)

    def distances(self, features: Tensor) -> dict[str, float]:
        """FD, kernel distance, precision and recall of images by their features (n, d)."""
        precision, recall = precision_recall(features, self.reference)
        distances = {"fd": frechet_distance(features, self.reference), "kd": kernel_distance(features, self.reference)}
        return {**distances, "precision": precision, "recall": recall}


def measure_vae(e: Evaluation) -> tuple[dict, Tensor]:
    """PSNR and CE of the autoencoder, and its edge F1 per image (n,)."""
    x = to_float(e.data.images)
    with torch.no_grad():
        x_hat = torch.cat([e.ldm.vae.decode(e.ldm.vae.encode(b.to(e.ldm.device))).cpu() for b in x.split(BATCH)])
    ce = edge_f1(canny(x_hat), canny(x))
    return {"psnr": psnr(x_hat, x).mean().item(), "ce": ce.mean().item(), "ce_interval": interval(ce)}, ce


def measure_base(e: Evaluation, train: Dataset) -> dict:
    """Distances and accuracy of the base with the test captions; the floors are those of as many training images."""
    features, predictions = e.judge(e.samples(e.data.captions.full(), "base"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(e.config.seed))
    real, _ = e.judge(to_float(train.images[order[: len(e.data)]]))
    row = {**e.distances(features), **{f"{name}_floor": value for name, value in e.distances(real).items()}}
    for name in e.judge.labels:
        hit = (predictions[name] == e.data.labels[name]).float()
        row |= {f"acc_{name}": hit.mean().item(), f"acc_{name}_interval": interval(hit)}
    return row


def different(labels: Tensor) -> Tensor:
    """labels (n,) -> (n, n): do images i and j differ?"""
    return labels[:, None] != labels[None, :]


def prompt_settings(data: Dataset, seed: int) -> dict[str, tuple[list[str], dict[str, Tensor]]]:
    """name -> prompts (n) and the labels that they ask for: the four settings of [CN, 4.2], and one more.

    conflicting: the caption of an image that differs in class and in attribute. changed: of the same class, with
    another attribute, so that it asks for something that the edges neither show nor forbid.
    """
    n, captions = len(data), data.captions.full()
    first, second = list(data.labels.values())[:2]
    other_class, other_attribute = different(first), different(second)
    conflicting = partners(other_class & other_attribute, seed)
    changed = partners(~other_class & other_attribute, seed)
    settings = {"none": ([""] * n, {}), "insufficient": (["a photo"] * n, {}), "perfect": (captions, data.labels)}
    for name, indices in (("conflicting", conflicting), ("changed", changed)):
        asked = {label: values[indices] for label, values in data.labels.items()}
        settings[name] = ([captions[i] for i in indices.tolist()], asked)
    return settings


def measure_control(e: Evaluation, controlnet: ControlNet, condition: str, ce: Tensor) -> dict:
    """For each prompt setting EF0, CH, CE, GAIN, FD, ACC_t (the prompt's class), ACC_e (the hint's), attributes.

    In "changed", chance is what the images score that the same hints gave without a prompt.
    """
    hints = CONDITIONS[condition](to_float(e.data.images))
    first = e.data.labels["class"]
    strangers = partners(~different(first), e.config.seed)  # of the same class
    rows, seen = {}, {}
    for name, (prompts, asked) in prompt_settings(e.data, e.config.seed).items():
        x = e.samples(prompts, f"control, prompts {name}", controlnet, hints)
        edges = CONDITIONS[condition](x)
        features, seen[name] = e.judge(x)
        row = edge_row(edge_f1(edges, hints), edge_f1(edges, hints[strangers]), ce)
        row |= {"fd": frechet_distance(features, e.reference)}
        row |= {"acc_t": share(seen[name]["class"], asked["class"]) if asked else None}
        row |= {"acc_e": share(seen[name]["class"], first)}
        for label in e.judge.labels[1:]:
            wanted = {**e.data.labels, **asked}[label]  # without a prompt, what the image has that the hint is from
            row[f"acc_{label}"] = share(seen[name][label], wanted)
            row[f"acc_{label}_interval"] = interval((seen[name][label] == wanted).float())
            if name == "changed":
                row[f"chance_{label}"] = share(seen["none"][label], wanted)
        rows[name] = row
    return rows


def edge_row(ef0: Tensor, ch: Tensor, ce: Tensor) -> dict:
    """The means of EF0, CH and CE, each per image (n,), and GAIN with its interval."""
    row = {"ef0": ef0.mean().item(), "ch": ch.mean().item(), "ce": ce.mean().item()}
    return {**row, "gain": gain(**row), "gain_interval": interval(ef0, ch, ce, statistic=gain)}


def share(a: Tensor, b: Tensor) -> float:
    """Share of the entries of a and b (n,) that are equal."""
    return (a == b).float().mean().item()


def training_seconds(run: Path) -> dict[str, float]:
    """stage -> seconds of training, from a run folder's metrics.jsonl."""
    if not (run / "metrics.jsonl").exists():  # an imported run
        return {}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["stage"]: line["seconds"] for line in lines}


def cell(row: dict, key: str) -> str:
    """A number of a table's row, with its interval if it has one."""
    if row[key] is None:
        return "-"
    low_high = row.get(f"{key}_interval")
    return f"{row[key]:.3f}" + (f" [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else "")


def print_table(results: dict) -> None:
    """The numbers as Markdown: a line for each part, one row per prompt setting for the control."""
    for part in ("classifier", "vae", "base"):
        keys = [key for key in results[part] if not key.endswith("_interval")]
        print(f"\n{part}: " + ", ".join(f"{key} {cell(results[part], key)}" for key in keys))
    rows = results.get("control", {})
    keys = [key for key in rows.get("perfect", {}) if not key.endswith("_interval")]
    if rows:
        print("\n" + table([{"prompts": name, **{key: cell(row, key) for key in keys}} for name, row in rows.items()]))
    chances = {key: value for key, value in rows.get("changed", {}).items() if key.startswith("chance_")}
    for key, value in chances.items():
        print(f"\n{key}, changed: {value:.3f}, what the same hints score without a prompt")
    print(f"\nn = {results['n']} of the test split without the held-out pairs, seed {results['seed']}")


def check(config: EvaluateConfig) -> None:
    """Raise UserError for what would fail only after minutes."""
    if config.n < 10:
        raise UserError(f"--n {config.n}: must be at least 10")
    if not 0 <= config.seed < 2**62:
        raise UserError(f"--seed {config.seed}: must be at least 0")
    if config.json and (config.json.is_dir() or not config.json.parent.is_dir()):
        raise UserError(f"--json {config.json}: name a file in a folder that exists")
    torch_fidelity("metric_fid")


def main(config: EvaluateConfig) -> None:
    """Measure, print the table, and write it as JSON."""
    start = time.perf_counter()
    check(config)
    ldm, train, test = load_run(config.base, "train", "test")
    if not 1 <= config.steps <= ldm.schedule.T:
        raise UserError(f"--steps {config.steps}: must be between 1 and {ldm.schedule.T}")
    controlnet, condition = load_control(config.control, config.base, ldm) if config.control else (None, "")
    name = files.read_json(config.base / "settings.json", "")["data"]["dataset"]
    judge = load_judge(name)
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    ldm.to(device, memory_format=torch.channels_last)
    keep_freed_memory()
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(config.seed))
    e = Evaluation(config, ldm, judge, test.subset(order[: config.n]), judge(to_float(test.images))[0], dtype)
    scores = accuracy(judge, test)
    results = {"n": len(e.data), "seed": config.seed, "dataset": name, "guidance": config.guidance}
    results |= {"steps": config.steps, "precision": str(dtype).removeprefix("torch.")}
    results |= {"classifier": {f"acc_{label}": value for label, value in scores.items()}}
    results["vae"], ce = measure_vae(e)
    results["base"] = measure_base(e, train)
    results["seconds"] = training_seconds(config.base)
    if controlnet:
        results["control"] = measure_control(e, controlnet.to(device, memory_format=torch.channels_last), condition, ce)
        results["seconds"] |= training_seconds(config.control)
    results["seconds"]["evaluate"] = round(time.perf_counter() - start, 2)
    print_table(results)
    if config.json:
        files.write_json(config.json, results)


if __name__ == "__main__":
    run_command(lambda: main(config))
