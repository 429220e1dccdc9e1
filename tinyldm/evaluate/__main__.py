"""`python -m tinyldm.evaluate`: how good are the autoencoder, the base and the control, on the test split?"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tinyldm.controlnet import ControlNet
from tinyldm.data.conditions import Condition, canny
from tinyldm.data.dataset import Dataset, to_float, to_uint8
from tinyldm.evaluate.compare import compare
from tinyldm.evaluate.judge import BLIND, Judge, find_judge
from tinyldm.evaluate.metrics import (
    edge_f1,
    estimate,
    frechet_distance,
    gain,
    kernel_distance,
    precision_recall,
    psnr,
    share,
    torch_fidelity,
)
from tinyldm.evaluate.panel import Panel, Sampled, prompt_settings, reconstruct, sample_images
from tinyldm.evaluate.tables import plain, table
from tinyldm.ldm import Control, LatentDiffusion, Passes
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.training.log import seconds_of
from tinyldm.training.machine import Machine, process
from tinyldm.training.networks import load_control
from tinyldm.training.run_folder import dataset_of, load_run
from tinyldm.training.settings import DataSettings, within

Row = dict[str, Any]
Sample = Callable[..., Tensor]  # `sample_images` of the model, with the settings of `generate`
CHANCE = "chance_"
FEWEST, FEWEST_JUDGED = 2, 10  # test images, without and with a judge
LOSS_OF = 256  # of them
ROOM = 0.05  # between chance and ceiling, from which on GAIN says something
WORKS = 0.1  # GAIN of a control that works


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure a base, and a ControlNet if one is given, on images of the test split; print tables."""

    base: Path = Path("runs/base")
    """Run folder of train_base.py."""
    control: Path | None = None
    """Run folder of train_control.py."""
    transfer: bool = False
    """Measure the control even if it was trained on another base."""
    n: int = 500
    """Test images, and so generated images per row of the table."""
    guidance: float = 2.0
    """Classifier-free guidance: 1 is off."""
    steps: int = 10
    """Steps of the sampler, dpm++."""
    control_passes: Passes = "prompted"
    """Which passes of guidance the control acts on: both, or the prompted one only [CN, 3.4]. The last row
    of the table is by the other rule."""
    seed: int = 0
    """Choice of test images, noise and chance pairs."""
    json: Path | None = None
    """Also write the numbers to this file."""
    compare: tuple[Path, ...] = ()
    """Measure nothing; compare the runs of these files, which --json wrote, by minutes of training."""
    plot: Path = Path("curve.png")
    """The PNG that --compare draws."""
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 samples in bfloat16 by autocast; auto does so on a CPU that multiplies it natively."""

    def __post_init__(self) -> None:
        within(self, FEWEST_JUDGED, math.inf, "n")
        within(self, 0, 2**62, "seed")
        within(self, 1, math.inf, "steps")
        within(self, -1000, 1000, "guidance")


def distances(features: Tensor, reference: Tensor) -> Row:
    """FD, kernel distance, precision and recall of images by their features (n, d); nothing without any."""
    if not features.shape[1]:
        return {}
    fd, kd = frechet_distance(features, reference), kernel_distance(features, reference)
    precision, recall = precision_recall(features, reference)
    return {"fd": fd, "kd": kd, "precision": precision, "recall": recall}


def measure_vae(x_hat: Tensor, data: Dataset) -> Row:
    """PSNR and CE of images that were encoded and decoded, to x_hat (n, k, H, W)."""
    ce = edge_f1(canny(to_uint8(x_hat)), canny(data.images))
    db = psnr(x_hat, to_float(data.images)).mean().item()
    return {"psnr": db, "ce": estimate(ce, origins=data.origins)}


def measure_base(sample: Sample, panel: Panel, train: Dataset, seed: int) -> Row:
    """Distances and accuracy of the base with the test captions; floors are those of training images."""
    features, seen = panel.judge(sample(panel.captions, desc="base"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    real, _ = panel.judge(to_float(train.images[order[: len(panel)]]))
    row = distances(features, panel.reference)
    row |= {f"{k}_floor": v for k, v in distances(real, panel.reference).items()}
    found = {f"acc_{k}": share(v, panel.labels[k], panel.origins) for k, v in seen.items()}
    return row | found


@torch.no_grad()
def test_loss(ldm: LatentDiffusion, panel: Panel, controlnet: ControlNet | None) -> float:
    """The training's loss on images of the panel, with the same noise every time."""
    n, device = min(LOSS_OF, len(panel)), ldm.device
    z_0 = ldm.vae.encode(to_float(panel.data.images[:n]).to(device))
    controls = [Control(controlnet, panel.hints[:n].to(device))] if controlnet else []
    torch.manual_seed(0)
    return ldm.loss(z_0, panel.captions[:n], controls).item()


