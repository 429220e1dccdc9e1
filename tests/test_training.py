"""`fit`: data order, schedules, the average of the weights, and that a run is a function of its seed."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import FrozenInstanceError, asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import train_base
import train_control
from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data.conditions import silhouette
from tinyldm.data.dataset import Captions, Columns, Dataset, Tokens, drop_captions, to_float
from tinyldm.ldm import Control, LatentDiffusion
from tinyldm.support import files
from tinyldm.support.command_line import parse_with_preset, run_command
from tinyldm.support.errors import Finished, Stopped, UserError
from tinyldm.support.sealed import Sealed, is_sealed, seal
from tinyldm.text import Tokenizer
from tinyldm.training import caches, previews, run_folder
from tinyldm.training import log as log_file
from tinyldm.training import machine as machine_file
from tinyldm.training.checkpoint import Checkpoints
from tinyldm.training.ema import EMA
from tinyldm.training.fit import batch_indices, fit, lr_factor, seed_step
from tinyldm.training.machine import (
    Machine,
    idle_cores,
    keep_threads,
    pick_device,
    pick_precision,
    pick_threads,
    process,
)
from tinyldm.training.networks import base_checksum, build_base, seal_run
from tinyldm.training.optimizer import build_optimizer
from tinyldm.training.presets import BASE_PRESETS
from tinyldm.training.settings import (
    BaseSettings,
    ControlSettings,
    DataSettings,
    FitSettings,
    RunSettings,
    TextSizes,
    UNetSizes,
    VAESizes,
)
from tinyldm.training.step import WARM_UP, Step, gradient, set_lr, take_step


class Regression(nn.Module):
    """Learns y = 3 x from batches (x, y), with noise on y drawn from the global generator."""

    def __init__(self, explode_at: int = 10**9):
        super().__init__()
        self.w, self.steps, self.explode_at = nn.Parameter(torch.zeros(1)), 0, explode_at

    def forward(self, x, y):
        self.steps += 1
        loss = ((self.w * x - y - 0.1 * torch.randn_like(y)) ** 2).mean()
        return loss * float("nan") if self.steps >= self.explode_at else loss


X = torch.linspace(-1, 1, 50)
DATA = Columns(X, 3 * X)
SETTINGS = FitSettings(
    steps=60,
    batch_size=8,
    lr=0.5,
    warmup=5,
    ema=0.9,
    weight_decay=0.0,
    log_every=10,
    preview_every=30,
)


def train(stage, out, name="line", data=DATA, settings=SETTINGS, seed=0, machine=None, **more):
    """`fit` of a module whose forward is its own loss, in channels_last as the commands place it.

    `out` is a folder, or the checkpoints in it; without more, those of every 30 steps.
    """
    machine = machine or Machine()
    machine.place(stage)
    saved = out if isinstance(out, Checkpoints) else Checkpoints(out, every=30)
    fit(
        *(stage, [stage], data, settings),
        **{"checkpoints": saved, "name": name, "seed": seed, "machine": machine, **more},
    )


def test_fit_learns_logs_and_previews(tmp_path):
    stage, previews = Regression(), []
    train(stage, tmp_path, validation=(X, 3 * X), preview=previews.append)
    assert abs(stage.w.item() - 3) < 0.15
    assert previews == [30, 60]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [10, 20, 30, 40, 50, 60] and losses[60] < losses[10] / 10
    assert [line["step"] for line in lines if "validation_loss" in line] == [30, 60]


def losses_of(folder):
    """The losses that metrics.jsonl holds."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


