"""The benchmark's own arithmetic: turns, ratios, and the same work on both sides."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tinyldm.benchmark import __main__ as benchmark
from tinyldm.benchmark.__main__ import BenchmarkSettings, main
from tinyldm.benchmark.machine import describe
from tinyldm.benchmark.measure import count_gflop, in_turn, ratio
from tinyldm.benchmark.steps import CANDIDATES, PARTS, UNLOCKED, Sizes, candidates, our_step
from tinyldm.evaluate.metrics import Estimate
from tinyldm.support.command_line import parse
from tinyldm.support.errors import UserError
from tinyldm.training.networks import load_base
from tinyldm.training.presets import BASE_PRESETS
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
    assert next(iter(candidates(UNLOCKED))) == "tinyldm fp32"


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


def test_a_cold_start_is_of_a_base_that_can_be_loaded(monkeypatch, capfd):
    loaded = []

    def run(command, **how):
        if "--base" in command:
            loaded.append(load_base(Path(command[command.index("--base") + 1])))

    monkeypatch.setattr(subprocess, "run", run)
    for preset in ("tiny", "cpu"):
        main(BenchmarkSettings(("cold",), preset=preset, repeats=1, device="cpu"))
        assert loaded[-1].unet.config.widths == BASE_PRESETS[preset].unet.widths
    assert "first image" in capfd.readouterr().out


EVALUATION = {
    "vae": {"ce": 0.9},
    "base": {"acc_class": 0.8, "fd": 2.0},
    "control": {
        "perfect": {"passes": "both", "gain": 0.6, "fd": 1.5},
        "changed": {"passes": "both", "gain": 0.1, "fd": 9.0},
        "perfect, prompted": {"passes": "prompted", "gain": 0.7, "fd": 1.0},
    },
}


def recipe(monkeypatch, seeds: int, code: int = 0, **settings) -> list[list[str]]:
    """The commands that the part recipe runs; the evaluation is made up, its FD of the base grows by seed."""
    commands: list[list[str]] = []

    def run(command, stdout):
        commands.append(command[1:])
        if "--json" in command:
            base = {**EVALUATION["base"], "fd": 1.0 + len(commands) // 3}
            Path(command[-1]).write_text(json.dumps({**EVALUATION, "base": base}))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)
    main(BenchmarkSettings(("recipe",), preset="tiny", seeds=seeds, device="cpu", **settings))
    return commands


def test_the_recipe_is_both_trainings_and_their_evaluation_for_each_seed(
    tmp_path, monkeypatch, capfd
):
    path, runs = tmp_path / "r.json", tmp_path / "runs"
    how = {"precision": "fp32", "json": path, "runs": runs}
    base, control, evaluation, *other = recipe(monkeypatch, 2, **how)
    assert [Path(base[0]).name, Path(control[0]).name] == ["train_base.py", "train_control.py"]
    assert evaluation[:2] == ["-m", "tinyldm.evaluate"] and len(other) == 3
    shared = ["--device", "cpu", "--precision", "fp32"]
    training = [*shared, "--preset", "tiny", "--seed", "0"]
    folder = [str(runs / "0" / name) for name in ("base", "control", "evaluation.json")]
    assert base[1:] == [*training, "--out", folder[0]]
    assert control[1:] == [*training, "--base", folder[0], "--out", folder[1]]
    tested = ["--base", folder[0], "--control", folder[1], "--json", folder[2]]
    assert evaluation[2:] == [*shared, *tested]
    assert other[0] == [part.replace("/0/", "/1/") for part in base[:-4]] + [
        *("--seed", "1", "--out", str(runs / "1" / "base"))
    ]
    rows = json.loads(path.read_text())["recipe"]
    assert [*rows] == ["seed 0", "seed 1", "median [smallest, largest]"]
    found = {key: value for key, value in rows["seed 0"].items() if not key.endswith("_s")}
    assert found == {
        **{"ce": 0.9, "class": 0.8, "base_fd": 2.0},
        **{"gain_both": 0.6, "fd_both": 1.5, "gain_prompted": 0.7, "fd_prompted": 1.0},
    }
    assert rows["median [smallest, largest]"]["base_fd"] == {"median": 2.5, "min": 2.0, "max": 3.0}
    parts = [rows["seed 0"][f"{name}_s"] for name in ("base", "control", "evaluate")]
    assert rows["seed 0"]["together_s"] == pytest.approx(sum(parts))


def test_a_recipe_whose_command_fails_or_is_not_there_says_so(monkeypatch):
    with pytest.raises(UserError, match=r"recipe: .*train_base\.py --device cpu .* failed"):
        recipe(monkeypatch, 1, code=2)
    monkeypatch.setattr(benchmark, "SCRIPTS", Path("nowhere"))
    with pytest.raises(UserError, match="run it in a clone"):
        recipe(monkeypatch, 1)


@pytest.mark.parametrize("args", [["--repeats", "0"], ["--parts", "quality"], ["--preset", "x"]])
def test_bad_command_lines_are_one_line_errors(args):
    with pytest.raises(UserError, match=args[0]):
        parse(BenchmarkSettings, args=args)