def control_row(found: Sampled, asked: dict[str, Tensor], panel: Panel, ce: Tensor) -> Row:
    """What samples score, where CE (n,) is the ceiling of their EF0.

    ACC_t is of the class that the prompt asks for, ACC_e of that of the hint's image. An attribute
    counts as the prompt asks for it; without a prompt, as the hint's image has it.
    """
    edges = found.ef0, found.ch, ce
    room = (ce - found.ch).mean().item()
    row = {
        "ef0": found.ef0.mean().item(),
        "ch": found.ch.mean().item(),
        "ce": ce.mean().item(),
        "gain": estimate(*edges, statistic=gain, origins=panel.origins) if room > ROOM else None,
    }
    if not panel.judge.labels:
        return row
    first, *attributes = panel.judge.labels
    wanted, right = {**panel.labels, **asked}, partial(share, origins=panel.origins)
    return row | {
        "fd": frechet_distance(found.features, panel.reference),
        "acc_t": right(found.seen[first], asked[first]).mean if asked else None,
        "acc_e": right(found.seen[first], panel.labels[first]).mean,
        **{f"acc_{name}": right(found.seen[name], wanted[name]) for name in attributes},
    }


def measure_control(
    sample: Sample, panel: Panel, controlnet: ControlNet, x_hat: Tensor, seed: int, passes: Passes
) -> dict[str, Row]:
    """A row for each prompt setting; the ceiling is that of the decoded test images x_hat (n, k, H, W).

    In "changed", chance is what the images score that the same hints gave without a prompt. The last row
    is "perfect" by the other rule of guidance.
    """
    controls, settings = [Control(controlnet, panel.hints)], prompt_settings(panel.data, seed)
    ce, _ = panel.edge_scores(x_hat)
    (other,) = {*get_args(Passes)} - {passes}
    runs = {name: (*setting, passes) for name, setting in settings.items()}
    runs[f"perfect, {other}"] = (*settings["perfect"], other)
    found, rows = {}, {}
    for name, (prompts, asked, rule) in runs.items():
        desc = f"control, prompts {name}"
        x = sample(prompts, controls=controls, control_passes=rule, desc=desc)
        found[name] = panel.measured(x)
        rows[name] = {"passes": rule, **control_row(found[name], asked, panel, ce)}
    for label in panel.judge.labels[1:]:
        chance = share(found["none"].seen[label], settings["changed"][1][label])
        rows["changed"][f"{CHANCE}{label}"] = chance.mean
    return rows


def plain_words(results: Row) -> list[str]:
    """What the numbers come to, and what is left out."""
    said = []
    if not results["classifier"]:
        judge = f"'python -m tinyldm.evaluate.judge --dataset {results['dataset']}' trains one"
        said.append(
            f"left out: FD and accuracies, which need a judge; where classes have folders, {judge}"
        )
    if "loss with control" in results["base"] and not results["control"]:
        said.append(
            "left out: how well hints are followed; they came with the pictures, and nothing finds "
            "them in samples"
        )
    if row := results["control"].get("perfect"):
        found, gap = row["gain"], row["ce"] - row["ch"]
        if found is None:
            said.append(
                f"left out: GAIN; an image after the autoencoder follows edges by only {gap:.2f} more "
                "than a stranger's; train the autoencoder for longer"
            )
        else:
            works = found.mean > WORKS and found.low > 0
            verdict = "works" if works else "does not work yet"
            said.append(f"control {verdict}: GAIN {found.mean:.2f}")
    return said


