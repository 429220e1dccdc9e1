"""`fit`: data order, schedules, the average of the weights, and that a run is a function of its seed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from tinyldm.data.dataset import Columns, drop_captions
from tinyldm.support import files
from tinyldm.support.command_line import run_command
from tinyldm.support.errors import Stopped, UserError
from tinyldm.support.sealed import seal
from tinyldm.training.checkpoint import Checkpoints
from tinyldm.training.ema import EMA
from tinyldm.training.fit import batch_indices, fit, lr_factor, seed_step
from tinyldm.training.machine import Machine, pick_device, process
from tinyldm.training.settings import FitSettings


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


def test_a_signal_while_the_first_step_compiles_stops_at_once(tmp_path):
    """Nothing is lost by it, and compiling takes minutes."""
    stage, step = Signalled(), 22
    stage.steps = step
    with pytest.raises(Stopped), process("cpu") as machine:
        train(stage, tmp_path, machine=replace(machine, compile=True))
    assert stage.steps == step  # the step was not finished
    assert Checkpoints(tmp_path).numbers() == []


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
        UserError, match=r"line: loss is nan.* in step 15, learning rate .*lower --lr"
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
    factors = [lr_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert all(a > b for a, b in pairwise(factors[10:])) and factors[-1] < 0.001


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
    captions = ["word"] * 10_000
    torch.manual_seed(0)
    assert abs(drop_captions(captions, 0.3).count("") - 3000) < 150
    assert drop_captions(captions, 0.0) == captions
    assert set(drop_captions(captions, 1.0)) == {""}


def test_an_unknown_device_is_a_clear_error():
    with pytest.raises(UserError, match="abacus"):
        pick_device("abacus")
