"""Many processes, accumulated gradients and recomputed activations: the same steps."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import small_unet
from safetensors.torch import load_file
from torch import nn

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data.dataset import Columns
from tinyldm.support.errors import UserError
from tinyldm.training.machine import Machine
from tinyldm.training.optimizer import build_optimizer
from tinyldm.training.settings import FitSettings
from tinyldm.training.step import Step
from tinyldm.training.team import PartOfDraws, Team, check_parts, part_of_draws
from tinyldm.vae import VAE, VAEConfig, vae_loss

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TINY = ("--preset", "tiny", "--dataset", "shapes", "--device", "cpu", "--precision", "fp32")


def torchrun(script: str, *args: object, processes: int = 2) -> list[str]:
    """The command that starts so many processes of a script on this machine."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return [*map(str, [*run, processes, script, *args])]


def trained(out: Path, *args: object, processes: int = 1, script: str = "train_base.py") -> Path:
    command = torchrun(script, *TINY, "--out", out, *args, processes=processes)
    alone = [sys.executable, *command[command.index(script) :]]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command if processes > 1 else alone, cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return out


def apart(a: Path, b: Path) -> float:
    """The largest difference of the weights of two runs."""
    names = [path.name for path in a.glob("*.safetensors") if path.name != "latents.safetensors"]
    assert names
    pairs = [(load_file(a / name), load_file(b / name)) for name in names]
    return max((x[key] - y[key]).abs().max().item() for x, y in pairs for key in x)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_draw_what_the_whole_batch_draws(parts):
    def drawn(images: int) -> list[torch.Tensor]:
        return [
            torch.rand(images),
            torch.randn((images, 3, 2)),
            torch.randn(images, 3),
            torch.randint(1, 1000, (images,)),
            torch.randn(torch.Size((images, 2)), dtype=torch.float64),
        ]

    torch.manual_seed(0)
    whole = drawn(8)
    for part in range(parts):
        torch.manual_seed(0)
        with part_of_draws(8, part, parts, CPU):
            found = drawn(8 // parts)
        for a, b in zip(found, whole, strict=True):
            assert torch.equal(a, b.chunk(parts)[part])
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))


def test_what_is_not_drawn_by_image_is_left_alone_and_what_would_be_alike_is_refused():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with PartOfDraws(4, 1, 2):
        assert torch.equal(torch.rand(3), expected)
        for draw in (torch.rand_like, torch.randn_like, lambda x: x.normal_()):
            with pytest.raises(RuntimeError, match="draw by torch"):
                draw(torch.zeros(4))


def test_one_part_changes_nothing():
    assert isinstance(part_of_draws(8, 0, 1, CPU), nullcontext)
    assert check_parts(8, Team(), 2) == 2 and check_parts(8, Team(1, 4), 2) == 8
    with pytest.raises(UserError, match=r"^--batch-size 8: must be a multiple of 3 \(1 processes"):
        check_parts(8, Team(), 3)


# ---------------------------------------------------------------- memory


def weights_after(machine: Machine, steps: int = 3) -> list[torch.Tensor]:
    """Of an autoencoder, after a few steps in double precision."""
    torch.manual_seed(0)
    vae = VAE(VAEConfig(1, widths=(8, 16), groups=4)).double()
    machine.place(vae)
    settings = FitSettings(steps=9, batch_size=8, lr=1e-3)
    data = Columns(torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(1)).double())
    step = Step(
        lambda x: vae_loss(vae, 2 * x - 1, 1e-3),
        data,
        build_optimizer(settings, [*vae.parameters()], 1e-3),
        settings,
        machine,
    )
    for i in range(steps):
        torch.manual_seed(i)
        step(torch.arange(8) + i, 1e-3, lambda *_: None)
    return [p.detach() for p in vae.parameters()]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_gradients_take_the_same_steps(parts):
    whole, found = weights_after(Machine()), weights_after(Machine(accumulate=parts))
    for a, b in zip(whole, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_recomputed_activations_give_the_same_gradient_bit_for_bit():
    for kind in (small_unet, lambda: ControlNet(small_unet(), ControlNetConfig(hint_widths=(8,)))):
        found = []
        for recompute in (False, True):
            torch.manual_seed(0)
            network = kind()
            for i, p in enumerate(network.parameters()):
                nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(i))
            Machine(recompute=recompute).place(network)
            inputs = [torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 16)]
            hint = [torch.rand(2, 1, 8, 8)] * isinstance(network, ControlNet)
            out = network(*inputs, *hint)
            sum(x.square().sum() for x in (out if hint else [out])).backward()
            found.append([p.grad for p in network.parameters()])
        assert all(map(torch.equal, *found))


def test_recomputing_keeps_less(monkeypatch):
    kept = []
    for recompute in (False, True):
        network, sizes = small_unet(), {}
        Machine(recompute=recompute).place(network)

        def pack(x: torch.Tensor, sizes: dict = sizes) -> torch.Tensor:
            sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            network(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 16))
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 2


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("alone") / "base", "--steps", 20)


def test_two_processes_take_the_steps_of_one(alone, tmp_path):
    both = trained(tmp_path / "base", "--steps", 20, processes=2)
    assert apart(alone, both) < 1e-6
    assert {p.name for p in both.iterdir()} == {p.name for p in alone.iterdir()}
