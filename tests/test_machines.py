"""Machines that are not here: without fcntl, with GPUs that have no bf16, with devices that have no float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tinyldm.data.dataset import Columns
from tinyldm.diffusion import Schedule, diffusion_loss
from tinyldm.support.errors import UserError
from tinyldm.training import machine as machine_file
from tinyldm.training.checkpoint import Checkpoints
from tinyldm.training.fit import fit
from tinyldm.training.machine import Machine, own_device, pick_device, pick_precision
from tinyldm.training.settings import FitSettings

ROOT = Path(__file__).parents[1]
CUDA, CPU, MPS = map(torch.device, ("cuda", "cpu", "mps"))
# no fcntl, processes that inherit nothing, and functions that only some systems have; one process decodes
ELSEWHERE = """
import multiprocessing, os, sys
sys.modules["fcntl"] = None
multiprocessing.set_start_method("spawn")
os.cpu_count = lambda: 1
del os.fork, os.sched_getaffinity, os.getloadavg
"""
EVERY_MODULE = """
import importlib, pkgutil, tinyldm
names = [m.name for m in pkgutil.walk_packages(tinyldm.__path__, "tinyldm.")]
assert len(names) > 90
list(map(importlib.import_module, names))
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Runs commands as on Windows, as far as that can be had here: returns (exit code, what was printed)."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ELSEWHERE)
    paths = os.pathsep.join(map(str, (tmp_path / "site", ROOT)))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def run(*command: object) -> tuple[int, str]:
        words = [sys.executable, *map(str, command)]
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


def test_nothing_of_this_system_alone_is_needed(elsewhere):
    for missing in ("import fcntl", "import os; os.fork()", "import os; os.getloadavg()"):
        assert elsewhere("-c", missing)[0] == 1
    assert elsewhere("-c", EVERY_MODULE)[0] == 0


def test_elsewhere_a_folder_of_pictures_trains_a_base_and_a_control_and_samples(
    elsewhere, tmp_path
):
    folder, base, control, out = (
        tmp_path / name for name in ("pictures", "base", "control", "s.png")
    )
    folder.mkdir()
    for i in range(640):  # so many that processes decode them, which are spawned
        Image.new("RGB", (9, 9), (i % 256, i // 256, 80)).save(folder / f"{i}.png")
    tiny = ("--preset", "tiny", "--device", "cpu")
    for command in (
        ("train_base.py", *tiny, "--dataset", folder, "--limit", 0, "--out", base),
        ("train_control.py", *tiny, "--base", base, "--out", control),
        ("-m", "tinyldm.sample", "--base", base, "--device", "cpu", "--steps", 2, "--out", out),
    ):
        code, printed = elsewhere(*command)
        assert code == 0, printed
    assert out.exists() and (control / "manifest.json").exists()


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_without_bf16_takes_fp16_for_it_and_says_so(monkeypatch, capsys, native):
    asked = []
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: asked.append(including_emulation) or native,
    )
    assert pick_precision("bf16", CUDA) == (torch.bfloat16 if native else torch.float16)
    assert asked == [False]  # emulated bf16 is slow
    assert ("this GPU has no bf16" in capsys.readouterr().err) != native
    assert pick_precision("auto", CUDA) == pick_precision("fp32", CUDA) == torch.float32
    assert pick_precision("fp16", CUDA) == torch.float16


def test_fp16_is_for_gpus():
    for device in (CPU, MPS):
        with pytest.raises(
            UserError, match=r"^--precision fp16: needs a CUDA GPU; use bf16 or fp32$"
        ):
            pick_precision("fp16", device)
        assert pick_precision("bf16", device) == torch.bfloat16
    assert pick_precision("auto", MPS) == torch.float32


def test_devices_are_picked_in_their_order(monkeypatch):
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(1))
    there = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    found = [pick_device("auto").type]
    for name in ("mps", "cuda"):
        there[name] = True
        found.append(pick_device("auto").type)
    assert found == ["cpu", "mps", "cuda"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(UserError, match=r"process 4 has no GPU of its own; give 3$"):
        own_device(CUDA)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device(CUDA) == torch.device("cuda", 3)
    assert own_device(torch.device("cuda", 1)) == torch.device("cuda", 1) and own_device(CPU) == CPU


def test_graphs_and_memory_formats_are_where_they_are_known(monkeypatch):
    assert (
        Machine(CUDA).graphs and not Machine(CUDA, torch.float16).graphs and not Machine(CPU).graphs
    )
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: (device, enabled))
    assert Machine(CUDA, torch.float16).scaler() == ("cuda", True)
    assert Machine(CUDA, torch.bfloat16).scaler() == ("cuda", False)
    formats = []

    class Network(nn.Module):
        def to(self, device, memory_format):
            formats.append(memory_format)

    for device in (CPU, CUDA, MPS):
        Machine(device).place(Network())
    assert formats == [torch.channels_last] * 2 + [torch.preserve_format]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fp16_trains_with_scaled_gradients_and_leaves_out_those_that_overflow(tmp_path, optimizer):
    """On a CPU, which autocast knows too; the first scale, 65536, is too large for this loss."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 1)), torch.randn(64, 16)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return 20 * (network(x).float() - x.sum(1, keepdim=True)).square().mean()

    before = loss(x).item()
    how = FitSettings(150, 16, optimizer, 1e-2, ema=0.0, warmup=1, log_every=1, preview_every=1)
    fit(
        loss, [network], Columns(x), how,
        checkpoints=Checkpoints(tmp_path), name="line", seed=0, machine=Machine(CPU, torch.float16),
    )  # fmt: skip
    assert loss(x).item() < before / 4
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    norms = [line["grad_norm"] for line in lines if "grad_norm" in line]
    assert norms[0] == 0 and all(norms[20:])  # left out, then not


def test_a_loss_that_is_not_finite_still_ends_a_training_in_fp16(tmp_path):
    network = nn.Linear(1, 1)
    with pytest.raises(UserError, match="line: loss is nan"):
        fit(
            lambda x: network(x).mean() * float("nan"), [network], Columns(torch.ones(4, 1)), FitSettings(4, 2),
            checkpoints=Checkpoints(tmp_path), name="line", seed=0, machine=Machine(CPU, torch.float16),
        )  # fmt: skip


# ---------------------------------------------------------------- float64


def test_nothing_of_a_schedule_or_of_the_loss_is_float64_on_a_device(monkeypatch):
    """mps has none. What is moved to a device, here "meta", is looked at."""
    moved, to = [], torch.Tensor.to

    def watched(x, *args, **kwargs):
        out = to(x, *args, **kwargs)
        if out.device.type == "meta":
            moved.append((x.dtype, out.dtype))
        return out

    monkeypatch.setattr(torch.Tensor, "to", watched)
    z_0 = torch.zeros(2, 4, 8, 8, device="meta")
    loss = diffusion_loss(Schedule(), lambda z, t: z, z_0)
    assert loss.dtype == torch.float32 and loss.device.type == "meta"
    assert moved and not any(torch.float64 in pair for pair in moved)


def test_what_is_native_is_asked_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert machine_file.native_bf16(CPU) and not machine_file.native_bf16(MPS)
    assert pick_precision("auto", CPU) == torch.bfloat16
