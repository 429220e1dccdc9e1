"""What a run must survive: kills, signals, full disks, other processes, moved folders, and its own user."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import train_base
import train_control
from tinyldm.ldm import generate
from tinyldm.support import files
from tinyldm.support.errors import Finished, UserError
from tinyldm.support.sealed import Sealed
from tinyldm.training import log, previews, run_folder
from tinyldm.training.checkpoint import Checkpoints, State
from tinyldm.training.networks import load_base, load_control, save_base
from tinyldm.training.presets import BASE_PRESETS, CONTROL_PRESETS
from tinyldm.training.settings import RunSettings

ROOT = Path(__file__).parents[1]
NETWORKS = {"base": ("vae", "text", "unet"), "control": ("controlnet",)}
PLAIN = RunSettings(device="cpu", precision="fp32", checkpointing_steps=2)
FEW = replace(BASE_PRESETS["tiny"].fit, preview_every=1000)


def base_settings(out: Path, **run) -> train_base.BaseSettings:
    """The smallest training of a base; `run` are fields of its RunSettings."""
    tiny = BASE_PRESETS["tiny"]
    return replace(tiny, out=out, run=replace(PLAIN, **run), fit=FEW, vae_fit=FEW)


def control_settings(base: Path, out: Path, **run) -> train_control.ControlSettings:
    tiny = CONTROL_PRESETS["tiny"]
    return replace(tiny, base=base, out=out, run=replace(PLAIN, **run), fit=FEW)


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """One sample of one step, and no plot; nothing that is trained depends on them."""
    monkeypatch.setattr(previews, "ROWS", 1)
    monkeypatch.setattr(previews, "COLUMNS", 1)
    monkeypatch.setattr(previews, "generate", partial(generate, steps=1))
    monkeypatch.setattr(run_folder, "plot_losses", lambda run: (run / "loss.png").touch())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the runs `base` and `control`."""
    folder = tmp_path_factory.mktemp("runs")
    train_base.main(base_settings(folder / "base"))
    train_control.main(control_settings(folder / "base", folder / "control"))
    return folder


def sums_of(run: Path) -> dict[str, str]:
    """Checksums of the weights, latents, config and vocabulary of a finished run."""
    sums = json.loads((run / "manifest.json").read_text())["sha256"]
    return {name: checksum for name, checksum in sums.items() if name != "settings.json"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if ".lock" not in path.name}


class Boom(Exception):
    """A bug of ours, at the worst moment."""


def break_at(monkeypatch, module, name: str, call: int = 1, error: BaseException | None = None):
    """Have the so-maniest call of a function of a module raise; returns the list of its calls."""
    calls, function = [], getattr(module, name)

    def broken(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise error or Boom
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, broken)
    return calls


# ---------------------------------------------------------------- --overwrite


def test_overwrite_keeps_the_old_run_aside_until_the_new_one_is_complete(
    runs, tmp_path, monkeypatch
):
    shutil.copytree(runs / "base", tmp_path / "base")
    old, seen = sums_of(tmp_path / "base"), []
    save = train_base.save_base

    def watched(*args):
        seen.append(sums_of(tmp_path / "base.old"))
        save(*args)
        seen.append(sums_of(tmp_path / "base.old"))

    monkeypatch.setattr(train_base, "save_base", watched)
    train_base.main(base_settings(tmp_path / "base", overwrite=True, seed=1))
    assert seen == [old, old]
    assert names_in(tmp_path) == {"base"} and sums_of(tmp_path / "base") != old


FAILURES = {
    "no data": {
        "data": replace(BASE_PRESETS["tiny"].data, dataset="fashion-mnist", data_dir=Path("no"))
    },
    "NaN": {"vae_fit": replace(FEW, lr=1e38, optimizer="adamw")},
}


