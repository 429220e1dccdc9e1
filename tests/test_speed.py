"""What was made fast must still compute the same; and the benchmark's own arithmetic."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyldm import benchmark, curve, files
from tinyldm.benchmark import BenchmarkConfig, count_gflop, in_turn, ratio
from tinyldm.blocks import GroupNorm, attend
from tinyldm.controlnet import ControlNet
from tinyldm.diffusion import Schedule
from tinyldm.errors import UserError
from tinyldm.ldm import LatentDiffusion
from tinyldm.runs import latents_file, train_latents
from tinyldm.stages import ControlStage
from tinyldm.text import TextConfig, TextEncoder, Tokenizer
from tinyldm.training import pick_precision
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAE, VAEConfig
from tinyldm.workloads import PARTS, Sizes, candidates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_is_torchs_and_gives_the_dtype_it_gets(dtype):
    torch.manual_seed(0)
    ours, theirs = GroupNorm(4, 8), nn.GroupNorm(4, 8)
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, 0.3)
    h = (torch.randn(2, 8, 5, 5) * 3 + 1).to(dtype)
    out = ours(h)
    assert out.dtype == dtype
    torch.testing.assert_close(out, theirs(h.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_torchs_also_inside_autocast(dtype):
    q, k, v = torch.randn(3, 2, 4, 7, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v)
    assert out.dtype == dtype and torch.equal(out, expected)


def test_precision_is_as_told():
    cpu = torch.device("cpu")
    assert pick_precision("fp32", cpu) == torch.float32 and pick_precision("bf16", cpu) == torch.bfloat16
    assert pick_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    assert pick_precision("auto", torch.device("meta")) == torch.float32


def small_ldm() -> LatentDiffusion:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_captions(["a red circle", "a blue ring"], 5)
    text = TextEncoder(TextConfig(vocabulary=len(tokenizer.vocabulary), length=5, width=16, layers=1, heads=2))
    unet = UNet(UNetConfig(widths=(16, 32), attention=(False, True), heads=2, context_width=16))
    ldm = LatentDiffusion(VAE(VAEConfig(widths=(8, 16))), tokenizer, text, unet, Schedule(), 32)
    return ldm.requires_grad_(False)


def test_the_control_stage_looks_up_the_context_that_the_text_encoder_gives():
    ldm, seen = small_ldm(), []
    captions = ["a red circle", "a blue ring", "a red circle"]
    stage = ControlStage(ldm, ControlNet(ldm.unet, 1, (8, 16)), captions, caption_drop=0.0)
    ldm.unet.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    stage(torch.randn(3, 4, 16, 16), torch.zeros(3, 1, 32, 32, dtype=torch.uint8), captions)
    torch.testing.assert_close(seen[0], ldm.context(captions))
    assert not torch.allclose(seen[0][0], seen[0][1])
    stage.caption_drop = 1.0
    stage(torch.randn(1, 4, 16, 16), torch.zeros(1, 1, 32, 32, dtype=torch.uint8), captions[:1])
    torch.testing.assert_close(seen[1], ldm.context([""]))


def test_latents_are_kept_for_their_own_autoencoder_and_images_only(tmp_path):
    vae, images = VAE(VAEConfig(widths=(8, 16))), torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8)
    files.write_tensors(tmp_path / "vae.safetensors", vae.state_dict())
    cpu = torch.device("cpu")
    encoded = train_latents(tmp_path, vae, images, cpu)
    kept = torch.zeros_like(encoded)
    files.write_tensors(latents_file(tmp_path), {"z": kept})
    assert torch.equal(train_latents(tmp_path, vae, images, cpu), kept)
    assert torch.equal(train_latents(tmp_path, vae, images[:4], cpu), encoded[:4])
    vae.scale *= 2
    files.write_tensors(tmp_path / "vae.safetensors", vae.state_dict())
    torch.testing.assert_close(train_latents(tmp_path, vae, images, cpu), 2 * encoded)


def test_candidates_run_in_turn_and_ratios_are_taken_round_by_round():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    times = in_turn(steps, 3, "test", warmup=1)
    assert order == list("abababab") and all(len(values) == 3 for values in times.values())
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


@pytest.mark.parametrize("part", PARTS)
def test_both_sides_of_the_benchmark_do_the_same_work(part):
    sizes = Sizes(
        UNetConfig(widths=(16, 32), attention=(False, True), heads=2, context_width=16), VAEConfig(widths=(8, 16))
    )
    sizes = Sizes(sizes.unet, sizes.vae, (8, 16), batch=2, vae_batch=2)
    built = candidates(sizes, part, compile=False)
    ours, theirs = (built[name]() for name in ("tinyldm fp32", "diffusers, its defaults: fp32"))
    assert count_gflop(ours) == pytest.approx(count_gflop(theirs), rel=0.02)


def test_benchmark_prints_tables_and_writes_json(tmp_path, capfd):
    path = tmp_path / "b.json"
    config = BenchmarkConfig(("peak", "steps"), networks=("VAE",), preset="tiny", repeats=1, json=path, device="cpu")
    benchmark.main(config)
    out = capfd.readouterr().out
    results = json.loads(path.read_text())
    assert "training step: VAE" in out
    rows = results["VAE"]
    assert rows["diffusers, its defaults: fp32"]["times_as_fast"]["median"] == 1
    assert all(row["images_per_second"] > 0 and row["share_of_fp32_peak"] > 0 for row in rows.values())
    assert rows["tinyldm fp32"]["peak_mib"] > 1


def evaluation(folder, name: str, minutes: float, gain: float):
    row = {"gain": gain, "gain_interval": [gain - 0.02, gain + 0.02], "fd": 2.0}
    results = {"vae": {"ce": 0.87}, "base": {"fd": 3.0, "acc_class": 0.9}, "control": {"perfect": row}}
    results["seconds"] = {"vae": 10 * minutes, "base": 30 * minutes, "control": 20 * minutes, "evaluate": 99.0}
    files.write_json(folder / name, results)
    return folder / name


def test_the_curve_sorts_runs_by_their_minutes_of_training(tmp_path, capfd):
    paths = (evaluation(tmp_path, "long.json", 30, 0.7), evaluation(tmp_path, "short.json", 5, 0.5))
    curve.main(curve.CurveConfig(paths, tmp_path / "curve.png"))
    rows = capfd.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1:3] for row in rows] == [[" 5 ", " 0.5 "], [" 30 ", " 0.7 "]]
    assert (tmp_path / "curve.png").stat().st_size > 1000
    files.write_json(tmp_path / "no.json", {"control": {}})
    with pytest.raises(UserError, match=r"no\.json: no evaluation"):
        curve.main(curve.CurveConfig((tmp_path / "no.json",), tmp_path / "x.png"))