class Signalled(Regression):
    """Sends its own process a signal in its 23rd step."""

    def forward(self, x, y):
        if self.steps == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x, y)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, capfd, precision, optimizer):
    """In the middle of an epoch: weights, average, moments and losses."""
    whole, first, second = Regression(), Signalled(), Regression()
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    settings = replace(SETTINGS, optimizer=optimizer)
    with process("cpu", precision) as machine:
        train(whole, tmp_path / "whole", machine=machine, settings=settings)
    with pytest.raises(SystemExit) as exit, process("cpu", precision) as machine:
        run_command(lambda: train(first, tmp_path / "parts", machine=machine, settings=settings))
    assert exit.value.code == 128 + signal.SIGTERM and first.steps == 23  # the step was finished
    told, stopped = [line for line in capfd.readouterr().err.splitlines() if "stop" in line]
    assert told == "stopping: this step is saved first; a second signal stops at once"
    assert stopped == "stopped after step 23 of line; a run resumes by --resume latest"
    with process("cpu", precision) as machine:
        train(second, tmp_path / "parts", machine=machine, settings=settings)
    assert second.steps == 60 - 23
    assert torch.equal(whole.w, second.w)
    states = [tmp_path / f / "checkpoint-60" / "state.safetensors" for f in ("whole", "parts")]
    assert files.sha256(states[0]) == files.sha256(states[1])
    losses = [losses_of(tmp_path / folder) for folder in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    train(third := Regression(), tmp_path / "parts")
    assert third.steps == 0 and torch.equal(
        third.w, whole.w
    )  # a finished training is not trained again


class Convolution(nn.Module):
    """A weight in channels_last, with channels enough to notice a mix-up of memory formats."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.steps = nn.Conv2d(3, 18, 3), 0

    def forward(self, x):
        self.steps += 1
        return (self.conv(x) ** 2).mean() + (self.conv(x + torch.randn_like(x)) - 1).abs().mean()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_convolution_keeps_its_moments_in_place(tmp_path, optimizer):
    data = Columns(torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    settings = replace(SETTINGS, steps=20, preview_every=10, optimizer=optimizer)

    def die(step):
        if step == 10:
            raise InterruptedError

    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    train(whole := Convolution(), tmp_path / "whole", "conv", data=data, settings=settings)
    saved = Checkpoints(tmp_path / "parts", every=5)
    with pytest.raises(InterruptedError):
        train(Convolution(), saved, "conv", data=data, settings=settings, preview=die)
    train(second := Convolution(), tmp_path / "parts", "conv", data=data, settings=settings)
    assert second.steps == 15
    assert torch.equal(whole.conv.weight, second.conv.weight)


def kill(step):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("preview_every", [30, 1000])
def test_a_signal_in_the_last_preview_still_ends_the_process(tmp_path, preview_every):
    settings = replace(SETTINGS, preview_every=preview_every)
    with pytest.raises(SystemExit) as exit, process("cpu") as machine:
        run_command(
            lambda: train(Regression(), tmp_path, settings=settings, machine=machine, preview=kill)
        )
    assert exit.value.code == 128 + signal.SIGTERM


def test_a_signal_in_a_preview_waits_until_it_is_drawn(tmp_path):
    """It would never be drawn otherwise: a resumed run starts after its step."""
    drawn = []

    def preview(step):
        kill(step)
        drawn.append(step)

    with pytest.raises(Stopped, match="after step 30"), process("cpu") as machine:
        train(Regression(), tmp_path, machine=machine, validation=(X, 3 * X), preview=preview)
    assert drawn == [30]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [30]
    assert all(line["images_per_second"] > 0 for line in lines if "loss" in line)


def test_a_signal_ends_a_command_at_once_but_for_what_is_held():
    with pytest.raises(Stopped) as stopped, process("cpu"):
        kill(0)
    assert stopped.value.number == signal.SIGTERM
    assert str(stopped.value) == "stopped; what was saved before stays"
    done = []
    with pytest.raises(Stopped, match="saved"), process("cpu") as machine:
        with machine.stop.hold():
            kill(0)
            done.append("held")
        machine.stop.check("saved")
    assert done == ["held"]


def test_a_second_signal_ends_the_process_at_once():
    code = """
import os, signal
from tinyldm.training.machine import process
with process("cpu") as machine, machine.stop.hold():
    os.kill(os.getpid(), signal.SIGINT)
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("never")
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.returncode == -signal.SIGINT and child.stdout == "held\n"


def test_the_process_is_as_before_once_a_command_ends():
    before = signal.getsignal(signal.SIGTERM)
    with process("cpu"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_torn_line_of_the_log_does_not_stop_a_resumed_run(tmp_path):
    train(Regression(), tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "line", "st')
    train(Regression(), tmp_path)
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def flip(path):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["state.safetensors", "metrics.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_checkpoint_is_an_error_if_named_and_else_skipped(tmp_path, capsys, name, damage):
    train(whole := Regression(), tmp_path)
    damage(tmp_path / "checkpoint-60" / name)
    with pytest.raises(UserError, match=r"checkpoint-60/.*--overwrite"):
        train(Regression(), Checkpoints(tmp_path, at=60))
    train(again := Regression(), tmp_path)
    assert "checkpoint-60" in capsys.readouterr().err
    assert again.steps == 30 and torch.equal(again.w, whole.w)


def test_a_checkpoint_that_is_not_there_or_of_another_run_is_no_fresh_start(tmp_path):
    train(Regression(), Checkpoints(tmp_path, every=30, run="one"))
    with pytest.raises(UserError, match="checkpoint-45"):
        train(Regression(), Checkpoints(tmp_path, at=45, run="one"))
    with pytest.raises(UserError, match="another run"):
        train(Regression(), Checkpoints(tmp_path, at=30, run="two"))
    (tmp_path / "checkpoint-30").rename(tmp_path / "checkpoint-31")
    with pytest.raises(UserError, match="another run or step"):
        train(Regression(), Checkpoints(tmp_path, at=31, run="one"))


def test_a_checkpoint_can_be_chosen_and_the_newest_are_kept(tmp_path):
    whole, chosen = Regression(), Regression()
    train(whole, Checkpoints(tmp_path, every=7, limit=3))
    assert Checkpoints(tmp_path).numbers() == [49, 56, 60]
    train(chosen, Checkpoints(tmp_path, at=49))
    assert chosen.steps == 11 and torch.equal(chosen.w, whole.w)
    assert len(losses_of(tmp_path)) == 6


def test_two_trainings_of_a_run_count_their_steps_together(tmp_path):
    def both(folder, at=None):
        saved = Checkpoints(folder, every=25, limit=1, at=at)
        train(first := Regression(), saved, "first")
        train(second := Regression(), saved, "second", seed=1)
        return first, second

    (tmp_path / "parts").mkdir()
    whole = both(tmp_path)
    assert Checkpoints(tmp_path).numbers() == [60, 120]  # the end of the first is kept
    (tmp_path / "checkpoint-60").rename(tmp_path / "parts" / "checkpoint-60")
    parts = both(tmp_path / "parts")
    assert [network.steps for network in parts] == [0, 60]
    assert all(torch.equal(a.w, b.w) for a, b in zip(whole, parts, strict=True))
    files.discard(tmp_path / "parts" / "checkpoint-60")
    with pytest.raises(UserError, match="checkpoint-60"):  # the second builds on what it held
        both(tmp_path / "parts")


def test_a_checkpoint_is_verified_before_an_old_one_goes(tmp_path, monkeypatch):
    """A disk that silently keeps something else."""
    saved, write = Checkpoints(tmp_path, every=30, limit=1), files.write

    def damaged(path, content):
        write(path, content)
        if path.name == "state.safetensors" and saved.numbers():
            path.write_bytes(content[:-1] + b"?")
        return hashlib.sha256(content).hexdigest()

    monkeypatch.setattr(files, "write", damaged)
    with pytest.raises(UserError, match="checksum"):
        train(Regression(), saved)
    assert 30 in saved.numbers()
    monkeypatch.undo()
    train(again := Regression(), tmp_path)
    assert again.steps == 30


def test_the_parts_of_a_checkpoint_have_to_fit(tmp_path):
    """Sealed again after the change, so that every checksum is right."""
    train(Regression(), tmp_path)
    folder = tmp_path / "checkpoint-60"
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    tensors = files.read_tensors(folder / "state.safetensors", "")
    for change in (
        {"weights.0": torch.zeros(())},  # would fill any shape
        {"weights.0": torch.zeros(1, dtype=torch.float64)},
        {"weights.1": torch.zeros(1)},
        {"optimizer.0.exp_avg": torch.zeros(2)},
    ):
        files.write_tensors(folder / "state.safetensors", tensors | change)
        names = "state.safetensors", "metrics.jsonl"
        seal(folder, {name: files.sha256(folder / name) for name in names}, **facts)
        with pytest.raises(UserError, match=r"state\.safetensors"):
            train(Regression(), tmp_path)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    stages = []
    for seed in (0, 0, 1):
        stages.append(Regression())
        torch.manual_seed(torch.seed())  # whatever the caller's generator is
        train(stages[-1], tmp_path / f"{len(stages)}", seed=seed)
    assert torch.equal(stages[0].w, stages[1].w)
    assert not torch.equal(stages[0].w, stages[2].w)


def test_validation_and_previews_do_not_change_the_training(tmp_path):
    plain, watched = Regression(), Regression()
    train(plain, tmp_path / "plain")
    train(watched, tmp_path / "watched", validation=(X, 3 * X), preview=lambda step: torch.rand(3))
    assert torch.equal(plain.w, watched.w)


def test_a_loss_that_is_not_finite_stops_with_step_and_learning_rate(tmp_path):
    with pytest.raises(
        UserError, match=r"line: loss is nan.* in step 15, learning rate .*lower the learning rate"
    ):
        train(Regression(explode_at=15), Checkpoints(tmp_path, every=7))
    assert Checkpoints(tmp_path).numbers() == [7, 14]
    sealed = Checkpoints(tmp_path).open(14)
    tensors = files.read_tensors(sealed.folder / "state.safetensors", "")
    assert all(x.isfinite().all() for x in tensors.values())


class Cliff(Regression):
    """Its loss is finite and its gradient is not, from the third step on."""

    def forward(self, x, y):
        loss = super().forward(x, y)
        return loss + (self.w * 0).abs().sqrt().sum() if self.steps > 2 else loss


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    stage = Cliff()
    with pytest.raises(UserError, match=r"gradient norm .* in step 3"):
        train(stage, tmp_path)
    assert stage.w.isfinite().all()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """After a single step that is too long, no loss has shown it yet."""
    settings = replace(SETTINGS, steps=1, lr=1e38, warmup=0, optimizer="adamw")
    with pytest.raises(UserError, match="not finite"):
        train(Regression(), tmp_path, settings=replace(settings, weight_decay=100.0, lr=3e38))
    assert Checkpoints(tmp_path).numbers() == []


def test_noise_is_a_function_of_seed_and_step():
    draws = []
    for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1)):
        seed_step(seed, step)
        draws.append(torch.randn(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])


def test_every_epoch_is_another_permutation_of_all_images():
    indices = torch.cat([batch_indices(10, 4, seed=0, step=step) for step in range(5)])
    first, second = indices[:10], indices[10:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)
    assert torch.equal(batch_indices(10, 4, 0, 3), indices[12:16])
    assert not torch.equal(batch_indices(10, 10, 1, 0), first)


def test_a_batch_larger_than_the_dataset_wraps_around():
    assert sorted(batch_indices(3, 6, 0, 0).tolist()) == [0, 0, 1, 1, 2, 2]


def test_learning_rate_warms_up_and_ends_near_zero():
    settings = FitSettings(steps=100, warmup=10)
    factors = [lr_factor(settings, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert all(a > b for a, b in pairwise(factors[10:])) and factors[-1] < 0.001


def test_a_constant_rate_warms_up_and_stays():
    settings = FitSettings(steps=100, warmup=10, lr_scheduler="constant")
    factors = [lr_factor(settings, step) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(factors[10:]) == {1.0}


def test_a_scheduler_is_told_by_settings_json_unless_it_is_the_default():
    """So runs from before there was another are resumed."""
    base = BaseSettings()
    told = run_folder.described(base, Machine())
    assert "lr_scheduler" not in told["fit"] and "lr_scheduler" not in told["vae_fit"]
    constant = replace(base, fit=replace(base.fit, lr_scheduler="constant"))
    told = run_folder.described(constant, Machine())
    assert told["fit"]["lr_scheduler"] == "constant" and "lr_scheduler" not in told["vae_fit"]


def test_ema_follows_its_formula_and_applies_only_inside():
    stage = Regression()
    ema = EMA([stage.w], decay=0.5)
    with torch.no_grad():
        stage.w.fill_(1.0)
    ema.update(0)  # decay = min(0.5, 1 / 10)
    assert ema.shadow[0].item() == pytest.approx(0.9)
    with ema.applied():
        assert stage.w.item() == pytest.approx(0.9)
    assert stage.w.item() == 1.0
    ema.update(1000)
    assert ema.shadow[0].item() == pytest.approx(0.95)


def test_dropping_captions():
    tokens = torch.full((10_000, 2), 7)
    torch.manual_seed(0)
    dropped = drop_captions(tokens, 0.3) == 0
    assert abs(dropped[:, 0].sum() - 3000) < 150 and torch.equal(dropped[:, 0], dropped[:, 1])
    assert torch.equal(drop_captions(tokens, 0.0), tokens)
    assert torch.equal(drop_captions(tokens, 1.0), 0 * tokens)


def test_an_unknown_device_is_a_clear_error():
    with pytest.raises(UserError, match="abacus"):
        pick_device("abacus")


# ---------------------------------------------------------------- step by step, against closed forms


class Slope(nn.Module):
    """Its loss is w, so that the gradient is 1 and a step of AdamW is exactly as long as its rate."""

    def __init__(self):
        super().__init__()
        self.w, self.seen = nn.Parameter(torch.zeros(1)), []

    def forward(self, x):
        self.seen.append(x.tolist())
        return self.w.sum() + 0 * x.sum()


SLOW = replace(SETTINGS, steps=12, batch_size=3, lr=0.5, warmup=4, ema=0.7, clip=9.0, log_every=1)
RATES = [
    *(0.5 * part for part in (0.25, 0.5, 0.75, 1.0)),
    *(0.25 * (1 + math.cos(math.pi * i / 8)) for i in range(8)),
]


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_rate_and_every_average_of_fit_is_as_defined(tmp_path):
    """Rates warm up over 4 of 12 steps; averages with min(0.7, (1 + n) / (10 + n)) after step n = 0, 1, ..."""
    stage, averages = Slope(), []
    train(
        stage,
        tmp_path,
        data=Columns(torch.zeros(5)),
        settings=replace(SLOW, preview_every=1),
        preview=lambda step: averages.append(stage.w.item()),
    )
    w, average, expected = 0.0, 0.0, []
    for n, rate in enumerate(RATES):
        w -= rate
        decay = min(0.7, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * w
        expected.append(average)
    assert averages == pytest.approx(expected, rel=1e-5)
    assert stage.w.item() == pytest.approx(expected[-1], rel=1e-5)
    losses = [line for line in lines_of(tmp_path) if "loss" in line]
    assert [line["step"] for line in losses] == [*range(1, 13)]
    assert [line["lr"] for line in losses] == pytest.approx(RATES, rel=1e-12)
    assert [line["loss"] for line in losses] == pytest.approx(
        [-sum(RATES[:n]) for n in range(12)], rel=1e-5
    )
    assert all(line["grad_norm"] == 1 for line in losses)


def test_previews_checkpoints_and_losses_come_at_exactly_their_steps(tmp_path):
    previews = []
    settings = replace(SLOW, steps=11, log_every=5, preview_every=4)
    saved = Checkpoints(tmp_path, every=3, limit=9)
    train(
        *(Slope(), saved),
        data=Columns(torch.zeros(5)),
        settings=settings,
        preview=previews.append,
        validation=(torch.zeros(2),),
    )
    assert previews == [4, 8, 11] and saved.numbers() == [3, 6, 9, 11]
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 11]
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8, 11]
    assert [(x["step"], x["checkpoint"]) for x in lines if "checkpoint" in x] == [
        (n, f"checkpoint-{n}") for n in (3, 6, 9, 11)
    ]
    assert all(line["stage"] == "line" and line["seconds"] >= 0 for line in lines)
    assert saved.before == 11


def test_the_validation_loss_is_that_of_the_averaged_weights_with_the_same_noise(tmp_path):
    """With noise of its own: what the loss draws is the same at every look."""
    stage, draws = Regression(), []
    forward = stage.forward

    def recorded(x, y):
        if len(x) == 50:
            draws.append((stage.w.item(), torch.randn(3).tolist(), torch.is_grad_enabled()))
        return forward(x, y)

    stage.forward = recorded
    train(stage, tmp_path, validation=(X, 3 * X))
    torch.manual_seed(0)
    noise = torch.randn(3).tolist()
    assert [entry[1:] for entry in draws] == [(noise, False), (noise, False)]
    assert draws[-1][0] == stage.w.item()
    torch.manual_seed(0)
    torch.randn(3)
    with torch.no_grad():
        expected = forward(X, 3 * X).item()
    found = [line["validation_loss"] for line in lines_of(tmp_path) if "validation_loss" in line]
    assert found[-1] == expected


def test_batches_of_fit_are_those_of_seed_and_step(tmp_path):
    stage, data = Slope(), torch.arange(5.0)
    train(stage, tmp_path, data=Columns(data), settings=SLOW, seed=3)
    expected = [data[batch_indices(5, 3, 3, step)].tolist() for step in range(12)]
    assert stage.seen == expected


def test_gradients_are_clipped_to_their_norm_and_used_once():
    w = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([w], lr=1.0)
    norm = gradient(3 * w[0] + 4 * w[1], optimizer, clip=0.5)
    assert norm.item() == 5
    set_lr(optimizer, 0.1)
    take_step(optimizer)
    assert torch.allclose(w, -0.1 * torch.tensor([0.3, 0.4]))
    gradient(w.sum(), optimizer, clip=9.0)
    assert torch.equal(w.grad, torch.ones(2))


class Replayed:
    """Stands in for a CUDA graph on a CPU: capturing changes nothing, and a replay takes the step again."""

    replays, step = 0, None

    def replay(self):
        Replayed.replays += 1
        self.step.compute()

    @contextmanager
    def capturing(self):
        states = self.step.optimizer.state.values()
        tensors = [*self.step.network.parameters(), *(x for s in states for x in s.values())]
        kept = [x.detach().clone() for x in tensors]
        yield
        with torch.no_grad():
            torch._foreach_copy_(tensors, kept)


def weight_after_ten_steps(monkeypatch, optimizer: str, graphs: bool) -> tuple[torch.Tensor, int]:
    """And how many of the steps were checked."""
    monkeypatch.setattr(Machine, "graphs", graphs)
    torch.manual_seed(0)
    network, checked = nn.Linear(20, 20), []
    settings = FitSettings(batch_size=4, optimizer=optimizer)
    rate = torch.tensor(9.0) if graphs else 9.0
    taken = build_optimizer(settings, network.parameters(), rate)
    data = Columns(torch.randn(9, 20, generator=torch.Generator().manual_seed(0)))
    step = Step(lambda x: network(x).pow(2).mean(), data, taken, settings, Machine())
    step.network, Replayed.step = network, step
    for i in range(10):
        step(torch.arange(i, i + 4) % 9, 0.1 / (i + 1), lambda *seen: checked.append(seen))
    return network.weight.detach(), len(checked)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_few_steps_are_taken_one_is_captured_and_the_rest_are_replayed(monkeypatch, optimizer):
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"CUDAGraph": Replayed, "graph": Replayed.capturing, "Stream": lambda: stream}
    for name, fake in {**fakes, "current_stream": lambda: stream, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Replayed, "replays", 0)
    eager, all_of_them = weight_after_ten_steps(monkeypatch, optimizer, graphs=False)
    captured, some = weight_after_ten_steps(monkeypatch, optimizer, graphs=True)
    torch.testing.assert_close(captured, eager, rtol=1e-4, atol=1e-5)
    assert (all_of_them, some, Replayed.replays) == (10, WARM_UP, 10 - WARM_UP)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_captured_steps_are_those_that_are_taken_one_by_one(tmp_path, optimizer):
    """Also in a second training of the process, and resumed in the middle."""
    weights = {}
    settings = FitSettings(
        **{"steps": 12, "batch_size": 8, "optimizer": optimizer, "lr": 0.01, "warmup": 3}
    )
    for name in ("eager", "captured", "again", "resumed"):
        with process("cuda", "fp32") as machine:
            machine = replace(machine, capture=name != "eager")
            torch.manual_seed(0)
            network, folder = nn.Linear(20, 20), tmp_path / name
            folder.mkdir()
            machine.place(network)

            def loss_fn(x, network=network):
                return (network(x) - torch.rand(len(x), 20, device=x.device)).pow(2).mean()

            data = Columns(torch.randn(30, 20, generator=torch.Generator().manual_seed(1)))
            how = {"name": "line", "seed": 0, "machine": machine}
            saved = Checkpoints(folder, every=6, limit=9)
            if name == "resumed":
                shutil.copytree(tmp_path / "captured" / "checkpoint-6", folder / "checkpoint-6")
            fit(loss_fn, [network], data, settings, checkpoints=saved, **how)
            weights[name] = network.weight.detach().clone()
    for name in ("captured", "again", "resumed"):
        torch.testing.assert_close(weights[name], weights["eager"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("log_every", "found"), [(10, 20), (50, 30)])
def test_what_a_graph_cannot_check_is_seen_before_the_next_report_and_checkpoint(
    tmp_path, monkeypatch, log_every, found
):
    """Not finite since step 13; with a report every 10 or 50 steps, and a checkpoint every 30."""
    step = Step.__call__

    def unchecked(self, indices, lr, check):
        return step(self, indices, lr, lambda *_: None)

    monkeypatch.setattr(Step, "__call__", unchecked)
    saved = Checkpoints(tmp_path, every=30)
    with pytest.raises(UserError, match=rf"^line: loss is nan, .* in step {found}, "):
        train(Regression(13), saved, settings=replace(SETTINGS, log_every=log_every))
    assert saved.numbers() == [] and len(losses_of(tmp_path)) == (log_every == 10)


def test_what_is_frozen_is_not_trained(tmp_path):
    stage = nn.Linear(1, 1)
    stage.bias.requires_grad_(False)
    before = stage.bias.item()
    fit(
        *(lambda x: stage(x[:, None]).mean(), [stage], Columns(X), SLOW),
        checkpoints=Checkpoints(tmp_path),
        **{"name": "line", "seed": 0, "machine": Machine()},
    )
    assert stage.bias.item() == before and stage.bias.grad is None


def test_the_seed_of_a_step_is_numpys_seed_sequence():
    seed_step(7, 3)
    assert torch.initial_seed() == np.random.SeedSequence((7, 3)).generate_state(1, np.uint32)[0]


def test_the_order_of_an_epoch_is_numpys_permutation():
    expected = [*np.random.default_rng((5, 0)).permutation(6)]
    expected += [*np.random.default_rng((5, 1)).permutation(6)]
    found = torch.cat([batch_indices(6, 4, seed=5, step=step) for step in range(3)])
    assert found.tolist() == expected


def test_the_rate_is_a_line_and_half_a_cosine():
    def factor(step: int, steps: int, warmup: int) -> float:
        return lr_factor(FitSettings(steps=steps, warmup=warmup), step)

    assert [factor(step, 8, 0) for step in (0, 2, 4, 6)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert [factor(step, 9, 3) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factor(5, 6, 4) == pytest.approx(0.5)
    assert factor(3, 2, 3) == 1  # a warm-up that is longer than the training


def test_the_average_has_no_gradient_and_is_a_copy():
    w = nn.Parameter(torch.ones(3))
    ema = EMA([w], decay=0.9)
    assert ema.shadow[0].data_ptr() != w.data_ptr()
    for step in range(3):
        ema.update(step)
    assert not ema.shadow[0].requires_grad and ema.shadow[0].grad_fn is None
    with torch.no_grad():
        w.mul_(5)
    with ema.applied():
        assert torch.equal(w, torch.ones(3))
    assert torch.equal(w, torch.full((3,), 5.0)) and w.requires_grad
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert torch.equal(w, torch.full((3,), 5.0))
    ema.copy_to_parameters()
    assert torch.equal(w, torch.ones(3)) and w.requires_grad and w.grad_fn is None


def test_checkpoints_are_due_by_the_steps_of_all_trainings(tmp_path):
    saved = Checkpoints(tmp_path, every=25, before=60)
    assert [step for step in range(1, 61) if saved.due(step)] == [15, 40]
    assert (Checkpoints(tmp_path).every, Checkpoints(tmp_path).limit) == (250, 2)


def test_clearing_deletes_every_checkpoint_and_nothing_else(tmp_path):
    for name in ("checkpoint-1", "checkpoint-30", "checkpoint-x", "notes"):
        (tmp_path / name).mkdir()
    assert Checkpoints(tmp_path).numbers() == [1, 30]
    Checkpoints(tmp_path).clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-x", "notes"]


def test_a_checkpoint_of_the_other_training_of_a_run_is_refused(tmp_path):
    """Its steps would fit: the two have the same number of tensors."""
    train(Regression(), Checkpoints(tmp_path, every=30), "first")
    with pytest.raises(UserError, match=r"checkpoint-30: a checkpoint of another training"):
        train(Regression(), Checkpoints(tmp_path, at=30), "second")


# ---------------------------------------------------------------- metrics.jsonl


class Clock:
    """Seconds that pass when told, and by a tick whenever it is read."""

    def __init__(self, monkeypatch, tick: float = 0.0):
        self.now, self.tick = 100.0, tick
        monkeypatch.setattr(log_file.time, "perf_counter", self.read)

    def read(self) -> float:
        self.now += self.tick
        return self.now


class Bar:
    """What the log shows on a bar."""

    def set_postfix(self, refresh, **shown):
        self.shown = {**shown, "refresh": refresh}


def test_the_log_holds_means_rates_speeds_and_seconds(tmp_path, monkeypatch):
    clock, bar = Clock(monkeypatch), Bar()
    log = log_file.Log(tmp_path / "metrics.jsonl", "vae", 2, torch.device("cpu"))
    for step, loss in enumerate((1.0, 4.0, 6.0), 1):
        clock.now += 2
        log.add(torch.tensor(loss, requires_grad=True), torch.tensor(loss + 0.5))
        log.report(bar, step, 0.1 * step, batch_size=8, now=step == 3)
    assert lines_of(tmp_path) == [
        {
            **{"stage": "vae", "step": 2, "loss": 2.5, "lr": 0.2, "grad_norm": 4.5},
            **{"images_per_second": 4.0, "seconds": 4.0},
        },
        {
            **{"stage": "vae", "step": 3, "loss": 6.0, "lr": 0.1 * 3, "grad_norm": 6.5},
            **{"images_per_second": 4.0, "seconds": 6.0},
        },
    ]
    assert bar.shown == {"loss": "6.0000", "images_per_s": "4", "refresh": False}
    assert log.entries == lines_of(tmp_path) and log.pending == 0


def test_the_log_says_how_long_a_checkpoint_took(tmp_path, monkeypatch):
    clock, write = Clock(monkeypatch, tick=1.0), files.write_tensors

    def slow(path, tensors):
        clock.now += 1.23456
        return write(path, tensors)

    monkeypatch.setattr(files, "write_tensors", slow)
    train(Slope(), Checkpoints(tmp_path, every=9), data=Columns(torch.zeros(5)), settings=SLOW)
    saved = [line for line in lines_of(tmp_path) if "checkpoint" in line]
    assert [(line["step"], line["save_seconds"]) for line in saved] == [(9, 2.235), (12, 2.235)]
    kept = files.read_lines(tmp_path / "checkpoint-9" / "metrics.jsonl")[-1]
    assert kept == {k: x for k, x in saved[0].items() if k != "save_seconds"}  # in itself


def test_a_log_goes_on_after_its_step_and_keeps_those_of_other_trainings(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    older = [{"stage": "vae", "step": step, "seconds": 100.0 + step} for step in (5, 9)]
    lines = [{"stage": "base", "step": step, "seconds": 2.0 * step} for step in (3, 6, 7)]
    files.write_lines(tmp_path / "metrics.jsonl", [*older, *lines])
    log = log_file.Log(tmp_path / "metrics.jsonl", "base", 4, torch.device("cpu"))
    log.rewind(6)
    assert log.entries == lines_of(tmp_path) == [*older, *lines[:2]]
    assert log.pending == 2 and len(log.losses) == 4
    clock.now += 1.234
    assert log.entry(step=8) == {"stage": "base", "step": 8, "seconds": 13.23}
    files.write_lines(tmp_path / "metrics.jsonl", [{"step": 3}])
    with pytest.raises(UserError, match=r"metrics\.jsonl: not the log of a run .* delete it"):
        log.rewind(6)


def test_the_seconds_of_each_training_are_those_of_its_last_line(tmp_path):
    entries = [("vae", 1), ("vae", 7.5), ("base", 3)]
    lines = [{"stage": stage, "seconds": seconds} for stage, seconds in entries]
    files.write_lines(tmp_path / "metrics.jsonl", lines)
    assert log_file.seconds_of(tmp_path) == {"vae": 7.5, "base": 3.0}
    assert log_file.seconds_of(tmp_path / "none") == {}


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_log_refuses_a_loss_or_a_gradient_that_is_not_finite(tmp_path, loss, norm):
    log = log_file.Log(tmp_path / "metrics.jsonl", "vae", 2, torch.device("cpu"))
    log.check(torch.tensor(1.0), torch.tensor(2.0), 7, 0.02)
    said = f"vae: loss is {loss}, gradient norm {norm} in step 7, learning rate 2.0e-02"
    with pytest.raises(UserError) as error:
        log.check(torch.tensor(loss), torch.tensor(norm), 7, 0.02)
    assert str(error.value) == f"{said}; lower the learning rate"


def test_a_log_that_cannot_be_written_costs_a_warning(tmp_path, capsys):
    log = log_file.Log(tmp_path / "none" / "metrics.jsonl", "vae", 2, torch.device("cpu"))
    log.write({"step": 1})
    assert log.entries == [{"step": 1}]
    assert capsys.readouterr().err.startswith("warning: writing ")


def test_loss_png_has_a_panel_per_training_with_both_losses(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    rows = [("vae", 1, {"loss": 4.0}), ("vae", 2, {"loss": 2.0}), ("vae", 2, {"checkpoint": "x"})]
    rows += [("base", 1, {"loss": 1.0}), ("base", 3, {"validation_loss": 0.5})]
    lines = [{"stage": stage, "step": step, **values} for stage, step, values in rows]
    files.write_lines(tmp_path / "metrics.jsonl", lines)
    drawn, close, before = [], plt.close, plt.get_fignums()
    monkeypatch.setattr(plt, "close", lambda figure: (drawn.append(figure), close(figure)))
    log_file.plot_losses(tmp_path)
    (figure,) = drawn
    assert plt.get_fignums() == before and (tmp_path / "loss.png").stat().st_size > 1000
    assert figure.axes[0].get_position().y0 == figure.axes[1].get_position().y0  # side by side
    shown = {
        ax.get_title(): {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
        for ax in figure.axes
    }
    assert shown == {
        "vae": {"loss": [[1, 4], [2, 2]]},
        "base": {"loss": [[1, 1]], "validation loss": [[3, 0.5]]},
    }
    for ax in figure.axes:
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "loss", "log")
        assert ax.get_legend() is not None


# ---------------------------------------------------------------- settings


def test_the_bounds_of_every_setting_are_allowed_and_what_is_beyond_is_refused():
    """Every range as its flag says it; whole numbers and shares alike."""
    most = 2**64 - 1
    for kind, name, allowed, refused, said in (
        (DataSettings, "limit", (0, 10**9), (-1, 10**9 + 1), f"between 0 and {10**9}"),
        (DataSettings, "resolution", (32, 4096), (31, 4097), "between 32 and 4096"),
        (FitSettings, "warmup", (0, 10**9), (-1, 10**9 + 1), f"between 0 and {10**9}"),
        (FitSettings, "weight_decay", (0.0, 1e9), (-1e-9, math.inf), f"between 0 and {10**9}"),
        (FitSettings, "ema", (0.0, 0.9999), (-1e-9, 1.0), r"in \[0, 1\)"),
        (RunSettings, "seed", (0, most), (-1, most + 1), f"between 0 and {most}"),
        (BaseSettings, "caption_drop", (0.0, 1.0), (-1e-9, 1.001), "between 0 and 1"),
        (ControlSettings, "caption_drop", (0.0, 1.0), (-1e-9, 1.001), "between 0 and 1"),
        (BaseSettings, "kl_weight", (0.0, 9.0), (-1e-9, math.inf), "at least 0"),
        *(
            (FitSettings, name, (1,), (0, -1), "more than 0")
            for name in ("steps", "batch_size", "log_every", "preview_every")
        ),
        (FitSettings, "steps", (10**9,), (10**9 + 1,), f"between 0 and {10**9}"),
        (FitSettings, "preview_every", (10**9,), (10**9 + 1,), f"between 0 and {10**9}"),
        (FitSettings, "batch_size", (2**16,), (2**16 + 1,), f"between 0 and {2**16}"),
        (FitSettings, "log_every", (2**16,), (2**16 + 1,), f"between 0 and {2**16}"),
        (FitSettings, "lr", (1e-9, 9.0), (0.0, -1.0, math.inf), "more than 0"),
        (FitSettings, "clip", (1e-9, 9.0), (0.0, -1.0, math.inf), "more than 0"),
        (RunSettings, "checkpointing_steps", (1,), (0, -1), "more than 0"),
        (RunSettings, "checkpoints_total_limit", (1,), (0, -1), "more than 0"),
    ):
        for value in allowed:
            assert getattr(kind(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(ValueError, match=rf"^{name} {value}: must be {said}$"):
                kind(**{name: value})


def test_a_number_out_of_range_is_told_by_the_name_of_its_flag():
    for flag, value, said in (
        ("--ema", "1", "--ema 1.0: must be in [0, 1)"),
        ("--vae-fit.clip", "0", "--vae-fit.clip 0.0: must be more than 0"),
        ("--checkpoints-total-limit", "0", "--checkpoints-total-limit 0: must be more than 0"),
        ("--resolution", "31", "--resolution 31: must be between 32 and 4096"),
    ):
        with pytest.raises(UserError) as error:
            parse_with_preset(BASE_PRESETS, ["--preset", "tiny", flag, value])
        assert str(error.value) == said


def test_a_resolution_is_a_multiple_of_all_downsampling():
    """Twice in the autoencoder of two widths, and before every U-Net level but the first."""
    unet = UNetSizes(widths=(16, 32, 32), attention=(False, False, True))
    sizes = {"vae": VAESizes(widths=(8, 16)), "unet": unet}
    for resolution in (32, 40, 72):
        BaseSettings(data=DataSettings(resolution=resolution), **sizes)
    for resolution in (33, 36, 44, 48 + 2):
        with pytest.raises(
            ValueError, match=rf"^resolution {resolution}: must be a multiple of 8$"
        ):
            BaseSettings(data=DataSettings(resolution=resolution), **sizes)


def test_the_defaults_are_those_of_the_papers_and_fit_together():
    """Captions dropped as in [CFG] and [CN, 3.3]; hints through the first widths of [CN]'s encoder."""
    base, control = BaseSettings(), ControlSettings()
    assert (base.caption_drop, control.caption_drop) == (0.1, 0.5)
    assert control.hint_widths == (16, 32, 96) and len(base.vae.widths) == 3
    assert base.kl_weight == 1e-4
    assert base.t_density == control.t_density == "logit-normal"
    assert base.unet.channels == base.vae.latent_channels
    assert base.unet.context_width == base.text.width
    assert base.vae.image_channels == 1 and base.text.vocabulary == 0
    assert base.data == DataSettings("fashion-mnist", None, resolution=32, limit=0)
    assert base.fit == base.vae_fit == control.fit
    assert base.fit == FitSettings(
        **{"steps": 1000, "batch_size": 128, "optimizer": "adamw", "lr": 1e-3, "warmup": 50},
        **{"weight_decay": 0.01, "clip": 1.0, "ema": 0.995, "log_every": 20, "preview_every": 250},
    )
    assert (
        base.run
        == control.run
        == RunSettings(
            **{"device": "auto", "precision": "auto", "threads": 0},
            **{"resume": None},
            **{
                "overwrite": False,
                "checkpointing_steps": 250,
                "checkpoints_total_limit": 2,
                "seed": 0,
            },
        )
    )


def test_captions_are_as_long_as_the_longest_of_the_training_unless_a_length_is_given():
    """In words as the tokenizer counts them, of every caption to draw from."""
    captions = Captions([("a dark coat", "a T-shirt, of two-tone cotton"), ("coat",), ("a coat",)])
    data, tiny = replace(dataset(3), captions=captions), BASE_PRESETS["tiny"]
    for given, length in ((0, 5), (3, 3), (16, 16)):
        ldm = build_base(replace(tiny, text=replace(tiny.text, length=given)), data)
        assert ldm.tokenizer.length == ldm.text.config.length == length
        assert ldm.context(["a coat"]).shape[1] == length
    with pytest.raises(ValueError, match=r"^length -1: must be "):
        TextSizes(length=-1)


def test_settings_are_constants():
    """A part of them is shared by every settings that was not told otherwise."""
    for x in (
        *(DataSettings(), FitSettings(), RunSettings(), BaseSettings(), ControlSettings()),
        *(VAESizes(), TextSizes(), UNetSizes(), Machine()),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(x, next(iter(x.__dataclass_fields__)), None)


# ---------------------------------------------------------------- the machine


def test_glibc_is_told_to_keep_memory_by_the_numbers_of_malloc_h(monkeypatch):
    """M_TRIM_THRESHOLD is -1, M_TOP_PAD -2, M_MMAP_MAX -4."""
    told = []

    class Libc:
        mallopt = staticmethod(lambda option, value: told.append((option, value)))

    monkeypatch.setattr(machine_file.ctypes, "CDLL", lambda name: Libc)
    with process("cpu"):
        assert sorted(told) == [(-4, 0), (-2, 2**26), (-1, 2**31 - 1)]
    monkeypatch.setattr(machine_file, "LINUX", False)
    with process("cpu"):
        assert len(told) == 3


def test_a_libc_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(machine_file.ctypes, "CDLL", lambda name: object())
    with process("cpu") as machine:
        assert machine.device == torch.device("cpu")


def test_a_process_computes_as_it_is_told():
    with process("cpu", "bf16") as machine:
        assert machine.dtype == torch.bfloat16
        with machine.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with process("cpu", "fp32") as machine, machine.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert not Machine().stop.held


def test_a_gpu_multiplies_in_tf32_and_a_cpu_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    with process("cpu"):
        assert told == []
    monkeypatch.setattr(machine_file, "pick_device", torch.device)
    with process("cuda", "fp32") as machine:
        assert told == ["high"] and machine.device.type == "cuda"


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    tried = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda n, device: (tried.append(device), torch.zeros(n))[1])
    assert pick_device("auto") == torch.device("cuda") and tried == [torch.device("cuda")]


def test_bf16_is_picked_on_a_cpu_where_it_is_native_and_where_it_is_wanted(monkeypatch):
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    for native in (False, True):
        auto = torch.bfloat16 if native else torch.float32
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda x=native: x, False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        assert pick_precision("auto", cpu) == auto
        assert [pick_precision("auto", x) for x in (cuda, mps)] == [torch.float32] * 2
        assert {pick_precision("bf16", x) for x in (cpu, cuda, mps)} == {torch.bfloat16}
        assert {pick_precision("fp32", x) for x in (cpu, cuda, mps)} == {torch.float32}


def test_threads_are_as_many_as_cores_that_nothing_else_keeps_busy(monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for idle, threads in ((2.0, 2), (1.3, 2), (1.0, 1), (0.2, 1)):
        monkeypatch.setattr(machine_file, "idle_cores", lambda seconds=0.5, idle=idle: idle)
        assert pick_threads(0) == threads
        said = "" if threads == 2 else "note: other work is running: 1 of 2 threads\n"
        assert capsys.readouterr().err == said
        assert pick_threads(5) == 5


def test_a_moments_work_takes_no_thread_away(monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(
        machine_file, "idle_cores", lambda seconds=0.5: {0.5: 0.4, 1.5: 1.9}[seconds]
    )
    assert pick_threads(0) == 2 and capsys.readouterr().err == ""


def test_a_run_keeps_the_threads_that_it_was_begun_with_if_there_are_so_many(monkeypatch, capsys):
    told: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(machine_file.os, "cpu_count", lambda: 2)
    for begun in (1, 3, 2):
        keep_threads(begun)
    assert (
        told == [2] and capsys.readouterr().err == "note: 2 threads, as this run was begun with\n"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    keep_threads(2)
    assert told == [2]


def test_nothing_is_measured_where_the_number_of_threads_is_given(monkeypatch):
    monkeypatch.setattr(machine_file, "idle_cores", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert [pick_threads(n) for n in (0, 1, 7)] == [1, 1, 7]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert [pick_threads(n) for n in (0, 1, 7)] == [4, 1, 7]


def test_a_process_on_a_cpu_sets_its_threads(monkeypatch):
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    before = torch.get_num_threads()
    with process("cpu", threads=3):
        assert told == [3]
    assert told == [3, before]  # as they were
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)
    monkeypatch.setattr(machine_file, "pick_device", torch.device)
    with process("cuda", "fp32", threads=4):
        assert told == [3, before]


def test_a_gpu_that_is_named_is_the_current_one(monkeypatch):
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(machine_file, "pick_device", torch.device)
    for name in ("cuda", "cuda:1"):
        with process(name, "fp32"):
            pass
    assert chosen == [torch.device("cuda:1")]


def test_idle_cores_are_those_of_what_linux_counted_in_the_meantime(tmp_path, monkeypatch):
    """user nice system idle iowait irq softirq steal, of each core that this process may use; guests are in
    user already."""
    stat = tmp_path / "stat"
    other = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu1 9 9 9 9 9 9 9 9 9 9\n"
    stat.write_text(other + "cpu0 90 0 50 290 10 1 1 1 70 70\ncpu2 10 0 0 10 0 0 0 0 0 0\nintr 5\n")
    after = "cpu0 100 5 60 320 20 2 2 3 99 99\ncpu2 20 0 0 30 0 0 0 0 0 0\nintr 6\n"
    monkeypatch.setattr(machine_file, "Path", lambda name: stat)
    monkeypatch.setattr(machine_file.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(machine_file.os, "sched_getaffinity", lambda pid: {0, 2})
    monkeypatch.setattr(machine_file.time, "sleep", lambda seconds: stat.write_text(other + after))
    assert idle_cores() == pytest.approx(2 * (50 + 10) / 99)
    for content in ("", other, "cpu0 a b\n", "cpu0 0 0 0 0 0 0 0 0\n"):  # as sandboxes have it
        stat.write_text(content)
        monkeypatch.setattr(machine_file.time, "sleep", lambda seconds: None)
        assert idle_cores() == 2
    stat.unlink()
    assert idle_cores() == 2
    monkeypatch.delattr(machine_file.os, "sched_getaffinity")
    assert idle_cores() == 3


def test_batches_go_to_the_device_whole(monkeypatch):
    x, y = torch.ones(2), torch.zeros(3)
    assert Machine().load((x, y))[1] is y
    moves = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moves.append(device) or self)
    loaded = Machine(torch.device("cuda")).load((x, y))
    assert loaded[0] is x and loaded[1] is y and moves == [torch.device("cuda")] * 2


def test_whole_steps_are_graphs_on_a_gpu_unless_they_may_not_be(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert Machine(cuda).graphs and not Machine(cpu).graphs
    assert not Machine(cuda, capture=False).graphs
    rate = Machine(cpu).number(0.5)
    assert isinstance(rate, float) and rate == 0.5
    monkeypatch.setattr(Machine, "graphs", True)
    rate = Machine(cpu).number(0.5)
    assert torch.equal(rate, torch.tensor(0.5)) and rate.device == cpu


def test_networks_are_placed_in_channels_last():
    conv = nn.Conv2d(3, 4, 3)
    Machine().place(conv)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_signal_is_noted_with_its_number_and_held_only_where_asked():
    with process("cpu") as machine:
        with machine.stop.hold():
            assert machine.stop.held
        assert not machine.stop.held
        machine.stop.check("nothing came")
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopped.value.number == machine.stop.received == signal.SIGINT
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == [
            signal.SIG_DFL
        ] * 2


# ---------------------------------------------------------------- computed once, and previews


def test_latents_are_those_of_the_images_and_have_no_gradient(ldm, monkeypatch):
    images = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8)
    z = caches.encode_all(ldm.vae.requires_grad_(True), images)
    assert not z.requires_grad and z.shape == (6, *ldm.latent_shape)
    torch.testing.assert_close(z, ldm.vae.encode(to_float(images)).detach())
    seen = []

    def condition(images):
        seen.append(len(images))
        return images > 100

    images = torch.randint(0, 256, (1200, 1, 2, 2), dtype=torch.uint8)
    assert torch.equal(caches.hints_of(condition, images), images > 100)
    assert sum(seen) == 1200 and len(seen) > 1  # in parts, each in memory


def test_latents_that_a_base_kept_are_taken_and_else_computed(tmp_path, ldm, monkeypatch):
    images = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    monkeypatch.setattr(caches, "encode_all", lambda vae, x: (vae, x))
    assert caches.cached_latents(tmp_path, ldm, images) == (ldm.vae, images)
    kept = torch.randn(3, *ldm.latent_shape)
    name = "latents.safetensors"
    seal(tmp_path, {name: files.write_tensors(tmp_path / name, {"z": kept})})
    assert torch.equal(caches.cached_latents(tmp_path, ldm, images), kept)
    with pytest.raises(UserError, match=r"latents\.safetensors: .*, or delete this file$"):
        caches.cached_latents(tmp_path, ldm, images[:2])


def dataset(n: int) -> Dataset:
    """n images of three classes, the last of which has none; the first is of the second class."""
    classes = torch.tensor([1, *[0] * (n - 1)])
    return Dataset(
        images=torch.randint(0, 256, (n, 1, 32, 32), dtype=torch.uint8),
        captions=Captions([(f"full {i}", "short") for i in range(n)]),
        labels={"class": classes},
        names={"class": ("coat", "ankle boot", "bag")},
        held_out=torch.zeros(n, dtype=torch.bool),
    )


def test_the_first_image_of_each_class_is_an_example_hint(tmp_path):
    data = dataset(3)
    paths = previews.save_examples(tmp_path / "hints", data)
    assert [path.name for path in paths] == ["coat.png", "ankle-boot.png"]
    for path, index in zip(paths, (1, 0), strict=True):
        assert np.array_equal(cv2.imread(str(path), 0), data.images[index, 0].numpy())


def test_where_there_are_no_classes_the_first_images_are_example_hints(tmp_path):
    data = replace(dataset(3), names={"class": ("picture",)})
    paths = previews.save_examples(tmp_path / "hints", data)
    assert [path.name for path in paths] == ["picture-1.png", "picture-2.png", "picture-3.png"]
    for path, image in zip(paths, data.images, strict=True):
        assert np.array_equal(cv2.imread(str(path), 0), image[0].numpy())


def grids(monkeypatch) -> list:
    """What previews draw: path and rows."""
    drawn = []
    monkeypatch.setattr(previews, "save_grid", lambda path, rows: drawn.append((path, rows)))
    return drawn


def test_the_loss_of_256_validation_images_is_followed_and_8_of_them_are_decoded(
    tmp_path, ldm, monkeypatch
):
    data, drawn = dataset(300), grids(monkeypatch)
    watch = previews.watch_vae(ldm.requires_grad_(True), data, tmp_path)
    (images,) = watch["validation"]
    assert torch.equal(images, data.images[:256])
    watch["preview"](12)
    ((path, ((first, given), (second, made))),) = drawn
    assert path == tmp_path / "previews" / "vae-000012.png"
    assert (first, second) == ("validation images", "decoded latents")
    x = to_float(data.images[:8])
    assert torch.equal(torch.stack(given), x)
    torch.testing.assert_close(torch.stack(made), ldm.vae.decode(ldm.vae.encode(x)).detach())
    assert not made[0].requires_grad


@pytest.mark.parametrize("controlled", [False, True])
def test_a_preview_has_4_samples_of_each_of_8_validation_prompts(
    tmp_path, ldm, monkeypatch, controlled
):
    """With a control, hint i stands before its samples, and all of them are made under it."""
    data, drawn, calls = dataset(300), grids(monkeypatch), []
    z = torch.randn(32, *ldm.latent_shape)
    ldm.tokenizer = Tokenizer.from_captions(data.captions.all(), 5)

    def made(*args, **kwargs):
        calls.append((args, kwargs))
        return iter([z + 1, z])

    monkeypatch.setattr(previews, "generate", made)
    monkeypatch.setattr(previews, "encode_all", lambda vae, images: images.float())
    hint = torch.rand(256, 1, 32, 32) < 0.5
    control = Control("a network", hint) if controlled else None
    watch = previews.watch_samples(ldm, data, tmp_path, "stage", control)
    z_0, *hints, tokens = watch["validation"]
    assert torch.equal(z_0, data.images[:256].float())
    assert torch.equal(tokens, ldm.tokenizer.encode([f"full {i}" for i in range(256)]))
    assert len(tokens.unique(dim=0)) == 256
    assert [x is hint for x in hints] == [True] * controlled
    watch["preview"](345)
    (((model, prompts), options),) = calls
    assert model is ldm and prompts == [f"full {i}" for i in range(8) for _ in range(4)]
    assert options.pop("steps") == 10
    ((path, rows),) = drawn
    assert path == tmp_path / "previews" / "stage-000345.png"
    assert [label for label, _ in rows] == [f"full {i}" for i in range(8)]
    x = ldm.vae.decode(z)
    for i, (_, row) in enumerate(rows):
        assert torch.equal(torch.stack(row[controlled:]), x[4 * i : 4 * i + 4])
        assert not controlled or torch.equal(row[0] > 0, hint[i])
    if controlled:
        (given,) = options["controls"]
        assert given.controlnet == "a network"
        assert torch.equal(given.hint, hint[torch.arange(32) // 4])
    else:
        assert options == {"controls": []}


def test_a_preview_that_fails_costs_a_warning(tmp_path, ldm, monkeypatch, capsys):
    monkeypatch.setattr(previews, "save_grid", None)
    previews.preview_vae(ldm, dataset(2).images, tmp_path, 1)
    previews.preview_samples(ldm, [], tmp_path, "base", 1)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: a preview of the autoencoder failed (TypeError")
    assert second.startswith("warning: a preview of samples failed (")


# ---------------------------------------------------------------- the two scripts


class Script:
    """What a training script passes on: `fit` is called, computes one loss, and trains nothing."""

    def __init__(self, monkeypatch, script):
        self.fits, self.losses, self.dropped, self.shares = [], [], ["dropped"], []
        self.placed: list = []
        monkeypatch.setattr(script, "fit", self.fit)
        monkeypatch.setattr(script, "drop_captions", self.drop)
        monkeypatch.setattr(
            LatentDiffusion, "loss", lambda ldm, *args, **more: self.lose(args, more)
        )
        monkeypatch.setattr(Machine, "place", lambda machine, *x: self.placed.append(x))

    def fit(self, loss_fn, networks, data, settings, **more):
        trained = [any(p.requires_grad for p in network.parameters()) for network in networks]
        self.fits.append({"networks": networks, "data": data, "settings": settings, **more})
        self.fits[-1]["trained"] = trained
        loss_fn(*data[torch.arange(2)])

    def drop(self, tokens, share):
        self.shares.append(share)
        return self.dropped

    def lose(self, args, more):
        self.losses.append((args, more))


VAE_FIT, OTHER_FIT = (replace(BASE_PRESETS["tiny"].fit, steps=n) for n in (3, 4))
RUN = RunSettings(seed=5, device="cpu", precision="fp32", checkpointing_steps=7)


def base_of(out: Path, **more) -> BaseSettings:
    chosen = {"run": RUN, "vae_fit": VAE_FIT, "fit": OTHER_FIT, "caption_drop": 0.3}
    tiny = replace(BASE_PRESETS["tiny"], out=out, kl_weight=0.25, t_density="uniform")
    return replace(tiny, **{**chosen, **more})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base that was saved and not trained."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_base, "fit", lambda *args, **more: None)
        train_base.main(base_of(folder))
    return folder


def assert_tokens_of(ldm: LatentDiffusion, data: Dataset, tokens: Tokens) -> None:
    """Are these the tokens of the captions of the data?"""
    expected = vars(Tokens.of(data.captions, ldm.tokenizer.encode))
    assert all(torch.equal(x, expected[name]) for name, x in vars(tokens).items())


def test_train_base_passes_every_setting_on(tmp_path, monkeypatch, capsys):
    script, reconstructed, saved, out = Script(monkeypatch, train_base), [], [], tmp_path / "base"
    monkeypatch.setattr(train_base, "vae_loss", lambda *args: reconstructed.append(args))
    monkeypatch.setattr(train_base, "save_base", lambda *args: saved.append(args))
    train_base.main(base_of(out))
    (data,) = run_folder.load_data(BASE_PRESETS["tiny"].data, "train")
    first, second = script.fits
    ((folder, ldm, latents),) = saved
    assert folder == out
    assert first["networks"] == [ldm.vae] and second["networks"] == [ldm.text, ldm.unet]
    assert (first["settings"], second["settings"]) == (VAE_FIT, OTHER_FIT)
    assert (first["name"], second["name"]) == ("vae", "base")
    assert first["trained"] == [True] and second["trained"] == [True, True]
    assert not any(p.requires_grad for p in ldm.vae.parameters())
    for part in script.fits:
        assert part["seed"] == 5 and part["machine"].device == torch.device("cpu")
        assert (part["checkpoints"].folder, part["checkpoints"].every) == (out, 7)
    assert torch.equal(first["data"].columns[0], data.images)
    ((vae, x, kl_weight),) = reconstructed
    assert vae is ldm.vae and torch.equal(x, to_float(data.images[:2])) and kl_weight == 0.25
    assert latents.std().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(second["data"].columns[0], latents)
    assert_tokens_of(ldm, data, second["data"].columns[1])
    (((z_0, tokens), more),) = script.losses
    assert torch.equal(z_0, latents[:2]) and tokens is script.dropped and script.shares == [0.3]
    assert more == {"density": "uniform"}
    (images,) = first["validation"]
    z, tokens = second["validation"]
    assert images.dtype == torch.uint8 and len(images) == len(z) == len(tokens) == 64
    assert [part["preview"].func for part in script.fits] == [
        previews.preview_vae,
        previews.preview_samples,
    ]
    assert script.placed == [(ldm,)]
    said = capsys.readouterr().out
    assert said == f"{out}: done. Next:\n    python train_control.py --base {out}\n"


def test_train_control_passes_every_setting_on(tmp_path, base, monkeypatch, capsys):
    script, out = Script(monkeypatch, train_control), tmp_path / "control"
    settings = ControlSettings(
        **{"base": base, "out": out, "run": RUN, "fit": VAE_FIT, "caption_drop": 0.7},
        **{"condition": "silhouette", "hint_widths": (4, 12), "t_density": "uniform"},
    )
    train_control.main(settings)
    data, validation = run_folder.load_data(BASE_PRESETS["tiny"].data, "train", "validation")
    (part,) = script.fits
    ((ldm, controlnet),) = script.placed
    assert part["networks"] == [controlnet] and controlnet.config.hint_widths == (4, 12)
    assert part["settings"] == VAE_FIT and part["name"] == "control" and part["seed"] == 5
    assert (part["checkpoints"].folder, part["checkpoints"].every) == (out, 7)
    assert part["machine"].device == torch.device("cpu")
    hints = silhouette(data.images)
    z_0 = files.read_tensors(base / "latents.safetensors", "")["z"]
    assert torch.equal(part["data"].columns[0], z_0) and torch.equal(part["data"].columns[1], hints)
    assert_tokens_of(ldm, data, part["data"].columns[2])
    (((z, tokens, (control,), density), more),) = script.losses
    assert torch.equal(z, z_0[:2]) and tokens is script.dropped and script.shares == [0.7]
    assert control.controlnet is controlnet and torch.equal(control.hint, hints[:2])
    assert control.weight == 1 and density == "uniform" and more == {}
    assert torch.equal(part["validation"][1], silhouette(validation.images))
    assert part["preview"].keywords["control"].controlnet is controlnet
    assert not any(p.requires_grad for p in ldm.parameters())
    torch.manual_seed(5)
    fresh = ControlNet(ldm.unet, ControlNetConfig(hint_widths=(4, 12)))
    for x, y in zip(controlnet.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(x, y)
    assert json.loads((out / "config.json").read_text())["condition"] == "silhouette"
    first = validation.names["class"][0].replace(" ", "-")
    flags = f"--base {base} --control {out} --hint {out}/hints/{first}.png"
    prompt = validation.captions.full()[0]
    said = f'{out}: done. Next:\n    python -m tinyldm.sample {flags} --prompt "{prompt}"\n'
    assert capsys.readouterr().out == said


def test_a_folder_in_use_is_refused_before_any_work(tmp_path, base, monkeypatch):
    (tmp_path / "notes").write_text("mine")
    monkeypatch.setattr(train_base, "load_data", None)
    with pytest.raises(UserError, match="a folder with other content"):
        train_base.main(base_of(tmp_path))
    monkeypatch.setattr(train_control, "load_run", None)
    with pytest.raises(UserError, match="a folder with other content"):
        train_control.main(ControlSettings(base=base, out=tmp_path, run=RUN))


def test_hint_widths_that_do_not_fit_the_base_are_refused_before_any_work(tmp_path, base):
    settings = ControlSettings(base=base, out=tmp_path / "x", run=RUN, hint_widths=(4, 8, 16))
    with pytest.raises(UserError) as error:
        train_control.main(settings)
    said = "--hint-widths (4, 8, 16): give 2, as many as the autoencoder has"
    assert str(error.value) == said and not (tmp_path / "x").exists()


# ---------------------------------------------------------------- run folders


def sealed_run(folder: Path, **facts) -> Path:
    """A run that was finished, without networks."""
    files.write_json(folder / "settings.json", {"preset": "", "run": {}, "fit": {}, **facts})
    seal(folder, {})
    return folder


def refused(function, *args) -> str:
    """The line that a user reads."""
    with pytest.raises(UserError) as error:
        function(*args)
    return str(error.value)


def test_a_new_run_is_described_and_held_while_it_is_trained(tmp_path):
    out = tmp_path / "deep" / "base"
    settings = base_of(out)
    with run_folder.open_run(settings, Machine(dtype=torch.bfloat16)) as saved:
        content = json.loads((out / "settings.json").read_text())
        picked = {"precision": "bf16", "threads": torch.get_num_threads()}
        assert content["run"] == {**asdict(RUN), **picked}
        assert content["caption_drop"] == 0.3 and content["out"] == str(out)
        assert saved == Checkpoints(out, 7, 2, 0, run_folder.fingerprint(content))
        said = (
            f"--out {out}: another training is writing there; wait for it, or name another folder"
        )
        assert refused(run_folder.held(out).__enter__).startswith(
            f"{said} (process {os.getpid()} on"
        )
    with run_folder.held(out):
        assert [path.name for path in out.iterdir()] == ["settings.json"]


def test_a_resumed_run_goes_on_with_as_many_threads_as_it_was_begun_with(tmp_path, monkeypatch):
    """Unless others are wanted: the number decides in which order sums are rounded."""
    told, out = [], tmp_path / "base"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine_file.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with run_folder.open_run(base_of(out), Machine()):
        assert told == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert run_folder.threads_of(out) == 3
    for threads, then in ((1, []), (0, [3])):
        run = replace(RUN, resume=Path("latest"), threads=threads)
        with run_folder.open_run(base_of(out, run=run), Machine()):
            assert told == then
    settings = json.loads((out / "settings.json").read_text())
    for wrong in ({}, {"threads": -1}, {"threads": "many"}):
        files.write_json(out / "settings.json", {**settings, "run": wrong})
        assert refused(run_folder.threads_of, out).endswith("give --threads")


def test_leftovers_of_writers_that_were_killed_go_when_the_folder_is_held(tmp_path):
    out = tmp_path / "base"
    name = ".12345678.tmp"
    left = [tmp_path / f".base{name}", out / f".x{name}", out / "deep" / f".y{name}"]
    kept = [tmp_path / f".base.png{name}", out / f"x{name}", tmp_path / ".base.1.tmp"]
    for path in (*left, *kept):
        path.mkdir(parents=True)
    with run_folder.held(out):
        assert [path.exists() for path in (*left, *kept)] == [False] * 3 + [True] * 3


def test_who_may_make_a_run_where(tmp_path):
    """A file, somebody's folder, a run, and the run that is being replaced."""
    new, mine, run = tmp_path / "new", tmp_path / "mine", tmp_path / "run"
    (tmp_path / "file").write_text("")
    files.write_json(mine / "settings.json", {"preset": 1})
    sealed_run(run)
    (tmp_path / "empty").mkdir()
    files.write(tmp_path / "swept" / ".a.0a1b2c3d.tmp", b"")
    sealed_run(tmp_path / "x.old")
    check = run_folder.check_room
    for out in (new, new / "deep" / "er", tmp_path / "empty", tmp_path / "swept"):
        check(out, False)
    check(run, True)
    said = {name: f"--out {tmp_path / name}: " for name in ("file", "mine", "run", "x")}
    for overwrite in (False, True):
        assert (
            refused(check, tmp_path / "file", overwrite) == said["file"] + "is no folder; name one"
        )
        other = "a folder with other content; name a new one"
        assert refused(check, mine, overwrite) == said["mine"] + other
        way = f"{tmp_path}/x.old is in the way; move it to {tmp_path}/x or elsewhere"
        assert refused(check, tmp_path / "x", overwrite) == said["x"] + way
    remedy = "holds a run already; give --resume latest, --overwrite or another folder"
    assert refused(check, run, False) == said["run"] + remedy


def test_a_control_never_stands_where_its_base_is_or_above_it(tmp_path, base):
    for out in (base, base.parent, base.parent.parent):
        settings = ControlSettings(base=base, out=out, run=replace(RUN, overwrite=True))
        said = f"--out {out}: holds the base {base}; name another folder"
        assert refused(run_folder.check_out, settings, Machine()) == said
    settings = ControlSettings(base=base, out=base / "control", run=RUN)
    assert run_folder.check_out(settings, Machine()) is None
    described = run_folder.described(settings, Machine())
    assert described["base_sha256"] == base_checksum(base)


@pytest.mark.parametrize("error", [KeyError, UserError, Stopped(15)])
@pytest.mark.parametrize("saved", [False, True])
def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_old_one(tmp_path, error, saved):
    """But a signal, or a checkpoint, keeps what was begun, and the old one beside it."""
    out, old = tmp_path / "base", sealed_run(tmp_path / "base", mark="old")
    settings = base_of(out, run=replace(RUN, overwrite=True))
    with (
        pytest.raises((KeyError, UserError, Stopped)),
        run_folder.open_run(settings, Machine()) as found,
    ):
        assert not is_sealed(out) and is_sealed(tmp_path / "base.old")
        if saved:
            found.path(7).mkdir()
        raise error
    kept = saved or isinstance(error, Stopped)
    assert is_sealed(old) != kept and is_sealed(tmp_path / "base.old") == kept
    assert (out / "checkpoint-7").exists() == saved


def test_a_run_notes_what_it_replaces_and_only_that_is_deleted_in_the_end(tmp_path):
    """An unfinished run is put aside like a finished one; one in which nothing was trained is not."""
    out, old = tmp_path / "base", tmp_path / "base.old"
    settings = base_of(out, run=replace(RUN, overwrite=True))
    files.write_json(out / "settings.json", {"preset": "", "run": {}, "fit": {}, "mark": 1})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), run_folder.open_run(settings, Machine()):
            assert json.loads((old / "settings.json").read_text())["mark"] == 1
            noted = json.loads((out / "replacing.json").read_text())
            assert noted == files.sha256(old / "settings.json")
            raise KeyboardInterrupt
    seal(out, {})
    files.write_json(out / "settings.json", {"preset": "", "run": {}, "fit": {}, "mark": 2})
    with pytest.raises(ValueError, match="fails"), run_folder.open_run(settings, Machine()):
        assert json.loads((old / "settings.json").read_text())["mark"] == 2
        raise ValueError("fails")
    assert json.loads((out / "settings.json").read_text())["mark"] == 2
    assert not old.exists() and not (out / "replacing.json").exists()


def test_a_finished_run_drops_what_it_needs_no_more_and_draws_its_losses(tmp_path, monkeypatch):
    out, drawn = tmp_path / "base", []
    monkeypatch.setattr(run_folder, "plot_losses", drawn.append)
    sealed_run(out)
    settings = base_of(out, run=replace(RUN, overwrite=True))
    with run_folder.open_run(settings, Machine()) as saved:
        saved.path(7).mkdir()
    assert saved.numbers() == [7] and (tmp_path / "base.old").exists() and drawn == []
    resumed = base_of(out, run=replace(RUN, resume=saved.path(7)))
    assert refused(run_folder.check_out, resumed, Machine()).startswith(f"{saved.path(7)}/manifest")
    resumed = base_of(out, run=replace(RUN, resume=Path("latest")))
    seal(out, {})
    with pytest.raises(Finished, match=rf"^{out}: finished already$"):
        run_folder.check_out(resumed, Machine())
    assert saved.numbers() == [] and not (tmp_path / "base.old").exists() and drawn == [out]


def test_losses_that_cannot_be_drawn_cost_a_finished_run_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "plot_losses", None)
    run_folder.complete(sealed_run(tmp_path))
    assert capsys.readouterr().err.startswith(f"warning: drawing {tmp_path}/loss.png failed")


def test_only_what_does_not_change_a_run_may_differ_when_it_is_resumed(tmp_path):
    settings = {"a": {"b": 1, "seed": 2, "device": "x"}, "out": 3, "kl_weight": 4}
    assert run_folder.flat(settings) == {"a.b": 1, "a.seed": 2, "kl_weight": 4}
    free = {"a": {"b": 1, "seed": 2, "device": "y"}, "preset": 5, "kl_weight": 4}
    assert run_folder.fingerprint(free) == run_folder.fingerprint(settings)
    assert run_folder.fingerprint({}) != run_folder.fingerprint(settings)
    check, latest = run_folder.check_resumable, Path("latest")
    assert refused(check, tmp_path, latest, free).startswith(f"{tmp_path}/settings.json: cannot be")
    files.write_json(tmp_path / "settings.json", settings)
    assert check(tmp_path, latest, free) == 0
    other = {"a": {"b": 1, "seed": 9}, "more": 6, "kl_weight": 4}
    changed = "a.seed: 2 then, 9 now; more: None then, 6 now"
    said = f"--resume: {tmp_path} holds a run with other settings ({changed}); give the same, or "
    assert refused(check, tmp_path, latest, other) == said + "start over with --overwrite"
    files.write_json(tmp_path / "settings.json", [])
    assert "not the settings of a run" in refused(check, tmp_path, latest, free)


def test_the_newest_checkpoint_or_a_named_one_is_resumed_and_lost_ones_are_told(tmp_path, capsys):
    saved = Checkpoints(tmp_path, every=30)
    train(Regression(), saved)
    assert run_folder.latest(saved) == 60
    assert run_folder.named(saved, tmp_path / "x" / ".." / "checkpoint-30") == 30
    known = ", ".join(["latest", *(f"{tmp_path}/checkpoint-{n}" for n in (30, 60))])
    said = f"--resume nowhere: no checkpoint of {tmp_path}; it has {known}"
    assert refused(run_folder.named, saved, Path("nowhere")) == said
    flip(tmp_path / "checkpoint-60" / "state.safetensors")
    assert refused(run_folder.named, saved, tmp_path / "checkpoint-60").endswith("--overwrite")
    assert run_folder.latest(saved) == 30
    flip(tmp_path / "checkpoint-30" / "state.safetensors")
    lost = f"--resume latest: {tmp_path} has lost its checkpoints; "
    assert refused(run_folder.latest, saved).startswith(lost)
    saved.clear()  # the log still knows of them
    assert refused(run_folder.latest, saved).startswith(lost)
    (tmp_path / "metrics.jsonl").unlink()
    assert run_folder.latest(saved) == 0


def test_a_base_names_its_data_and_a_folder_of_them_that_has_gone_is_left_open(
    tmp_path, base, monkeypatch
):
    assert run_folder.data_settings(base) == BASE_PRESETS["tiny"].data
    assert run_folder.dataset_of(base) == "shapes"
    ldm, (images, test) = run_folder.load_run(base, "train", "test")
    assert (len(images), len(test)) == (64, 64) and ldm.resolution == 32
    shutil.copytree(base, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    chosen = base_of(Path("base"), data=DataSettings("shapes", Path("data")))
    described = run_folder.described(chosen, Machine())
    assert described["data"]["data_dir"] == str(tmp_path / "data")
    files.write_json(tmp_path / "base" / "settings.json", described)
    seal_run(tmp_path / "base", Sealed(base, "").manifest.sha256)
    assert run_folder.data_settings(tmp_path / "base").data_dir is None
    (tmp_path / "data").mkdir()
    assert run_folder.data_settings(tmp_path / "base").data_dir == tmp_path / "data"
