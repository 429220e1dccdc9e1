"""Both scripts and the commands end to end with preset `tiny`; bad input is one line and exit code 2."""

import importlib
import io
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import randomise

import train_base
import train_control
from tinyldm import sample
from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data import load
from tinyldm.data.dataset import to_float
from tinyldm.data.hints import read_hint
from tinyldm.evaluate.__main__ import EvaluateSettings
from tinyldm.evaluate.__main__ import main as evaluate
from tinyldm.ldm import LatentDiffusion, generate
from tinyldm.support import files
from tinyldm.support.command_line import parse, parse_with_preset, run_command
from tinyldm.support.errors import Finished, UserError
from tinyldm.support.progress import progress
from tinyldm.text import Tokenizer
from tinyldm.training import previews
from tinyldm.training.networks import (
    base_checksum,
    load_base,
    load_control,
    save_base,
    save_control,
)
from tinyldm.training.presets import BASE_PRESETS, CONTROL_PRESETS
from tinyldm.training.settings import BaseSettings, RunSettings
from tinyldm.vae import VAE

ROOT = Path(__file__).parents[1]
progress_file = importlib.import_module("tinyldm.support.progress")


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder with the runs `base` and `control`, trained for six steps."""
    folder = tmp_path_factory.mktemp("runs")
    train_base.main(replace(BASE_PRESETS["tiny"], out=folder / "base"))
    before = files.sha256(folder / "base" / "unet.safetensors")
    train_control.main(
        replace(CONTROL_PRESETS["tiny"], base=folder / "base", out=folder / "control")
    )
    assert files.sha256(folder / "base" / "unet.safetensors") == before
    return folder


COMMANDS = {
    "train_base": lambda args: train_base.main(parse_with_preset(BASE_PRESETS, args)),
    "train_control": lambda args: train_control.main(parse_with_preset(CONTROL_PRESETS, args)),
    "sample": lambda args: sample.main(parse(sample.SampleSettings, args=args)),
    "evaluate": lambda args: evaluate(parse(EvaluateSettings, args=args)),
}


def error_of(capfd, command: str, *args: object) -> str:
    """Run a command that must fail: exit code 2, and exactly one line on stderr, which is returned."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: COMMANDS[command]([str(arg) for arg in args]))
    lines = capfd.readouterr().err.strip().splitlines()
    assert exit.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_the_run_folders_hold_what_the_readme_says(runs):
    base = {path.name for path in (runs / "base").iterdir()}
    weights = {"vae.safetensors", "text.safetensors", "unet.safetensors"}
    assert base >= weights | {
        "config.json",
        "vocabulary.json",
        "settings.json",
        "metrics.jsonl",
        "loss.png",
        "previews",
    }
    control = {path.name for path in (runs / "control").iterdir()}
    assert control >= {
        "controlnet.safetensors",
        "config.json",
        "settings.json",
        "metrics.jsonl",
        "loss.png",
        "hints",
    }
    for picture in (*runs.rglob("*.png"),):
        assert cv2.imread(str(picture)) is not None


