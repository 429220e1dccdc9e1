"""What was made fast must still compute the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyldm.blocks import GroupNorm, attend
from tinyldm.evaluate.compare import compare
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.training.caches import cached_latents, encode_all
from tinyldm.training.machine import pick_precision
from tinyldm.training.networks import save_base


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
    assert (
        pick_precision("fp32", cpu) == torch.float32
        and pick_precision("bf16", cpu) == torch.bfloat16
    )
    assert pick_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    assert pick_precision("auto", torch.device("meta")) == torch.float32


def test_latents_are_kept_with_their_base_and_are_encoded_again_without(tmp_path, ldm):
    images = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8)
    kept = torch.rand(6, *ldm.latent_shape)
    save_base(tmp_path, ldm, kept)
    assert torch.equal(cached_latents(tmp_path, ldm, images), kept)
    with pytest.raises(UserError, match=r"latents.*\[6, 4, 8, 8\], expected F32 \[5, 4, 8, 8\]"):
        cached_latents(tmp_path, ldm, images[:5])
    files.write_tensors(tmp_path / "latents.safetensors", {"z": torch.zeros_like(kept)})
    with pytest.raises(UserError, match=r"latents\.safetensors.*checksum"):
        cached_latents(tmp_path, ldm, images)
    (tmp_path / "latents.safetensors").unlink()
    assert torch.equal(cached_latents(tmp_path, ldm, images), encode_all(ldm.vae, images))


def evaluation(folder, name: str, minutes: float, gain: float):
    row = {"gain": gain, "gain_interval": [gain - 0.02, gain + 0.02], "fd": 2.0}
    results = {
        "vae": {"ce": 0.87},
        "base": {"fd": 3.0, "acc_class": 0.9},
        "control": {"perfect": row},
    }
    results["seconds"] = {
        "vae": 10 * minutes,
        "base": 30 * minutes,
        "control": 20 * minutes,
        "evaluate": 99.0,
    }
    files.write_json(folder / name, results)
    return folder / name


def test_the_curve_sorts_runs_by_their_minutes_of_training(tmp_path, capfd):
    paths = (evaluation(tmp_path, "long.json", 30, 0.7), evaluation(tmp_path, "short.json", 5, 0.5))
    compare(paths, tmp_path / "curve.png")
    rows = capfd.readouterr().out.splitlines()
    cells = [row.split("|")[1:3] for row in (*rows[2:4], rows[-1])]
    assert cells[:2] == [[" 5 ", " 0.5 [0.48, 0.52] "], [" 30 ", " 0.7 [0.68, 0.72] "]]
    assert cells[2] == [" 17.5 [5, 30] ", " 0.6 [0.5, 0.7] "]  # over the runs
    assert (tmp_path / "curve.png").stat().st_size > 1000
    files.write_json(tmp_path / "no.json", {"control": {}})
    with pytest.raises(UserError, match=r"no\.json: not an evaluation"):
        compare([tmp_path / "no.json"], tmp_path / "x.png")
