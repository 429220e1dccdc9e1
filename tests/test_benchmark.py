"""The benchmark's own arithmetic: turns, ratios, and the same work on both sides."""

import json

import pytest
import torch

from tinyldm.benchmark.__main__ import BenchmarkSettings, main
from tinyldm.benchmark.machine import describe
from tinyldm.benchmark.measure import count_gflop, in_turn, ratio
from tinyldm.benchmark.steps import CANDIDATES, PARTS, UNLOCKED, Sizes, candidates, our_step
from tinyldm.evaluate.metrics import Estimate
from tinyldm.support.command_line import parse
from tinyldm.support.errors import UserError
from tinyldm.unet import UNetConfig
from tinyldm.vae import VAEConfig

PAIR = ("tinyldm fp32", "diffusers, its defaults: fp32")
SIZES = Sizes(
    UNetConfig(widths=(16, 32), attention=(False, True), heads=2, context_width=16),
    VAEConfig(widths=(8, 16)),
    hint_widths=(8, 16),
    batch=2,
    vae_batch=2,
)


def test_candidates_run_in_turn_and_ratios_are_taken_round_by_round():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    times = in_turn(steps, 3, "test", warmup=1)
    assert order == list("abababab") and all(len(values) == 3 for values in times.values())
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == Estimate(2.0, 1.0, 3.0)


@pytest.mark.parametrize("part", PARTS)
def test_both_sides_of_the_benchmark_do_the_same_work(part):
    pytest.importorskip("diffusers")
    ours, theirs = (CANDIDATES[name](SIZES, part) for name in PAIR)
    assert count_gflop(ours) == pytest.approx(count_gflop(theirs), rel=0.02)


def test_a_step_trains_the_controlnet_and_when_unlocked_the_decoder_too():
    def trained(part: str) -> set[torch.Size]:
        return {p.shape for p in our_step(SIZES, part).optimizer.param_groups[0]["params"]}

    head = torch.Size([4, 16, 3, 3])  # the last convolution of the U-Net
    assert head in trained("U-Net") and head in trained(UNLOCKED)
    assert head not in trained("ControlNet")
    assert next(iter(candidates(UNLOCKED, compile=False))) == "tinyldm fp32"


def test_benchmark_prints_tables_and_writes_json(tmp_path, capfd, monkeypatch):
    pytest.importorskip("diffusers")
    for name in CANDIDATES.keys() - set(PAIR):  # each is a process of its own
        monkeypatch.delitem(CANDIDATES, name)
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"preset": "tiny", "sampling": {"kept": 1}}))
    settings = BenchmarkSettings(
        ("peak", "steps"), networks=("VAE",), preset="tiny", repeats=1, json=path, device="cpu"
    )
    main(settings)
    out = capfd.readouterr().out
    results = json.loads(path.read_text())
    assert "training step: VAE" in out
    rows = results["VAE"]
    assert rows["diffusers, its defaults: fp32"]["times_as_fast"]["median"] == 1
    assert all(
        row["images_per_second"] > 0 and row["share_of_fp32_peak"] > 0 for row in rows.values()
    )
    assert rows["tinyldm fp32"]["peak_mib"] > 1
    assert results["sampling"] == {"kept": 1}, "a part that was not measured stays"
    assert results["machine"]["features"] in out


def test_the_machine_is_described_with_the_features_that_decide_its_speed():
    about = describe(torch.device("cpu"))
    assert about["cores"] and about["processor"] and about["torch"] == torch.__version__
    known = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "unknown"}
    assert set(about["features"].split()) <= known


@pytest.mark.parametrize("args", [["--repeats", "0"], ["--parts", "quality"], ["--preset", "x"]])
def test_bad_command_lines_are_one_line_errors(args):
    with pytest.raises(UserError, match=args[0]):
        parse(BenchmarkSettings, args=args)