def test_the_same_command_and_seed_give_the_same_weights_and_another_seed_others(runs, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        train_base.main(
            replace(BASE_PRESETS["tiny"], out=tmp_path / name, run=RunSettings(seed=seed))
        )
    for network in ("vae", "text", "unet"):
        content = (runs / "base" / f"{network}.safetensors").read_bytes()
        assert content == (tmp_path / "same" / f"{network}.safetensors").read_bytes()
        assert content != (tmp_path / "other" / f"{network}.safetensors").read_bytes()


def test_the_saved_latents_have_unit_variance(runs):
    ldm = load_base(runs / "base")
    data = load("shapes", "train", limit=64)
    assert abs(ldm.vae.encode(to_float(data.images)).std().item() - 1) < 0.01


@pytest.mark.parametrize("sampler", ["dpm++", "ddim", "ddpm"])
def test_sample_writes_a_grid_from_the_run_folders_alone(runs, tmp_path, sampler):
    hint = next((runs / "control" / "hints").iterdir())
    args = [
        "--base",
        runs / "base",
        "--control",
        runs / "control",
        "--hint",
        hint,
        "--prompt",
        "a red circle",
        "a ring",
    ]
    args += ["--num-images", 3, "--steps", 3, "--sampler", sampler, "--out", tmp_path / "s.png"]
    COMMANDS["sample"]([str(arg) for arg in args])
    picture = cv2.imread(str(tmp_path / "s.png"))
    assert picture.shape[1] == 4 * 100  # the hint, then three images, of 96 px and a gap
    assert picture.std() > 10


def test_a_photo_of_any_size_and_an_edge_map_are_hints(runs, tmp_path):
    photo = np.full((96, 128, 3), 30, dtype=np.uint8)
    cv2.circle(photo, (64, 48), 27, (20, 200, 40), -1)
    cv2.imwrite(str(tmp_path / "photo.png"), photo)
    edges = cv2.Canny(
        cv2.resize(photo[:, 16:112], (32, 32), interpolation=cv2.INTER_AREA), 100, 200
    )
    cv2.imwrite(str(tmp_path / "edges.png"), edges)
    from_photo, from_edges = (read_hint(tmp_path / f"{n}.png", 3, 32) for n in ("photo", "edges"))
    assert (from_photo.kind, from_edges.kind) == ("photo", "edges")
    assert from_photo.edges.sum() > 20
    assert torch.equal(from_photo.edges, from_edges.edges)
    large = np.zeros((512, 512), dtype=np.uint8)
    cv2.circle(large, (256, 256), 180, 255, 1)
    cv2.imwrite(str(tmp_path / "large.png"), large)
    thin = read_hint(tmp_path / "large.png", 3, 32)
    assert thin.kind == "lines"
    assert 60 < thin.edges.sum() < 150  # a circle of radius 11 cells, not broken


def test_evaluate_prints_and_writes_every_number(runs, tmp_path, capfd):
    args = [
        "--base",
        runs / "base",
        "--control",
        runs / "control",
        "--n",
        12,
        "--steps",
        2,
        "--json",
        tmp_path / "e.json",
    ]
    COMMANDS["evaluate"]([str(arg) for arg in args])
    results = json.loads((tmp_path / "e.json").read_text())
    assert {"psnr", "ce"} <= results["vae"].keys()
    assert {"acc_class", "acc_colour"} <= results["classifier"].keys()
    assert {"fd", "fd_floor", "acc_class", "acc_colour"} <= results["base"].keys()
    names = ["none", "insufficient", "perfect", "conflicting", "changed", "perfect, both"]
    assert list(results["control"]) == names
    rules = [row["passes"] for row in results["control"].values()]
    assert rules == [*["prompted"] * 5, "both"]
    for row in results["control"].values():
        assert {"ef0", "ch", "ce", "gain", "fd", "acc_t", "acc_e", "acc_colour"} <= row.keys()
    assert results["n"] == 12 and results["seed"] == 0
    assert set(results["seconds"]) == {"vae", "base", "control", "evaluate"}
    assert "| perfect |" in capfd.readouterr().out


def test_the_parts_of_the_gpu_presets_fit_together():
    """At their real widths, on a device that computes shapes only."""
    base, control = BASE_PRESETS["gpu"], CONTROL_PRESETS["gpu"]
    tokenizer = Tokenizer.from_captions(["a red circle"], base.text.length)
    with torch.device("meta"):
        ldm = LatentDiffusion.build(VAE(base.vae), tokenizer, base.text, base.unet, 64)
        net = ControlNet(ldm.unet, ControlNetConfig(hint_widths=control.hint_widths))
        x, hint, t = torch.zeros(2, 3, 64, 64), torch.zeros(2, 1, 64, 64), torch.ones(2).long()
        z, context = ldm.vae.encode(x), ldm.context(torch.zeros(2, base.text.length).long())
        eps = ldm.unet(z, t, context, net(z, t, context, hint))
        eps.sum().backward()
    assert z.shape == eps.shape == (2, 4, 16, 16) and ldm.vae.decode(z).shape == x.shape
    assert sum(p.numel() for p in ldm.unet.parameters()) > 10**7


def test_the_gpu_presets_train_a_step(tmp_path, monkeypatch):
    """At 64 px, all else shrunken: an eighth of the widths, a few images, steps and samples."""
    preset = BASE_PRESETS["gpu"]
    few = {"steps": 1, "batch_size": 2, "preview_every": 9}
    run = replace(preset.run, device="cpu", precision="fp32")
    data = replace(preset.data, dataset="shapes", limit=4)
    fits = {"vae_fit": replace(preset.vae_fit, **few), "fit": replace(preset.fit, **few)}
    sizes = {
        "vae": replace(preset.vae, widths=tuple(w // 8 for w in preset.vae.widths)),
        "unet": replace(preset.unet, widths=tuple(w // 8 for w in preset.unet.widths)),
        "text": replace(preset.text, width=preset.text.width // 8),
    }
    monkeypatch.setattr(previews, "ROWS", 1)
    monkeypatch.setattr(previews, "COLUMNS", 1)
    monkeypatch.setattr(previews, "generate", partial(generate, steps=2))
    train_base.main(replace(preset, out=tmp_path / "base", run=run, data=data, **sizes, **fits))
    ldm = load_base(tmp_path / "base")
    assert ldm.latent_shape == (4, 16, 16)
    control = CONTROL_PRESETS["gpu"]
    train_control.main(
        replace(
            control,
            base=tmp_path / "base",
            out=tmp_path / "c",
            run=run,
            fit=replace(control.fit, **few),
        )
    )


@pytest.mark.slow
def test_bf16_trains_and_saves_fp32_weights(tmp_path):
    train_base.main(
        replace(BASE_PRESETS["tiny"], out=tmp_path / "base", run=RunSettings(precision="bf16"))
    )
    ldm = load_base(tmp_path / "base")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in ldm.parameters())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--bogus", 3], ["--bogus"]),
        (["--lr", "abc"], ["--lr", "abc"]),
        (["--lr", "-1"], ["--lr"]),
        (["--steps", "-5"], ["--steps"]),
        (["--precision", "fp16"], ["--precision", "fp16"]),
        (["--preset"], ["--preset: give one of", "tiny"]),
        (["--limit", 10**20], ["--limit"]),
        (["--log-every", 10**23], ["--log-every"]),
        (["--batch-size", 10**9], ["--batch-size"]),
        (["--preset", "tiny", "--device", "privateuseone"], ["--device privateuseone"]),
        (["--lr", "0"], ["--lr 0.0: must be more than 0"]),
        (["--preset", "huge"], ["--preset", "huge", "cpu"]),
        (["--preset", "tiny", "--resolution", 33], ["--resolution", "33"]),
        (["--seed", "-1"], ["--seed", "between 0 and 18446744073709551615"]),
        (["--seed", 2**64], ["--seed", "between 0 and 18446744073709551615"]),
        (["--steps", 0], ["--steps 0: must be more than 0"]),
        (
            ["--preset", "tiny", "--unet.widths", 15, 30, "--unet.heads", 5],
            ["--unet.widths", "even"],
        ),
        (["--limit", "-1"], ["--limit"]),
        (["--ema", "2"], ["--ema"]),
        (["--weight-decay", "-1"], ["--weight-decay"]),
        (["--unet.heads", "0"], ["--unet.heads"]),
        (["--vae.res-blocks", "0"], ["--vae.res-blocks"]),
        (["--text.length", "-1"], ["--text.length"]),
        (["--unet.attention", "True"], ["--unet.attention"]),
        (["--preset", "tiny", "--device", "abacus"], ["--device", "abacus"]),
        (["--preset", "tiny", "--out", "train_base.py"], ["train_base.py", "is no folder"]),
        (["--preset", "tiny", "--out", "tests"], ["tests", "new"]),
        (["--preset", "cpu", "--data-dir", "nowhere"], ["nowhere", "apt-get"]),
    ],
)
def test_bad_flags_of_train_base(capfd, args, words, monkeypatch, tmp_path):
    """With an --out of their own: in `runs` there may be a run."""
    monkeypatch.chdir(ROOT)
    error = error_of(capfd, "train_base", "--out", tmp_path / "x", *args)
    assert all(word in error for word in words), error


def test_a_folder_that_holds_a_run_is_not_overwritten_by_accident(capfd, runs):
    before = files.sha256(runs / "base" / "unet.safetensors")
    error = error_of(capfd, "train_base", "--preset", "tiny", "--out", runs / "base")
    assert "--overwrite" in error and str(runs / "base") in error
    assert files.sha256(runs / "base" / "unet.safetensors") == before


def test_an_interrupted_run_is_resumed_bit_for_bit_and_with_the_same_settings_only(
    capfd, runs, tmp_path, monkeypatch
):
    preset = replace(BASE_PRESETS["tiny"], out=tmp_path / "base")
    with monkeypatch.context() as patch:
        patch.setattr(train_base, "drop_captions", None)  # dies when the autoencoder is done
        with pytest.raises(TypeError):
            train_base.main(preset)
    resume = ["--preset", "tiny", "--out", tmp_path / "base", "--resume", "latest"]
    assert "fit.lr: 0.001 then, 3.0 now" in error_of(capfd, "train_base", *resume, "--lr", 3)
    COMMANDS["train_base"]([str(arg) for arg in resume])
    for name in ("vae", "text", "unet"):
        assert (tmp_path / "base" / f"{name}.safetensors").read_bytes() == (
            runs / "base" / f"{name}.safetensors"
        ).read_bytes()
    with pytest.raises(Finished, match="finished already"):
        COMMANDS["train_base"]([str(arg) for arg in resume])
    resume[3] = tmp_path / "none"
    assert "no run" in error_of(capfd, "train_base", *resume)


def test_the_base_is_not_overwritten_by_its_control(capfd, runs):
    for out in (runs / "base", runs):
        error = error_of(
            capfd,
            "train_control",
            "--preset",
            "tiny",
            "--base",
            runs / "base",
            "--out",
            out,
            "--overwrite",
        )
        assert "--out" in error
    assert (runs / "base" / "unet.safetensors").exists()


def test_a_control_is_not_resumed_on_another_base(capfd, runs, tmp_path):
    settings = json.loads((runs / "control" / "settings.json").read_text()) | {"base_sha256": "0"}
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "settings.json").write_text(json.dumps(settings))
    args = ["--preset", "tiny", "--base", runs / "base", "--out", tmp_path / "control"]
    args += ["--resume", "latest"]
    assert "base_sha256" in error_of(capfd, "train_control", *args)


def test_bad_flags_of_evaluate(capfd, runs, tmp_path):
    for flags in (
        ["--steps", 0],
        ["--steps", 2000],
        ["--n", 3],
        ["--seed", -1],
        ["--json", tmp_path],
        ["--guidance", "nan"],
        ["--device", "meta"],
    ):
        assert flags[0] in error_of(capfd, "evaluate", "--base", runs / "base", *flags)


def test_every_number_of_the_trainings_is_finite(capfd):
    """nan and inf as the value of every flag that takes a float."""
    floats = ["--lr", "--vae-fit.lr", "--weight-decay", "--clip", "--ema", "--kl-weight"]
    for flag in [*floats, "--caption-drop", "--vae-fit.clip", "--vae-fit.ema"]:
        for value in ("nan", "inf", "-inf"):
            error = error_of(capfd, "train_base", "--preset", "tiny", flag, value)
            assert error.startswith(f"error: {flag} {value}"), error


def test_a_base_with_few_test_images_is_not_evaluated(capfd, runs, tmp_path):
    """A run of --limit 3, say; at ten every number is there."""
    for limit, enough in ((1, False), (3, False), (9, False), (10, True)):
        shutil.copytree(runs / "base", tmp_path / str(limit))
        chosen = json.loads((runs / "base" / "settings.json").read_text())
        chosen["data"]["limit"] = limit
        files.write_json(tmp_path / str(limit) / "settings.json", chosen)
        save_base(tmp_path / str(limit), load_base(runs / "base"))
        args = ["--base", tmp_path / str(limit), "--steps", 1, "--json", tmp_path / "e.json"]
        if enough:
            COMMANDS["evaluate"]([str(arg) for arg in args])
        else:
            assert f"--limit leave {limit} test images" in error_of(capfd, "evaluate", *args)
        assert (tmp_path / "e.json").exists() == enough


def test_a_control_is_transferred_to_another_base_only_if_told(runs, tmp_path, capfd):
    shutil.copytree(runs / "base", tmp_path / "base")
    save_base(tmp_path / "base", randomise(load_base(runs / "base")))
    hint = next((runs / "control" / "hints").iterdir())
    args = ["--base", tmp_path / "base", "--control", runs / "control", "--hint", hint]
    args += ["--num-images", 1, "--steps", 1, "--out", tmp_path / "s.png"]
    assert "--transfer" in error_of(capfd, "sample", *args)
    COMMANDS["sample"]([str(arg) for arg in [*args, "--transfer"]])
    assert "note: " in capfd.readouterr().err and (tmp_path / "s.png").exists()


def test_a_base_that_is_none(capfd, tmp_path, runs):
    for command in ("train_control", "sample", "evaluate"):
        out = ["--out", tmp_path / "x"] if command == "train_control" else []
        assert f"{tmp_path}/manifest.json: " in error_of(capfd, command, "--base", tmp_path, *out)
    assert "train_base" in error_of(capfd, "sample", "--base", runs / "control")


def test_damaged_weights_are_named(capfd, tmp_path, runs):
    shutil.copytree(runs / "base", tmp_path / "base")
    path = tmp_path / "base" / "unet.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    for damaged, word in (
        (content, "checksum"),
        (content[:-9], "safetensors"),
        (b"", "safetensors"),
    ):
        path.write_bytes(damaged)
        error = error_of(capfd, "sample", "--base", tmp_path / "base")
        assert "unet.safetensors" in error and word in error


def test_a_control_of_another_base_is_refused(capfd, tmp_path, runs):
    train_base.main(replace(BASE_PRESETS["tiny"], out=tmp_path / "other", run=RunSettings(seed=3)))
    hint = next((runs / "control" / "hints").iterdir())
    args = ["--base", tmp_path / "other", "--control", runs / "control", "--hint", hint]
    assert "another base" in error_of(capfd, "sample", *args)


@pytest.mark.parametrize(
    "content", [None, b"", b"<html>not a picture</html>", b"\x89PNG\r\n\x1a\n" + b"0" * 40]
)
def test_a_hint_that_is_no_picture(capfd, tmp_path, runs, content):
    path = tmp_path / "hint.png"
    if content is not None:
        path.write_bytes(content)
    args = ["--base", runs / "base", "--control", runs / "control", "--hint", path]
    assert "hint.png" in error_of(capfd, "sample", *args)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--hint", "x.png"], "--control"),
        (["--steps", 0], "--steps"),
        (["--steps", 1001], "--steps"),
        (["--num-images", 0], "--num-images"),
        (["--prompt"], "--prompt"),
        (["--seed", "-1"], "--seed"),
        (["--out", "README.md/x/s.png"], "README.md"),
        (["--out", "picture.jpg"], ".png"),
        (["--sampler", "euler"], "--sampler"),
        (["--num-images", 10**9], "--num-images"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--guidance", "inf"], "--guidance inf"),
        (["--control-scale", "nan"], "--control-scale nan"),
        (["--sampler", "ddim", "--eta", "nan"], "--eta nan"),
        (["--sampler", "ddim", "--eta", 1.5], "--eta 1.5"),
        (["--eta", 0.5], "--sampler ddim"),
        (["--device", "meta"], "--device meta"),
    ],
)
def test_bad_flags_of_sample(capfd, runs, args, word):
    assert word in error_of(capfd, "sample", "--base", runs / "base", *args)