def print_tables(results: Row) -> None:
    """The numbers as Markdown: a table for each part, one row per prompt setting for the control."""
    for part in ("classifier", "vae", "base"):
        if results[part]:
            print("\n" + table([{"part": part, **results[part]}]))
    rows = [{"prompts": name, **row} for name, row in results["control"].items()]
    if rows:
        chances = {k: row.pop(k) for row in rows for k in [*row] if k.startswith(CHANCE)}
        print("\n" + table(rows))
        for key, value in chances.items():
            print(f"\n{key}, changed: {value:.3f}, what the same hints score without a prompt")
    for line in plain_words(results):
        print(f"\n{line}")
    print("\nn = {n} of the test split without the held-out pairs, seed {seed}".format(**results))


def shown_by(condition: Condition) -> Condition:
    """What finds hints in samples: edges where the training's hints came with the pictures."""
    return Condition() if condition.name == "given" else condition


def judge_of(base: Path, dataset: str, images: int) -> Judge:
    """The judge for so many test images; BLIND where a folder has too few for it. Raises UserError."""
    judge = find_judge(dataset)
    left = f"{base}: its --dataset and --limit leave {images} test images"
    if judge.labels and images < FEWEST_JUDGED and DataSettings(dataset).folder:
        print(f"note: {left}, too few for FD and accuracies", file=sys.stderr)
        judge = BLIND
    if images < (needed := FEWEST_JUDGED if judge.labels else FEWEST):
        raise UserError(f"{left}; {needed} are needed")
    return judge


def evaluate(settings: EvaluateSettings, machine: Machine) -> Row:
    """All numbers. Raises UserError."""
    s = settings
    ldm, (train, test) = load_run(s.base, "train", "test", augmented=False)
    if s.steps > ldm.schedule.T:
        raise UserError(f"--steps {s.steps}: must be between 1 and {ldm.schedule.T}")
    found = load_control(s.control, s.base, ldm, s.transfer) if s.control else (None, Condition())
    controlnet, condition = found
    machine.place(ldm, *([controlnet] if controlnet else []))
    dataset = dataset_of(s.base)
    judge = judge_of(s.base, dataset, len(test))
    panel = Panel(test, judge, shown_by(condition), s.n, s.seed)
    how: Row = {"guidance": s.guidance, "steps": s.steps}
    sample = partial(sample_images, ldm, machine=machine, seed=s.seed, **how)
    x_hat = reconstruct(ldm.vae, panel.data.images)
    rows: dict[str, Row] = {}
    measurable = controlnet if condition.name != "given" else None
    if measurable:
        rows = measure_control(sample, panel, measurable, x_hat, s.seed, s.control_passes)
    return {
        "n": len(panel),
        "seed": s.seed,
        "dataset": dataset,
        **how,
        "control_passes": s.control_passes,
        "precision": str(machine.dtype).removeprefix("torch."),
        "classifier": {f"acc_{k}": score for k, score in panel.accuracy.items()},
        "vae": measure_vae(x_hat, panel.data),
        "base": {
            **measure_base(sample, panel, train, s.seed),
            "loss": test_loss(ldm, panel, None),
            **({"loss with control": test_loss(ldm, panel, controlnet)} if controlnet else {}),
        },
        "control": rows,
    }


def main(settings: EvaluateSettings) -> None:
    """Measure, print the tables, and write them as JSON; or compare earlier measurements."""
    if settings.compare:
        return compare(settings.compare, settings.plot)
    start, out = time.perf_counter(), settings.json
    if out:
        files.check_writable("--json", out)
    torch_fidelity("metric_fid")  # or fail now, not after minutes
    seconds = seconds_of(settings.base)
    if settings.control:
        seconds |= seconds_of(settings.control)
    with process(settings.device, settings.precision) as machine:
        results = evaluate(settings, machine)
    results["seconds"] = {**seconds, "evaluate": round(time.perf_counter() - start, 2)}
    print_tables(results)
    if out:
        files.write_json(out, plain(results))


def command() -> None:
    """The console command tinyldm-evaluate."""
    run_command(lambda: main(parse(EvaluateSettings)))


if __name__ == "__main__":
    command()
