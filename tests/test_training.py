"""`fit`: data order, schedules, the average of the weights, and that a run is a function of its seed."""

import json
import os
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from tinyldm.config import FitConfig, RunConfig
from tinyldm.dataset import Columns
from tinyldm.errors import UserError
from tinyldm.stages import drop_captions
from tinyldm.training import EMA, batch_indices, fit, lr_factor, pick_device, seed_step


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
CONFIG = FitConfig(steps=60, batch_size=8, lr=0.5, warmup=5, ema=0.9, weight_decay=0.0, log_every=10, preview_every=30)


def test_fit_learns_logs_and_previews(tmp_path):
    stage, previews = Regression(), []
    fit(stage, DATA, CONFIG, RunConfig(), tmp_path, "line", (X, 3 * X), previews.append)
    assert abs(stage.w.item() - 3) < 0.15
    assert previews == [30, 60]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [10, 20, 30, 40, 50, 60] and losses[60] < losses[10] / 10
    assert [line["step"] for line in lines if "validation_loss" in line] == [30, 60]


class Stopped(Regression):
    """Sends its own process a signal in its 23rd step."""

    def forward(self, x, y):
        if self.steps == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x, y)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    whole, first, second = Regression(), Stopped(), Regression()
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    fit(whole, DATA, CONFIG, RunConfig(), tmp_path / "whole", "line")
    with pytest.raises(SystemExit) as exit:
        fit(first, DATA, CONFIG, RunConfig(), tmp_path / "parts", "line")
    assert exit.value.code == 128 + signal.SIGTERM and first.steps == 23  # the step was finished
    fit(second, DATA, CONFIG, RunConfig(), tmp_path / "parts", "line")
    assert second.steps == 60 - 23
    assert torch.equal(whole.w, second.w)
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    fit(third := Regression(), DATA, CONFIG, RunConfig(), tmp_path / "parts", "line")
    assert third.steps == 0 and torch.equal(third.w, whole.w)  # a finished training is not trained again


class Convolution(nn.Module):
    """A weight that `fit` lays out channels_last, with as many channels in as out of order to notice a mix-up."""

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
    config = replace(CONFIG, steps=20, preview_every=10, optimizer=optimizer)

    def die(step):
        if step == 10:
            raise InterruptedError

    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    fit(whole := Convolution(), data, config, RunConfig(), tmp_path / "whole", "conv")
    with pytest.raises(InterruptedError):
        fit(Convolution(), data, config, RunConfig(), tmp_path / "parts", "conv", preview=die)
    fit(second := Convolution(), data, config, RunConfig(), tmp_path / "parts", "conv")
    assert second.steps == 10
    assert torch.equal(whole.conv.weight, second.conv.weight)


def test_a_signal_in_the_last_preview_still_ends_the_process(tmp_path):
    with pytest.raises(SystemExit):
        fit(
            Regression(),
            DATA,
            CONFIG,
            RunConfig(),
            tmp_path,
            "line",
            preview=lambda s: os.kill(os.getpid(), signal.SIGTERM),
        )
    with pytest.raises(SystemExit):
        last = replace(CONFIG, preview_every=1000)
        fit(
            Regression(), DATA, last, RunConfig(), tmp_path, "l", preview=lambda s: os.kill(os.getpid(), signal.SIGTERM)
        )


def test_a_torn_line_of_the_log_does_not_stop_a_resumed_run(tmp_path):
    fit(Regression(), DATA, CONFIG, RunConfig(), tmp_path, "line")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "line", "st')
    fit(Regression(), DATA, CONFIG, RunConfig(), tmp_path, "line")
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_damaged_checkpoint_is_a_clear_error(tmp_path):
    fit(Regression(), DATA, CONFIG, RunConfig(), tmp_path, "line")
    path = tmp_path / "line.checkpoint"
    for content in (b"", path.read_bytes()[:-3]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"line\.checkpoint.*--overwrite"):
            fit(Regression(), DATA, CONFIG, RunConfig(), tmp_path, "line")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    stages = []
    for seed in (0, 0, 1):
        stages.append(Regression())
        torch.manual_seed(torch.seed())  # whatever the caller's generator is
        fit(stages[-1], DATA, CONFIG, RunConfig(seed=seed), tmp_path, f"line-{len(stages)}")
    assert torch.equal(stages[0].w, stages[1].w)
    assert not torch.equal(stages[0].w, stages[2].w)


def test_validation_and_previews_do_not_change_the_training(tmp_path):
    plain, watched = Regression(), Regression()
    fit(plain, DATA, CONFIG, RunConfig(), tmp_path, "plain")
    fit(watched, DATA, CONFIG, RunConfig(), tmp_path, "watched", (X, 3 * X), lambda step: torch.rand(3))
    assert torch.equal(plain.w, watched.w)


def test_a_loss_that_is_not_finite_stops_with_step_and_learning_rate(tmp_path):
    with pytest.raises(UserError, match=r"line: loss is nan by step 20, learning rate .*lower --lr"):
        fit(Regression(explode_at=15), DATA, CONFIG, RunConfig(), tmp_path, "line")


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
    ema = EMA(stage, decay=0.5)
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