def test_as_a_process_an_unknown_flag_is_one_line_and_exit_code_2():
    process = subprocess.run(
        [sys.executable, "train_base.py", "--no-such-flag"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1 and "--no-such-flag" in process.stderr


def test_help_teaches(capfd):
    with pytest.raises(SystemExit) as exit:
        parse(BaseSettings, args=["--help"])
    assert exit.value.code == 0
    text = capfd.readouterr().out
    for flag in (
        "--steps",
        "--lr",
        "--precision",
        "--threads",
        "--data-dir",
        "--vae-fit.steps",
        "--preset",
    ):
        assert flag in text


# ---------------------------------------------------------------- flags


def picture_of(runs, path, *flags) -> np.ndarray:
    """The pixels that `sample` writes with these flags for one hint."""
    hint = sorted((runs / "control" / "hints").iterdir())[0]
    args = ["--base", runs / "base", "--control", runs / "control", "--hint", hint, "--steps", 2]
    args += ["--num-images", 2, "--prompt", "a red circle", "--out", path, *flags]
    COMMANDS["sample"]([str(arg) for arg in args])
    return cv2.imread(str(path))


def test_control_passes_are_chosen_by_name_in_sample_and_evaluate(runs, tmp_path):
    """The control is nudged from zero so that it does something after six steps of training."""
    shutil.copytree(runs / "control", tmp_path / "control")
    shutil.copytree(runs / "base", tmp_path / "base")
    ldm = load_base(tmp_path / "base")
    controlnet, condition = load_control(tmp_path / "control", tmp_path / "base", ldm)
    save_control(
        tmp_path / "control", randomise(controlnet), condition, base_checksum(tmp_path / "base")
    )
    prompted, named, both = (
        picture_of(tmp_path, tmp_path / f"{name}.png", *flags)
        for name, flags in {
            "prompted": (),
            "named": ("--control-passes", "prompted"),
            "both": ("--control-passes", "both"),
        }.items()
    )
    assert np.array_equal(prompted, named) and not np.array_equal(both, prompted)
    files_of = {}
    for passes in ("both", "prompted"):
        path = tmp_path / f"{passes}.json"
        args = ["--base", tmp_path / "base", "--control", tmp_path / "control", "--n", 10]
        args += ["--steps", 2, "--json", path, "--control-passes", passes]
        COMMANDS["evaluate"]([str(arg) for arg in args])
        files_of[passes] = json.loads(path.read_text())
        assert files_of[passes]["control_passes"] == passes
    both, prompted = (files_of[name]["control"]["perfect"]["ef0"] for name in files_of)
    assert both != prompted


@pytest.mark.parametrize(
    "flag", ["--vae.image-channels", "--text.vocabulary", "--unet.channels", "--unet.context-width"]
)
def test_what_follows_from_the_data_is_no_flag(capfd, flag):
    assert flag in error_of(capfd, "train_base", "--preset", "tiny", flag, 7)
    with pytest.raises(SystemExit):
        parse(BaseSettings, args=["--help"])
    assert flag not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("--learning_rate", "--lr"), ("--learning-rate", "--lr"), ("--max_train_steps", "--steps")],
)
def test_a_flag_of_diffusers_is_answered_with_ours(capfd, theirs, ours):
    error = error_of(capfd, "train_base", "--preset", "tiny", theirs, 1)
    assert theirs in error and ours in error.split()[-1]


