"""Many processes, accumulated gradients and recomputed activations: the same steps."""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import small_unet
from safetensors.torch import load_file
from test_commands import error_of
from torch import nn

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data.dataset import Columns
from tinyldm.support.errors import UserError
from tinyldm.training.machine import Machine
from tinyldm.training.run_folder import held
from tinyldm.training.settings import FitSettings
from tinyldm.training.step import Step
from tinyldm.training.team import PartOfDraws, Team, check_parts, part_of_draws

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TINY = ("--preset", "tiny", "--dataset", "shapes", "--device", "cpu", "--precision", "fp32")


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train_base", "train_control", "torch._dynamo"])


def torchrun(script: str, *args: object) -> list[str]:
    """The command that starts two processes of a script on this machine."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return [*map(str, [*run, 2, script, *args])]


def member(place: dict[str, str], script: str, args: list[str], told: Path) -> None:
    """What torchrun starts, in a process that has imported all before; what it prints is a file."""
    os.environ.update(place, OMP_NUM_THREADS="1")
    with told.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [script, *args]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def team(folder: Path, script: str, *args: object, processes: int = 2) -> list[tuple[int, str]]:
    """Of each process of a script its exit code, and what it printed; started as torchrun does, but at once."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    size, address = str(processes), {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    told, members = [folder / f"told-{i}" for i in range(processes)], []
    for i in range(processes):
        place = {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": size, **address}
        members.append(
            SERVER.Process(
                target=member, args=(place, script, [*map(str, args)], told[i]), daemon=True
            )
        )
        members[-1].start()
    for process in members:
        process.join(120)
    return [(p.exitcode, path.read_text()) for p, path in zip(members, told, strict=True)]


def trained(out: Path, *args: object, processes: int = 2) -> Path:
    run = team(out.parent, "train_base.py", *TINY, "--out", out, *args, processes=processes)
    assert all(code == 0 for code, _ in run), run
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
    """Of convolutions, after a few steps in double precision; our networks normalise in single."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1)
    ).double()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (network(x + torch.randn(x.shape, dtype=x.dtype)) - x).square().mean()

    settings = FitSettings(steps=9, batch_size=8, lr=1e-3)
    data = Columns(torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(1)).double())
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    step = Step(loss, data, optimizer, settings, machine)
    for i in range(steps):
        torch.manual_seed(i)
        step(torch.arange(8) + i, 0.1, lambda *_: None)
    return [p.detach() for p in network.parameters()]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_gradients_take_the_same_steps(parts):
    whole, found = weights_after(Machine()), weights_after(Machine(accumulate=parts))
    for a, b in zip(whole, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


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


TWENTY = """
import sys
from pathlib import Path
import torch
from tinyldm.data.dataset import Columns
from tinyldm.training.checkpoint import Checkpoints
from tinyldm.training.fit import fit
from tinyldm.training.machine import process
from tinyldm.training.settings import FitSettings
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 1)).double()
x = torch.randn(51, 6).double()
folder = Path(sys.argv[1])
with process("cpu", "fp32") as machine:
    out = folder / str(machine.team.rank)
    out.mkdir(parents=True)
    fit(
        lambda x: (net(x + 0.1 * torch.randn(x.shape).double()) - x.sum(1, True)).square().mean(),
        [net], Columns(x), FitSettings(steps=20, batch_size=8, lr=1e-2),
        checkpoints=Checkpoints(out), name="net", seed=0, machine=machine,
    )
    torch.save(torch.cat([p.detach().flatten() for p in net.parameters()]), out / "weights.pt")
"""


def test_two_processes_agree_with_one_after_twenty_steps(tmp_path):
    """51 images, 8 a step: epochs end within batches. In double, so that what differs is not rounding."""
    (tmp_path / "twenty.py").write_text(TWENTY)
    for processes in (1, 2):
        run = team(tmp_path, tmp_path / "twenty.py", tmp_path / str(processes), processes=processes)
        assert all(code == 0 for code, _ in run), run
    weights = [torch.load(tmp_path / name / "weights.pt") for name in ("1/0", "2/0", "2/1")]
    assert (weights[0] - weights[1]).abs().max() < 1e-12
    assert torch.equal(weights[1], weights[2])


FLAGS = "--steps", 40, "--preview-every", 40, "--vae-fit.steps", 2, "--checkpointing-steps", 10**6


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A base that one process trained, which computes each step in two parts."""
    out = tmp_path_factory.mktemp("team") / "alone"
    return trained(out, *FLAGS, "--gradient-accumulation-steps", 2, processes=1)


def test_two_processes_train_a_base_as_one_stop_together_and_resume_bit_for_bit(alone, tmp_path):
    """Both stop after the same step: otherwise they would wait for each other."""
    out = tmp_path / "out"
    command = torchrun("train_base.py", *TINY, "--out", out, *FLAGS)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        while (
            not (out / "metrics.jsonl").exists()
            or '"base"' not in (out / "metrics.jsonl").read_text()
        ):
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        told = run.communicate()[1]
    assert run.returncode != 0
    stops = {line for line in told.splitlines() if line.startswith("stopped after step")}
    assert len(stops) == 1 and told.count("stopped after step") == 2
    assert not (out / "manifest.json").exists()
    trained(out, *FLAGS, "--resume", "latest")
    assert apart(alone, out) == 0
    assert {p.name for p in out.iterdir()} == {p.name for p in alone.iterdir()}
    trained(out, *FLAGS, "--resume", "latest")  # finished already, which is no error


def test_a_batch_that_cannot_be_shared_is_an_error_of_one_line(tmp_path):
    run = team(tmp_path, "train_base.py", *TINY, "--out", tmp_path / "x", "--batch-size", 5)
    for code, told in run:
        assert code == 2 and told.count("\n") == 1
        assert told.startswith("error: --batch-size 5: must be a multiple of 2 (2 processes")


def test_where_the_first_process_fails_the_others_end_in_silence(tmp_path):
    """Here the run folder is held."""
    with held(tmp_path / "x"):
        (code, told), (other, silent) = team(
            tmp_path, "train_base.py", *TINY, "--out", tmp_path / "x"
        )
    assert code == 2 and other != 0 and not silent
    assert told.count("another training is writing there") == 1 and "Traceback" not in told


def test_batches_that_cannot_be_shared_are_told_before_anything_is_trained(capfd, tmp_path):
    for flag, size in (("--batch-size", 6), ("--vae-fit.batch-size", 2)):
        told = error_of(
            capfd, "train_base", *TINY, "--out", tmp_path / "x", "--gradient-accumulation-steps", 4, flag, size
        )  # fmt: skip
        assert told.startswith(f"error: {flag} {size}: must be a multiple of 4")
        assert not (tmp_path / "x").exists()


def test_a_control_is_trained_by_two_processes_as_by_one_in_two_parts(alone, tmp_path):
    plain = ("--preset", "tiny", "--device", "cpu", "--precision", "fp32")
    flags = *plain, "--base", alone, "--steps", 5, "--gradient-accumulation-steps"
    script, one, two = "train_control.py", tmp_path / "1", tmp_path / "2"
    ((code, told),) = team(tmp_path, script, *flags, 2, "--out", one, processes=1)
    assert code == 0, told
    command, env = torchrun(script, *flags, 1, "--out", two), {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("done. Next") == 1  # only the first process speaks
    assert apart(one, two) == 0