@pytest.mark.parametrize("what", FAILURES)
def test_overwrite_with_something_that_fails_leaves_the_old_run_where_it_was(runs, tmp_path, what):
    shutil.copytree(runs / "base", tmp_path / "base")
    old = sums_of(tmp_path / "base")
    with pytest.raises((UserError, RuntimeError)):
        train_base.main(replace(base_settings(tmp_path / "base", overwrite=True), **FAILURES[what]))
    assert names_in(tmp_path) == {"base"} and sums_of(tmp_path / "base") == old


@pytest.mark.parametrize("name", ["build_base", "vae_loss"])
def test_overwrite_without_memory_leaves_the_old_run(runs, tmp_path, monkeypatch, name):
    """The one is found out before anything is written, the other in the first step only."""
    shutil.copytree(runs / "base", tmp_path / "base")
    old = sums_of(tmp_path / "base")
    break_at(monkeypatch, train_base, name, error=RuntimeError("can't allocate memory"))
    with pytest.raises(RuntimeError):
        train_base.main(base_settings(tmp_path / "base", overwrite=True))
    assert names_in(tmp_path) == {"base"} and sums_of(tmp_path / "base") == old


def test_a_run_that_fails_after_a_checkpoint_keeps_it_and_the_old_run(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "base", tmp_path / "base")
    old = sums_of(tmp_path / "base")
    with monkeypatch.context() as patch:
        break_at(patch, train_base, "vae_loss", call=4)
        with pytest.raises(Boom):
            train_base.main(base_settings(tmp_path / "base", overwrite=True, seed=1))
    assert Checkpoints(tmp_path / "base").numbers() == [2]
    assert sums_of(tmp_path / "base.old") == old
    with pytest.raises(UserError, match="--resume latest"):
        train_base.main(base_settings(tmp_path / "base", seed=1))
    train_base.main(base_settings(tmp_path / "base", seed=1, resume=Path("latest")))
    assert names_in(tmp_path) == {"base"} and sums_of(tmp_path / "base") != old


def test_half_of_a_run_that_replaces_another_is_not_overwritten_too(runs, tmp_path, monkeypatch):
    """Neither what stands aside, a complete run, nor the hours that went into the half."""
    shutil.copytree(runs / "base", tmp_path / "base")
    old, settings = sums_of(tmp_path / "base"), base_settings(tmp_path / "base", seed=1)
    overwriting = replace(settings, run=replace(settings.run, overwrite=True))
    with monkeypatch.context() as patch:
        break_at(patch, train_base, "vae_loss", call=4)
        with pytest.raises(Boom):
            train_base.main(overwriting)
    with pytest.raises(
        UserError, match="half of a run that replaces another; give --resume latest"
    ):
        train_base.main(overwriting)
    assert Checkpoints(tmp_path / "base").numbers() == [2]
    assert sums_of(tmp_path / "base.old") == old
    for path in (tmp_path / "base").glob("checkpoint-*"):
        files.discard(path)  # nothing is lost any more
    train_base.main(overwriting)
    assert names_in(tmp_path) == {"base"} and sums_of(tmp_path / "base") != old


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": Path("latest")}])
def test_a_folder_of_somebody_elses_is_never_taken_for_the_old_run(runs, tmp_path, how):
    shutil.copytree(runs / "base", tmp_path / "base")
    shutil.copytree(runs / "base", tmp_path / "base.old")  # a copy to be safe, say
    refused = pytest.raises(UserError, match=r"base\.old is in the way; move it")
    with pytest.raises(Finished) if "resume" in how else refused:
        train_base.main(base_settings(tmp_path / "base", **how))
    assert sums_of(tmp_path / "base.old") == sums_of(runs / "base")


def test_a_moved_half_does_not_take_another_folder_for_what_it_replaces(
    runs, tmp_path, monkeypatch
):
    shutil.copytree(runs / "base", tmp_path / "base")
    settings = base_settings(tmp_path / "base", overwrite=True, seed=1)
    with monkeypatch.context() as patch:
        break_at(patch, train_base, "vae_loss", call=4)
        with pytest.raises(Boom):
            train_base.main(settings)
    (tmp_path / "base").rename(tmp_path / "new")
    shutil.copytree(runs / "control", tmp_path / "new.old")
    train_base.main(base_settings(tmp_path / "new", resume=Path("latest"), seed=1))
    assert names_in(tmp_path) == {"base.old", "new", "new.old"}
    assert not (tmp_path / "new" / "replacing.json").exists()