@pytest.mark.parametrize(
    ("command", "args", "flag"),
    [
        ("train_base", ["--vae-fit.batch-size", 0], "--vae-fit.batch-size 0"),
        ("train_base", ["--lr", "nan"], "--lr nan"),
        ("train_base", ["--kl-weight", "-1"], "--kl-weight -1.0"),
        ("train_base", ["--vae.latent-channels", 0], "--vae.latent-channels 0"),
        ("train_control", ["--hint-widths", 0, 16], "--hint-widths (0, 16)"),
        ("sample", ["--num-images", 0], "--num-images 0"),
        ("evaluate", ["--n", 3], "--n 3"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_flag(capfd, command, args, flag):
    assert error_of(capfd, command, *args).startswith(f"error: {flag}: must be")


def test_what_tyro_says_is_read_from_any_box(monkeypatch):
    """It draws boxes of lines in UTF-8, else of hyphens."""
    for encoding in ("utf-8", "ascii"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
            for value, said in (("3", "--n 3: must be at least 10"), ("x", "Error parsing --n: ")):
                with pytest.raises(UserError, match=f"^{said}"):
                    parse(EvaluateSettings, args=["--n", value])


def test_t_density_is_also_called_timesteps():
    for flag in ("--t-density", "--timesteps"):
        settings = parse_with_preset(BASE_PRESETS, ["--preset", "tiny", flag, "uniform"])
        assert settings.t_density == "uniform"


def test_a_training_ends_by_naming_the_next_command(tmp_path, capfd):
    base, control = tmp_path / "base", tmp_path / "control"
    train_base.main(replace(BASE_PRESETS["tiny"], out=base))
    assert capfd.readouterr().out.split("\n")[-2].split() == next_words("train_control", base)
    train_control.main(replace(CONTROL_PRESETS["tiny"], base=base, out=control))
    words = shlex.split(capfd.readouterr().out.split("\n")[-2])
    assert words[:3] == ["python", "-m", "tinyldm.sample"]
    COMMANDS["sample"]([*words[3:], "--steps", "1", "--out", str(tmp_path / "s.png")])


def next_words(script: str, base: Path) -> list[str]:
    return ["python", f"{script}.py", "--base", str(base)]


def test_bars_are_not_repainted_where_stderr_is_no_terminal(capfd, monkeypatch):
    list(progress(range(1000), desc="quick"))
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(progress_file, "HALF_A_MINUTE", 0.0)
    list(progress(range(3), desc="slow"))
    err = capfd.readouterr().err
    assert "\r" not in err and "slow: 100%" in err.splitlines()[-1]
    with progress(total=2, desc="outer") as outer:
        list(progress(range(3), desc="inner"))
        outer.update(2)
    lines = capfd.readouterr().err.splitlines()
    assert "\x1b" not in "".join(lines) and all("outer" in x or "inner" in x for x in lines)


def test_nothing_runs_at_import():
    """No process is started and no home is looked up by importing any file of the package."""
    code = """
import importlib, pathlib, pkgutil, subprocess
import tinyldm, torch, torchvision, tyro, cv2
subprocess.Popen.__init__ = None
pathlib.Path.home = None
for module in pkgutil.walk_packages(tinyldm.__path__, "tinyldm."):
    importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