def test_what_a_user_keeps_in_a_run_folder_is_not_overwritten(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "base")
    (tmp_path / "base" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds notes\.txt; move that first"):
        train_base.main(base_settings(tmp_path / "base", overwrite=True))


def test_a_damaged_run_is_not_finished_and_keeps_what_could_save_it(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "base")
    shutil.copytree(runs / "base", tmp_path / "base" / "checkpoint-12")
    (tmp_path / "base" / "unet.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"unet\.safetensors: changed since it was written"):
        train_base.main(base_settings(tmp_path / "base", resume=Path("latest")))
    assert (tmp_path / "base" / "checkpoint-12").exists()


def test_a_run_is_trained_into_the_current_folder(runs, tmp_path, monkeypatch):
    """Into an empty one, then in place of what it holds."""
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    train_base.main(base_settings(Path(".")))
    assert names_in(Path(".")) == names_in(tmp_path / "base")  # still the same folder
    for seed in (1, 0):
        monkeypatch.chdir(tmp_path / "base")
        train_base.main(base_settings(Path("."), overwrite=True, seed=seed))
        assert names_in(tmp_path) == {"base"}
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


def test_a_control_belongs_to_the_base_that_it_was_trained_on(runs, tmp_path, monkeypatch):
    """Even if another one has its name by the time the control is saved."""
    shutil.copytree(runs / "base", tmp_path / "base")
    save = train_control.save_control

    def exchange(*args):
        train_base.main(base_settings(tmp_path / "base", overwrite=True, seed=9))
        save(*args)

    monkeypatch.setattr(train_control, "save_control", exchange)
    train_control.main(control_settings(tmp_path / "base", tmp_path / "control"))
    with pytest.raises(UserError, match="another base"):
        load_control(tmp_path / "control", tmp_path / "base", load_base(tmp_path / "base"))
    load_control(tmp_path / "control", runs / "base", load_base(runs / "base"))


def test_a_full_disk_at_the_start_leaves_the_old_run_where_it_was(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "base", tmp_path / "base")
    full = OSError(28, "No space left on device")
    break_at(monkeypatch, run_folder.files, "write_json", error=full)
    with pytest.raises(UserError, match="No space left"):
        train_base.main(base_settings(tmp_path / "base", overwrite=True))
    assert names_in(tmp_path) == {"base"} and sums_of(tmp_path / "base") == sums_of(runs / "base")


@pytest.mark.parametrize("out", ["/", "x" * 300, "loop", "loop/x", "pipe"])
def test_an_out_that_can_be_no_folder_is_one_clear_error(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=r"(name another --out|name one|cannot be)"):
        train_base.main(base_settings(Path(out)))


def test_settings_that_do_not_fit_the_model_are_refused(runs, tmp_path):
    """Sealed with it, as if somebody meant it."""
    shutil.copytree(runs / "base", tmp_path / "base")
    chosen = json.loads((runs / "base" / "settings.json").read_text())
    chosen["data"]["resolution"] = 64
    files.write_json(tmp_path / "base" / "settings.json", chosen)
    save_base(tmp_path / "base", load_base(runs / "base"))
    with pytest.raises(UserError, match=r"settings\.json: images of \(3, 64, 64\)"):
        train_control.main(control_settings(tmp_path / "base", tmp_path / "control"))


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_between_two_renames_of_the_start_says_what_to_do_or_continues(
    runs, tmp_path, monkeypatch, call
):
    """1: the old run is aside and there is no new one yet. 2: the new one has begun, without a step."""
    shutil.copytree(runs / "base", tmp_path / "base")
    old, settings = sums_of(tmp_path / "base"), base_settings(tmp_path / "base", seed=1)
    with monkeypatch.context() as patch:
        where = (os, "replace", 3) if call == 1 else (train_base, "vae_loss", 1)
        break_at(patch, *where, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train_base.main(replace(settings, run=replace(settings.run, overwrite=True)))
    assert sums_of(tmp_path / "base.old") == old
    with pytest.raises(UserError, match="in the way; move it" if call == 1 else "--resume latest"):
        train_base.main(settings)
    if call == 2:
        with pytest.raises(UserError, match="no checkpoint of"):
            resume = Path(tmp_path / "base" / "checkpoint-2")
            train_base.main(replace(settings, run=replace(settings.run, resume=resume)))
    if call == 1:
        (tmp_path / "base.old").rename(tmp_path / "base")
    again = {"overwrite": True} if call == 1 else {"resume": Path("latest")}
    train_base.main(replace(settings, run=replace(settings.run, **again)))
    assert names_in(tmp_path) == {"base"} and sums_of(tmp_path / "base") != old


# ---------------------------------------------------------------- the end of a run


def test_a_kill_after_the_manifest_is_tidied_up_by_the_next_command(runs, tmp_path, monkeypatch):
    settings = base_settings(tmp_path / "base")
    with monkeypatch.context() as patch:
        break_at(patch, run_folder, "complete", error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train_base.main(settings)
    assert Checkpoints(tmp_path / "base").numbers()
    with pytest.raises(Finished, match="base: finished already"):
        train_base.main(replace(settings, run=replace(settings.run, resume=Path("latest"))))
    assert not Checkpoints(tmp_path / "base").numbers()
    assert (tmp_path / "base" / "loss.png").exists()
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


@pytest.mark.parametrize("call", range(1, 8))
def test_a_kill_while_the_model_is_saved_is_resumed(runs, tmp_path, monkeypatch, call):
    """config, vocabulary, vae, text, unet, latents, manifest: each may be the last that is written."""
    settings = base_settings(tmp_path / "base")
    with monkeypatch.context() as patch:
        save, killed = train_base.save_base, []

        def dying(*args):
            killed.extend(break_at(patch, files, "write", call, KeyboardInterrupt()))
            save(*args)

        patch.setattr(train_base, "save_base", dying)
        with pytest.raises(KeyboardInterrupt):
            train_base.main(settings)
    with pytest.raises(UserError, match=r"manifest\.json"):
        train_control.main(control_settings(tmp_path / "base", tmp_path / "control"))
    train_base.main(replace(settings, run=replace(settings.run, resume=Path("latest"))))
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


def test_what_fails_beside_the_training_costs_a_warning_only(runs, tmp_path, monkeypatch, capsys):
    """Plots (as with MPLBACKEND=bogus), previews, lines of the log."""
    for module, name in (
        (log, "plot_losses"),
        (run_folder, "plot_losses"),
        (previews, "save_grid"),
    ):
        monkeypatch.setattr(module, name, lambda *args: 1 / 0)
    write, settings = log.Log.write, base_settings(tmp_path / "base")

    def full(self, entry):
        self.path = tmp_path / "base" / "no folder" / "metrics.jsonl"
        write(self, entry)

    monkeypatch.setattr(log.Log, "write", full)
    train_base.main(settings)
    err = capsys.readouterr().err
    for what in ("loss.png", "preview of the autoencoder", "preview of samples", "metrics.jsonl"):
        assert re.search(rf"^warning: .*{what}.* failed \(", err, flags=re.M), what
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


def test_a_backend_of_matplotlib_that_does_not_exist_costs_a_plot_only(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "base")
    (tmp_path / "base" / "loss.png").unlink()  # it is drawn once
    code = """
import sys
from pathlib import Path
from tinyldm.training.run_folder import complete
complete(Path(sys.argv[1]))
"""
    env, args = {**os.environ, "MPLBACKEND": "bogus"}, ["-c", code, str(tmp_path / "base")]
    child = subprocess.run(
        [sys.executable, *args], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 0 and child.stderr.startswith("warning: drawing")
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


# ---------------------------------------------------------------- processes


def arguments(kind: str, out: Path, *flags: object, base: Path | None = None) -> list[str]:
    """A command line of the smallest training."""
    args = [f"train_{kind}.py", "--preset", "tiny", "--out", out, "--device", "cpu"]
    args += ["--precision", "fp32", "--checkpointing-steps", 2, "--preview-every", 1000]
    args += ["--vae-fit.preview-every", 1000] if kind == "base" else ["--base", base]
    return [sys.executable, *map(str, args), *map(str, flags)]


def hold_for_ever(out: Path, say) -> None:
    with run_folder.held(out):
        say("held")
        time.sleep(60)


def test_the_second_process_in_a_run_folder_is_told_who_holds_it(runs, tmp_path):
    fork = multiprocessing.get_context("fork")
    ear, mouth = fork.Pipe(duplex=False)
    process = fork.Process(target=hold_for_ever, args=(tmp_path / "base", mouth.send))
    process.start()
    assert ear.recv() == "held"
    with pytest.raises(UserError, match=rf"another training is .* \(process {process.pid} on"):
        train_base.main(base_settings(tmp_path / "base"))
    assert names_in(tmp_path) == set()
    process.kill()
    process.join()
    train_base.main(base_settings(tmp_path / "base"))
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


def save_for_ever(folder: Path, say) -> None:
    """Load what is there, then save step after step, and say what is done."""
    parameters = [torch.zeros(20_000, requires_grad=True), torch.zeros(3, requires_grad=True)]
    entries = log.Log(folder / "metrics.jsonl", "x", 5, torch.device("cpu"))
    copies = [p.detach().clone() for p in parameters]
    state = State(parameters, copies, entries.losses, torch.optim.AdamW(parameters))
    saved = Checkpoints(folder, every=1, limit=2)
    start = saved.load(state, entries, 10**9)
    assert all((p == start).all() for p in parameters)
    say(start)
    for step in range(start + 1, 10**9):
        for p in parameters:
            p.data.fill_(step)
        saved.save(state, entries, step)
        say(step)


def test_ten_kills_of_a_loop_that_saves_lose_one_save_at_most(tmp_path):
    """Whatever was killed, the newest complete checkpoint verifies, and stale files are swept."""
    rng, last, kept = random.Random(0), 0, 2
    fork = multiprocessing.get_context("fork")
    for _ in range(10):
        ear, mouth = fork.Pipe(duplex=False)
        process = fork.Process(target=save_for_ever, args=(tmp_path, mouth.send))
        process.start()
        mouth.close()
        start = ear.recv()
        assert start >= last
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.join()
        last = start
        while ear.poll():
            try:
                last = ear.recv()
            except EOFError:
                break
        saved = Checkpoints(tmp_path)
        assert saved.newest() in (last, last + 1)
        assert (
            len(saved.numbers()) <= kept + 1
        )  # a kill between saving and deleting leaves one more
        kept = max(2, len(saved.numbers()))
        with run_folder.held(tmp_path):
            assert not [*tmp_path.rglob(".*.tmp")]
    assert last > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_of_a_whole_step_and_says_so(runs, tmp_path, number, code):
    """Sent as soon as a first checkpoint is there; the resumed run ends as an uninterrupted one."""
    args = arguments("base", tmp_path / "base", "--checkpoints-total-limit", 99)
    with subprocess.Popen(args, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "base", process)
        process.send_signal(number)
        err = process.stderr.read()
    if process.wait() != 0:  # it may have been done before
        assert process.returncode == code
        assert "--resume latest" in err or "stopped" in err
        assert sound(tmp_path / "base")
        train_base.main(base_settings(tmp_path / "base", resume=Path("latest")))
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


def sound(run: Path) -> list[int]:
    """The checkpoints of a run, every one of which must be complete and undamaged."""
    numbers = Checkpoints(run).numbers()
    for number in numbers:
        Sealed(Checkpoints(run).path(number), "").verify()
    return numbers


def wait_for(run: Path, process) -> None:
    """Until a run has a checkpoint, or its process has ended."""
    while process.poll() is None and not Checkpoints(run).numbers():
        time.sleep(0.005)


def seconds(main, settings) -> float:
    """How long a training takes without a kill."""
    start = time.perf_counter()
    main(settings)
    return time.perf_counter() - start


def unless_finished(main, settings) -> None:
    """Train; a kill after the last file of a run leaves nothing to do but to tidy up."""
    with suppress(Finished):
        main(settings)


def kill_and_resume(main, settings, rng: random.Random, most: float) -> list[int]:
    """Kill a training after 0 to `most` seconds until it finishes; the steps that each kill found saved."""
    fork, saved, out = multiprocessing.get_context("fork"), [], settings.out
    while True:
        resume = Path("latest") if (out / "settings.json").exists() else None
        again = replace(settings, run=replace(settings.run, resume=resume))
        process = fork.Process(target=unless_finished, args=(main, again))
        process.start()
        process.join(rng.uniform(0.0, most))
        process.kill()
        process.join()
        if process.exitcode == 0:
            return saved
        assert process.exitcode == -signal.SIGKILL
        saved.append(max(sound(out), default=0) if out.exists() else 0)


@pytest.fixture
def one_thread():
    """A process that was forked cannot use OpenMP's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_hundred_random_kills_lose_nothing(tmp_path, one_thread):
    """Over autoencoder, base and control; every run that was killed ends with the same checksums."""
    rng, saved = random.Random(0), []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    base, control = base_settings(whole / "base"), control_settings(whole / "base", whole / "c")
    most = seconds(train_base.main, base), seconds(train_control.main, control)
    while len(saved) < 200:
        files.remove(parts)
        base = base_settings(parts / "base", checkpointing_steps=1)
        saved += kill_and_resume(train_base.main, base, rng, most[0])
        assert sums_of(base.out) == sums_of(whole / "base")
        control = control_settings(base.out, parts / "control", checkpointing_steps=1)
        saved += [100 + n for n in kill_and_resume(train_control.main, control, rng, most[1])]
        assert sums_of(control.out) == sums_of(whole / "c")
    print(f"{len(saved)} kills, with these steps saved: {sorted(saved)}")


def test_a_full_disk_keeps_the_checkpoints_that_are_there(tmp_path):
    """Files may not grow beyond what the first training's checkpoints take; the second's do."""
    start = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    python, *rest = arguments("base", tmp_path / "base")
    process = subprocess.run(
        [python, "-c", start, *rest], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 2, process.stderr
    error = process.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and "cannot be written (File too large)" in error
    assert sound(tmp_path / "base")[-1] == 6  # the end of the autoencoder's training
    assert not [*tmp_path.rglob("*.tmp")]
    train_base.main(base_settings(tmp_path / "base", resume=Path("latest")))


# ---------------------------------------------------------------- checkpoints that are lost


def interrupted(folder: Path, monkeypatch, call: int = 4) -> train_base.BaseSettings:
    """A run that died in its fourth step; the settings that resume it."""
    with monkeypatch.context() as patch:
        break_at(patch, train_base, "vae_loss", call=call)
        with pytest.raises(Boom):
            train_base.main(base_settings(folder))
    return base_settings(folder, resume=Path("latest"))


def test_a_deleted_or_damaged_checkpoint_is_no_fresh_start(tmp_path, monkeypatch):
    settings = interrupted(tmp_path / "base", monkeypatch)
    state = tmp_path / "base" / "checkpoint-2" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    for _ in range(2):
        with pytest.raises(UserError, match=r"--resume latest: .* has lost its checkpoints"):
            train_base.main(settings)
        files.discard(tmp_path / "base" / "checkpoint-2")


def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch):
    settings = interrupted(tmp_path / "one", monkeypatch)
    with monkeypatch.context() as patch:
        break_at(patch, train_base, "vae_loss", call=4)
        with pytest.raises(Boom):
            train_base.main(base_settings(tmp_path / "two", seed=5))
    files.discard(tmp_path / "one" / "checkpoint-2")
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "one" / "checkpoint-2")
    with pytest.raises(UserError, match="lost its checkpoints"):
        train_base.main(settings)
    named = replace(settings, run=replace(settings.run, resume=tmp_path / "one" / "checkpoint-2"))
    with pytest.raises(UserError, match="of another run"):
        train_base.main(named)


def test_resume_takes_the_path_of_a_checkpoint(runs, tmp_path, monkeypatch):
    settings = interrupted(tmp_path / "base", monkeypatch, call=6)
    assert Checkpoints(tmp_path / "base").numbers() == [2, 4]
    steps = break_at(monkeypatch, train_base, "vae_loss", call=0)
    monkeypatch.chdir(tmp_path)
    resume = Path("base") / "checkpoint-2"
    train_base.main(replace(settings, run=replace(settings.run, resume=resume)))
    assert len(steps) - 1 == 4  # and one for the validation loss
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


def test_what_does_not_change_a_run_may_change_when_it_is_resumed(runs, tmp_path, monkeypatch):
    settings = interrupted(tmp_path / "base", monkeypatch)
    run = replace(settings.run, checkpointing_steps=3, checkpoints_total_limit=1)
    fit = replace(FEW, preview_every=6)
    train_base.main(replace(settings, run=run, fit=fit))
    assert sums_of(tmp_path / "base") == sums_of(runs / "base")


def test_a_run_resumed_in_another_precision_is_refused(tmp_path, monkeypatch):
    settings = interrupted(tmp_path / "base", monkeypatch)
    with pytest.raises(UserError, match=r"run\.precision: fp32 then, bf16 now"):
        train_base.main(replace(settings, run=replace(settings.run, precision="bf16")))


# ---------------------------------------------------------------- paths


def test_a_run_that_was_moved_or_is_linked_resumes_from_any_folder(runs, tmp_path, monkeypatch):
    interrupted(tmp_path / "base", monkeypatch)
    (tmp_path / "base").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to("moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train_base.main(base_settings(Path("../link"), resume=Path("latest")))
    assert sums_of(tmp_path / "moved") == sums_of(runs / "base")
    shutil.copytree(runs / "base", tmp_path / "other name")
    assert sums_of(tmp_path / "moved")  # and a control finds the same base under any name
    control = control_settings(Path("../other name"), Path("c"))
    with monkeypatch.context() as patch:
        break_at(patch, train_control, "save_control")
        with pytest.raises(Boom):
            train_control.main(control)
    (tmp_path / "other name").rename(tmp_path / "again")
    resumed = control_settings(tmp_path / "again", Path("c"), resume=Path("latest"))
    train_control.main(resumed)
    assert sums_of(Path("c")) == sums_of(runs / "control")


def test_overwriting_through_a_link_replaces_what_it_points_to(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    train_base.main(base_settings(tmp_path / "link", overwrite=True))
    assert (tmp_path / "link").is_symlink() and names_in(tmp_path) == {"link", "real"}
    assert sums_of(tmp_path / "real") == sums_of(runs / "base")


def test_touching_a_file_changes_nothing(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    for path in (tmp_path / "runs").rglob("*"):
        os.utime(path, (0, 0))
    settings = control_settings(tmp_path / "runs" / "base", tmp_path / "runs" / "control")
    with pytest.raises(Finished):
        train_control.main(replace(settings, run=replace(settings.run, resume=Path("latest"))))


def test_a_control_is_not_resumed_on_a_base_that_was_trained_anew(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    base, control = tmp_path / "runs" / "base", tmp_path / "runs" / "control"
    train_base.main(base_settings(base, overwrite=True, seed=3))
    with pytest.raises(UserError, match="base_sha256"):
        train_control.main(control_settings(base, control, resume=Path("latest")))
    assert sums_of(control) == sums_of(runs / "control")


def test_the_data_of_a_base_are_found_from_any_folder_and_by_the_environment(
    runs, tmp_path, monkeypatch
):
    """A relative --data-dir is stored as it was meant; one that has gone is looked for anew."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = base_settings(tmp_path / "base")
    data = replace(settings.data, data_dir=Path("data"))
    train_base.main(replace(settings, data=data))
    monkeypatch.chdir(ROOT)
    assert run_folder.data_settings(tmp_path / "base").data_dir == tmp_path / "data"
    (tmp_path / "data").rmdir()
    assert run_folder.data_settings(tmp_path / "base").data_dir is None


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "base", tmp_path / "base")
    access = os.access
    loads = break_at(monkeypatch, train_base, "load_data", call=0)
    for out, closed in (("base", "base"), ("base", ""), ("new", "")):  # as root, all are open
        closed = tmp_path / closed
        monkeypatch.setattr(os, "access", lambda p, m, c=closed: Path(p) != c and access(p, m))
        with pytest.raises(UserError, match=r"--out .*cannot be written there"):
            train_base.main(base_settings(tmp_path / out, overwrite=True))
    assert not loads


# ---------------------------------------------------------------- make run

STUB = """#!/usr/bin/env python3
import pathlib, sys
args = sys.argv[1:]
folder = pathlib.Path(__file__).parent
with open(folder / "calls", "a") as calls:
    print(*args, file=calls)
if (folder / "fail").exists() and (folder / "fail").read_text() in " ".join(args[:2]):
    sys.exit(2)
out = pathlib.Path(args[args.index("--out") + 1]) if "--out" in args else None
if args[0].startswith("train_"):
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text("{}")
    if not (out / "manifest.json").exists():
        (out / "manifest.json").write_text(args[0])
elif out:
    out.write_text("picture")
    if "--animation" in args:
        out.with_suffix(".gif").write_text("animation")
else:
    pathlib.Path(args[args.index("--json") + 1]).write_text("table")
"""


@pytest.mark.parametrize("target", ["run", "emoji"])
def test_make_run_decides_by_content_and_never_overwrites(tmp_path, target):
    """With a python that only notes how it is called."""
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for path in (tmp_path / "pyproject.toml", tmp_path / ".venv" / "ready"):  # installed already
        path.parent.mkdir(exist_ok=True)
        path.touch()
    place = tmp_path / "runs"
    runs = place / "emoji" if target == "emoji" else place

    def make() -> list[str]:
        (tmp_path / "calls").write_text("")
        make = ["make", target, f"BIN={tmp_path}", f"RUNS={place}"]
        subprocess.run(make, cwd=tmp_path, capture_output=True, check=False, timeout=60)
        calls = (tmp_path / "calls").read_text().splitlines()
        assert not any("--overwrite" in call for call in calls)
        assert all(str(runs) in call for call in calls)
        assert ("--preset emoji" in calls[0]) == (target == "emoji")
        words = [call.replace("-m ", "").split() for call in calls]
        return [" ".join([w[0], *(["resumed"] if "--resume" in w else [])]) for w in words]

    picture = "tinyldm.sample" if target == "run" else "tinyldm.evaluate.gallery"
    everything = ["train_base.py", "train_control.py", picture, "tinyldm.evaluate"]
    resumed = ["train_base.py resumed", "train_control.py resumed"]
    assert make() == everything
    assert make() == resumed
    for path in runs.rglob("*"):
        os.utime(path)
    assert make() == resumed
    (runs / "samples.png").unlink()
    assert make() == resumed + everything[2:]
    (runs / "control" / "manifest.json").write_text("trained anew")
    assert make() == resumed + everything[2:] and make() == resumed
    shutil.rmtree(runs / "control")
    (tmp_path / "fail").write_text("train_control")
    assert make() == [resumed[0], everything[1]]  # and no picture of half a run
    (tmp_path / "fail").write_text("evaluate")
    failing = next(name for name in everything if "evaluate" in name)
    assert make()[-1] == failing and make()[-1] == failing
