"""Files: whole or not at all, and any bytes are either read or one clear error."""

import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import FrozenInstanceError, asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import randomise, small_ldm
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data.conditions import Condition
from tinyldm.data.fashion_mnist import read_idx
from tinyldm.data.pictures import read_image
from tinyldm.diffusion import Schedule
from tinyldm.ldm import generate, last
from tinyldm.support import files
from tinyldm.support.decode import decode
from tinyldm.support.errors import Stopped, UserError, needed, warned
from tinyldm.support.sealed import Sealed, is_sealed, seal
from tinyldm.text import TextConfig
from tinyldm.training.networks import (
    BaseConfig,
    ControlConfig,
    Vocabulary,
    base_checksum,
    load_base,
    load_control,
    save_base,
    save_control,
)
from tinyldm.training.presets import BASE_PRESETS
from tinyldm.training.run_folder import data_settings
from tinyldm.unet import UNetConfig
from tinyldm.vae import VAEConfig

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------- writing


def test_tensors_round_trip_and_obey_the_umask(tmp_path):
    tensors = {
        "a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "b": torch.arange(3),
    }
    checksum = files.write_tensors(tmp_path / "x", tensors)
    assert checksum == files.sha256(tmp_path / "x")
    loaded = files.read_tensors(tmp_path / "x", "", checksum)
    assert loaded.keys() == tensors.keys() and all(
        torch.equal(loaded[k], tensors[k]) for k in tensors
    )
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    files.write(tmp_path / "x", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        files.write(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path):
    """The limit on the size of files stands for the disk; it ends a write in the middle."""
    files.write(tmp_path / "x", b"old")
    code = """
import resource, sys
from pathlib import Path
from tinyldm.support import files
from tinyldm.support.command_line import run_command
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
run_command(lambda: files.write(Path(sys.argv[1]), b"new" * 1000))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and len(process.stderr.splitlines()) == 1
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_file_and_folder_are_flushed_to_disk_before_and_after_the_new_name(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace

    def flush(descriptor):
        order.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("renamed"), replace(a, b)))
    files.write(tmp_path / "x", b"new")
    written, renamed, folder = order
    assert renamed == "renamed" and folder == str(tmp_path)
    assert written.startswith(f"{tmp_path}/.x.") and written.endswith(".tmp")


def test_two_writers_never_share_a_temporary_name(tmp_path):
    with files.writing(tmp_path / "x") as first, files.writing(tmp_path / "x") as second:
        assert first != second
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), files.whole_folder(tmp_path / "x") as folder:
        (folder / "half").write_bytes(b"1")
        raise KeyError
    assert not [*tmp_path.iterdir()]
    with files.whole_folder(tmp_path / "x") as folder:
        (folder / "all").write_bytes(b"1")
        assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="x: cannot be written"), files.whole_folder(tmp_path / "x"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "all").exists()


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    stale = [
        files.temporary_name(tmp_path / name)
        for name in ("a", "deep/b.json", "checkpoint-3", "deep/c")
    ]
    stale.append(files.temporary_name(tmp_path))
    other = files.temporary_name(tmp_path.with_name(f"{tmp_path.name}.png"))
    for path in stale[:2]:
        path.write_bytes(b"half")
    for path in stale[2:]:
        path.mkdir()
        (path / "state").write_bytes(b"half")
    names = ("a", "notes.tmp", ".notes.tmp", ".hidden", "deep/b.json")
    kept = [*(tmp_path / name for name in names), other]
    for path in kept:
        path.write_bytes(b"mine")
    files.sweep(tmp_path)
    assert not any(path.exists() for path in stale) and all(path.exists() for path in kept)


def test_tensors_that_are_not_finite_are_not_written(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"x: not written, since b is not finite"):
            files.write_tensors(tmp_path / "x", {"a": torch.ones(2), "b": torch.tensor([1, value])})
    assert not [*tmp_path.iterdir()]


def test_a_lock_names_its_holder_and_ends_with_the_process(tmp_path):
    code = """
import sys, time
from pathlib import Path
from tinyldm.support import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        busy = rf"^busy \(process {process.pid} on "
        with pytest.raises(UserError, match=busy), files.locked(tmp_path / "lock", "busy"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with files.locked(tmp_path / "lock", "busy"):
        pass


# ---------------------------------------------------------------- reading


READERS = {
    "tensors": lambda path: files.read_tensors(path, "remedy"),
    "header": lambda path: files.check_header(path, {"x": (1,)}, "remedy"),
    "json": lambda path: files.read_json(path, "remedy"),
    "lines": files.read_lines,
    "idx": lambda path: read_idx(path, "0" * 64),
    "picture": lambda path: read_image(path, 1, 32),
    "manifest": lambda path: Sealed(path.parent, "remedy"),
}


@pytest.mark.parametrize("name", READERS)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.sampled_from([b"[]", b"{}", b'{"vae": 3}', b"\0" * 8, b"null", b"1", b"[" * 99_999]),
        st.binary(max_size=40).map(lambda rest: struct.pack("<Q", len(rest)) + rest),
    )
)
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_read_or_are_one_clear_error(tmp_path_factory, name, content):
    path = tmp_path_factory.getbasetemp() / "manifest.json"
    path.write_bytes(content)
    try:
        READERS[name](path)
    except UserError as error:
        assert "manifest.json" in str(error)


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_or_a_folder_or_nothing_is_one_clear_error_and_no_wait(tmp_path, name):
    path = tmp_path / "manifest.json"
    os.mkfifo(path)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"manifest\.json"):
        READERS[name](path)
    path.unlink()
    if name != "lines":  # none is an empty log
        with pytest.raises(UserError, match=r"manifest\.json"):
            READERS[name](path)
    path.mkdir()
    with pytest.raises(UserError, match=r"manifest\.json"):
        READERS[name](path)
    assert time.perf_counter() - start < 5


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    """A pickle that would make a file when loaded, under the name of weights."""
    target = tmp_path / "executed"
    content = b"cos\nsystem\n(S'touch " + str(target).encode() + b"'\ntR."
    (tmp_path / "unet.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="safetensors"):
        files.read_tensors(tmp_path / "unet.safetensors", "remedy")
    assert not target.exists()


def test_there_is_no_pickle_in_the_source():
    for path in [*ROOT.glob("tinyldm/**/*.py"), *ROOT.glob("*.py")]:
        text = path.read_text()
        text = text.replace("safetensors.torch.load", "")
        assert not any(word in text for word in ("pickle", "torch.load(", "weights_only")), path


# ---------------------------------------------------------------- typed values


@dataclass
class Example:
    """A field of every kind that a file of ours holds."""

    number: int
    share: float
    on: bool
    word: Literal["a", 1]
    widths: tuple[int, ...]
    names: list[str]
    folder: Path | None
    config: VAEConfig


EXAMPLE = {
    **{"number": 3, "share": 1, "on": True, "word": "a", "widths": [1, 2], "names": ["x"]},
    **{"folder": None, "config": asdict(VAEConfig())},
}


def test_a_value_of_json_becomes_what_its_field_says():
    x = decode(Example, EXAMPLE)
    assert (x.share, x.widths, x.names) == (1.0, (1, 2), ["x"]) and type(x.share) is float
    assert x.config == VAEConfig() and x.folder is None
    assert decode(Example, {**EXAMPLE, "folder": "a/b"}).folder == Path("a/b")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", True),
        ("number", 3.0),
        ("number", "3"),
        ("number", None),
        ("share", float("nan")),
        ("share", float("inf")),
        ("share", "1"),
        ("share", 10**400),
        ("on", 1),
        ("word", "b"),
        ("word", True),
        ("widths", 3),
        ("widths", [1, "2"]),
        ("widths", [[1]]),
        ("names", "x"),
        ("names", [None]),
        ("folder", 3),
        ("config", None),
        ("config", {}),
        ("config", {**asdict(VAEConfig()), "more": 1}),
        ("config", {**asdict(VAEConfig()), "widths": [0]}),
        ("config", {**asdict(VAEConfig()), "widths": [10**9]}),
        ("config", {**asdict(VAEConfig()), "res_blocks": 10**6}),
        ("config", {**asdict(VAEConfig()), "widths": [8] * 17}),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused(field, value):
    with pytest.raises((ValueError, TypeError, OverflowError), match=r"\w"):
        decode(Example, {**EXAMPLE, field: value})


@given(config=st.sampled_from([VAEConfig(), UNetConfig(), TextConfig(), Schedule(), Schedule(7)]))
def test_any_config_round_trips_through_json(config):
    assert decode(type(config), json.loads(json.dumps(asdict(config)))) == config


# ---------------------------------------------------------------- sealed folders


def test_a_sealed_folder_reads_what_it_lists_and_nothing_that_changed(tmp_path):
    sums = {"a.json": files.write_json(tmp_path / "a.json", 3)}
    assert not is_sealed(tmp_path)
    seal(tmp_path, sums, who="me")
    sealed = Sealed(tmp_path, "remedy")
    assert is_sealed(tmp_path) and sealed.manifest.facts == {"who": "me"}
    assert sealed.decoded("a.json", int) == 3
    files.write_json(tmp_path / "b.json", 3)
    with pytest.raises(UserError, match=r"manifest\.json: does not list b\.json; remedy"):
        sealed.read("b.json")
    files.write_json(tmp_path / "a.json", 4)
    for read in (lambda: sealed.read("a.json"), sealed.verify):
        with pytest.raises(UserError, match=r"a\.json: changed .* checksum differs; remedy"):
            read()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folders of a base and its control, as the trainings write them."""
    folder, ldm = tmp_path_factory.mktemp("run"), small_ldm()
    chosen = json.loads(json.dumps(asdict(BASE_PRESETS["tiny"]), default=str))
    files.write_json(folder / "base" / "settings.json", chosen)
    save_base(folder / "base", ldm, torch.randn(4, *ldm.latent_shape))
    controlnet = randomise(ControlNet(ldm.unet, ControlNetConfig(1, (4, 4, 8))))
    save_control(folder / "control", controlnet, Condition(), base_checksum(folder / "base"))
    return folder


def used(folder: Path) -> None:
    """Everything that is read from the two folders, to the first step of an image."""
    data_settings(folder / "base")
    ldm = load_base(folder / "base")
    load_control(folder / "control", folder / "base", ldm)
    z = next(generate(ldm, ["a red ring"], steps=2))
    assert z.isfinite().all()


def resealed(folder: Path, name: str) -> None:
    """Write the checksum of a changed file into the manifest; a control follows its base."""
    content = json.loads((folder / "manifest.json").read_text())
    content["sha256"][name] = files.sha256(folder / name)
    files.write_json(folder / "manifest.json", content)
    if folder.name == "base":
        control = folder.parent / "control"
        config = json.loads((control / "config.json").read_text())
        config["base_sha256"] = base_checksum(folder)
        files.write_json(control / "config.json", config)
        resealed(control, "config.json")


VALUES = [
    *(None, True, -1, 0, 1, 7, 2**31, 10**30, -0.5, 1e308, float("nan"), float("inf")),
    *("", "canny", "\ud800", [], [1], [10**9], [[]], {}, {"a": 1}),
]


def places(content, path=()):
    """The path of every value in JSON."""
    yield path
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in list(items)[:12]:
            yield from places(value, (*path, key))


def tampered(content, rng: random.Random):
    """A copy of JSON with one value replaced, left out, added, repeated or nested deep."""
    content = json.loads(json.dumps(content))
    *above, key = rng.choice([path for path in places(content) if path])
    holder = content
    for step in above:
        holder = holder[step]
    change = rng.randrange(8)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, list):
        holder.append(holder[0])
    elif change == 1:
        holder["more"] = 1
    elif change == 2:
        holder[key] = json.loads("[" * 400 + "]" * 400)
    else:
        holder[key] = rng.choice([v for v in VALUES if v != holder[key]])
    return content


JSON_FILES = ["base/config.json", "base/vocabulary.json", "base/settings.json"]
JSON_FILES += ["base/manifest.json", "control/config.json", "control/manifest.json"]


def tampered_as_read(original, rng):
    """Of settings.json only what the data are is read again; its flags may be another version's."""
    if "data" in original:
        return {**original, "data": tampered(original["data"], rng)}
    return tampered(original, rng)


@pytest.mark.parametrize("name", JSON_FILES)
def test_tampered_json_is_one_clear_error_two_hundred_times(run, tmp_path, name):
    """As they are, and sealed again as somebody would who means it: then some are just other runs."""
    rng, original = random.Random(name), json.loads((run / name).read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for i in range(34):
        folder = tmp_path / str(i)
        shutil.copytree(run, folder)
        (folder / name).write_text(json.dumps(tampered_as_read(original, rng)))
        if "manifest" not in name:
            with pytest.raises(UserError, match=f"{Path(name).name}: changed since it was written"):
                used(folder)
            resealed((folder / name).parent, Path(name).name)
        try:
            used(folder)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(folder) in str(error)
        shutil.rmtree(folder)
    assert refused > 20, refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def edit_header(path: Path, change) -> None:
    """Rewrite the header of a safetensors file."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def first_of(header: dict) -> dict:
    return next(value for key, value in header.items() if key != "__metadata__")


WEIGHTS = {
    "dtype F64": lambda h: first_of(h).update(dtype="F64"),
    "dtype unknown": lambda h: first_of(h).update(dtype="F8_E8M0"),
    "dtype I32": lambda h: first_of(h).update(dtype="I32"),  # as long as F32
    "shape": lambda h: first_of(h).update(shape=[10**9, 10**9]),
    "shape transposed": lambda h: first_of(h).update(shape=[*first_of(h)["shape"][::-1], 1]),
    "offsets": lambda h: first_of(h).update(data_offsets=[0, 2**62]),
    "negative": lambda h: first_of(h).update(data_offsets=[-4, 0]),
    "renamed": lambda h: h.update(other=h.pop(next(k for k in h if k != "__metadata__"))),
    "dropped": lambda h: h.pop(next(k for k in h if k != "__metadata__")),
    "nothing": lambda h: h.clear(),
}


@pytest.mark.parametrize("file", ["base/vae", "base/text", "base/unet", "control/controlnet"])
def test_weights_that_do_not_fit_are_named_even_if_they_are_sealed(run, tmp_path, file):
    path = tmp_path / "x" / f"{file}.safetensors"
    tensors = files.read_tensors(run / f"{file}.safetensors", "")
    name = next(iter(tensors))
    wrong = {
        **{
            what: (lambda change=change: edit_header(path, change))
            for what, change in WEIGHTS.items()
        },
        "truncated": lambda: path.write_bytes(path.read_bytes()[:-9]),
        "longer": lambda: path.write_bytes(path.read_bytes() + b"x"),
        "empty": lambda: path.write_bytes(b""),
        "a page": lambda: path.write_bytes(b"<html>404</html>"),
        "missing": path.unlink,
        "not finite": lambda: path.write_bytes(
            path.read_bytes()[:-4] + struct.pack("<f", float("nan"))
        ),
        "one more": lambda: files.write_tensors(path, tensors | {"more": torch.ones(1)}),
        "misshaped": lambda: files.write_tensors(path, tensors | {name: tensors[name][None]}),
    }
    for what, change in wrong.items():
        shutil.copytree(run, tmp_path / "x")
        change()
        if path.exists():
            resealed(path.parent, path.name)
        with pytest.raises(UserError, match=rf"{path.name}.*run folder of a finished") as error:
            used(tmp_path / "x")
        if what in ("renamed", "one more", "misshaped"):
            assert "tensors do not fit" in str(error.value) and "expected" in str(error.value)
        shutil.rmtree(tmp_path / "x")


@pytest.mark.parametrize(
    "name", ["base/vae", "base/text", "base/unet", "base/latents", "control/controlnet"]
)
def test_one_flipped_bit_anywhere_in_weights_is_noticed(run, tmp_path, name):
    shutil.copytree(run, tmp_path / "x")
    path, rng = tmp_path / "x" / f"{name}.safetensors", random.Random(0)
    content = path.read_bytes()
    sealed = Sealed(path.parent, "remedy")
    for _ in range(20):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(UserError, match=f"{path.name}"):
            sealed.read(path.name)
        if name != "base/latents":
            with pytest.raises(UserError, match=f"{path.name}"):
                used(tmp_path / "x")


def test_every_file_of_a_base_belongs_to_its_identity(run, tmp_path):
    """So a control notices another vocabulary, autoencoder, schedule or text encoder too."""
    for name in ("vae", "text", "unet"):
        shutil.copytree(run, tmp_path / name)
        base = tmp_path / name / "base"
        ldm = load_base(base)
        randomise(getattr(ldm, name), seed=5)
        save_base(base, ldm)
        with pytest.raises(UserError, match=r"trained on another base .* --transfer"):
            load_control(tmp_path / name / "control", base, ldm)


def test_a_base_is_the_same_wherever_and_by_whatever_flags_it_was_trained(run, tmp_path):
    shutil.copytree(run, tmp_path / "x")
    base = tmp_path / "x" / "base"
    chosen = json.loads((base / "settings.json").read_text()) | {"out": "elsewhere"}
    files.write_json(base / "settings.json", chosen)
    ldm = load_base(base)
    save_base(base, ldm)
    assert base_checksum(base) == base_checksum(run / "base")
    load_control(run / "control", base, ldm)


def test_a_base_of_another_version_is_still_a_base(run, tmp_path):
    """Its settings.json may have flags that are gone, and lack those that are new."""
    shutil.copytree(run / "base", tmp_path / "base")
    settings = tmp_path / "base" / "settings.json"
    chosen = json.loads(settings.read_text())
    chosen["run"] = {"compile": False, "seed": 0}
    files.write_json(settings, chosen)
    save_base(tmp_path / "base", load_base(tmp_path / "base"))
    assert data_settings(tmp_path / "base") == data_settings(run / "base")
    files.write_json(settings, {**chosen, "data": {"dataset": "shapes", "limit": -1}})
    save_base(tmp_path / "base", load_base(tmp_path / "base"))
    with pytest.raises(UserError, match=r"settings\.json: not the settings of a base"):
        data_settings(tmp_path / "base")


def test_a_control_on_another_base_needs_transfer_which_says_so(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "x")
    ldm = load_base(tmp_path / "x" / "base")
    save_base(tmp_path / "x" / "base", randomise(ldm, seed=5))
    folders = tmp_path / "x" / "control", tmp_path / "x" / "base"
    load_control(*folders, ldm, transfer=True)
    assert "trained on another base" in capsys.readouterr().err
    load_control(run / "control", run / "base", ldm, transfer=True)
    assert capsys.readouterr().err == ""


def test_loading_what_was_saved_gives_the_same_image(run):
    """Networks are built without memory, and filled from the files: nothing may be left out."""
    ldm = small_ldm()
    images = [last(generate(m, ["a red ring"], steps=2)) for m in (ldm, load_base(run / "base"))]
    assert torch.equal(*images)
    assert not any(p.requires_grad or p.is_meta for p in load_base(run / "base").parameters())


# ---------------------------------------------------------------- exactly what is written and told


def told(function, *args, **more) -> str:
    """The line that a user reads."""
    with pytest.raises(UserError) as error:
        function(*args, **more)
    return str(error.value)


def test_json_is_written_as_people_read_it_and_lines_one_by_one(tmp_path):
    files.write_json(tmp_path / "deep" / "er" / "x", {"a": [1], "path": Path("b")})
    text = '{\n "a": [\n  1\n ],\n "path": "b"\n}\n'
    assert (tmp_path / "deep" / "er" / "x").read_text() == text
    checksum = files.write_lines(tmp_path / "y", [{"a": 1}, {"b": "\n"}])
    assert (tmp_path / "y").read_text() == '{"a": 1}\n{"b": "\\n"}\n'
    assert checksum == hashlib.sha256((tmp_path / "y").read_bytes()).hexdigest()
    assert files.read_lines(tmp_path / "y") == [{"a": 1}, {"b": "\n"}]
    (tmp_path / "y").write_text('{"a": 1}\n{"b": ')
    assert files.read_lines(tmp_path / "y") == [{"a": 1}]
    assert files.read_lines(tmp_path / "none") == []


def test_a_folder_or_a_file_is_removed_with_all_that_is_in_it_and_a_link_alone(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "x").write_text("1")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").write_text("1")
    for name in ("folder", "link", "file", "none"):
        files.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "x").exists()


def test_a_folder_is_hidden_before_it_is_deleted(tmp_path, monkeypatch):
    """So that a kill in between leaves nothing that looks whole."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("1")
    removed, remove = [], files.remove
    monkeypatch.setattr(files, "remove", lambda path: (removed.append(path.name), remove(path)))
    files.discard(tmp_path / "none")
    assert removed == []
    files.discard(tmp_path / "x")
    (hidden,) = removed
    assert hidden.startswith(".x.") and hidden.endswith(".tmp") and not [*tmp_path.iterdir()]


def test_a_folder_moves_or_says_why_not(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("1")
    said = f"{tmp_path}/a: cannot be moved to {tmp_path}/b (Directory not empty)"
    assert told(files.move, tmp_path / "a", tmp_path / "b") == said
    files.move(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c" / "a").exists() and not (tmp_path / "a").exists()


def test_where_a_file_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("1")
    for path in ("new", "deep/er/new", "file"):
        files.check_writable("--json", tmp_path / path)
    for path in (tmp_path, tmp_path / "file" / "new"):
        said = told(files.check_writable, "--json", path)
        assert said == f"--json {path}: cannot be written there"
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    assert told(files.check_writable, "--json", tmp_path / "deep" / "new").startswith("--json ")


def test_a_lock_makes_its_folders_and_can_be_taken_again(tmp_path):
    path = tmp_path / "deep" / "er" / "lock"
    for _ in range(2):
        with files.locked(path, "busy"):
            holder = path.with_name("lock.holder").read_text()
            assert holder == f"process {os.getpid()} on {socket.gethostname()}"
            with pytest.raises(UserError, match=rf"^busy \(process {os.getpid()} on "):
                files.locked(path, "busy").__enter__()
    with files.locked(path), pytest.raises(UserError, match=r"^busy "):
        files.locked(path, "busy").__enter__()
    (tmp_path / "file").write_text("")
    said = told(files.locked(tmp_path / "file" / "lock").__enter__)
    assert said.startswith(f"{tmp_path}/file/lock: cannot be written (")


def test_a_lock_without_a_word_for_busy_is_waited_for(tmp_path):
    order = []

    def second():
        with files.locked(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second, daemon=True)
    with files.locked(tmp_path / "lock"):
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_file_is_read_up_to_the_size_that_it_may_have(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"123")
    assert files.read(path, "remedy", 3) == files.read(path, "remedy") == b"123"
    said = f"{path}: not a file (ValueError: more than 2 bytes); remedy"
    assert told(files.read, path, "remedy", 2) == said
    with open(path, "wb") as file:
        file.truncate(2**26 + 1)  # takes no room on the disk
    assert f"more than {2**26} bytes" in told(files.read_json, path, "remedy")


def test_what_is_wrong_with_a_file_is_told_in_one_line_of_bounded_length(tmp_path):
    path = tmp_path / "x"

    def fail(error):
        with files.expecting("a list", path, "remedy", ZipError):
            raise error

    class ZipError(Exception):
        pass

    assert told(fail, ZipError("a\n  b")) == f"{path}: not a list (ZipError: a b); remedy"
    reason = f"ValueError: {'x' * 999}"[:200]
    assert told(fail, ValueError("x" * 999)) == f"{path}: not a list ({reason}); remedy"
    error = PermissionError(13, "Permission denied")
    assert told(fail, error) == f"{path}: cannot be read (Permission denied); remedy"
    with pytest.raises(RuntimeError):
        fail(RuntimeError())


def test_the_first_three_tensors_that_do_not_fit_are_named(tmp_path):
    path, shapes = tmp_path / "x", {"a": (1,), "b": (2, 3), "c": (4,)}
    files.write_tensors(
        path, {"b": torch.ones(2, 3), "c": torch.ones(4).half(), "d": torch.ones(1)}
    )
    said = (
        "a: not there, expected F32 [1]; c: F16 [4], expected F32 [4]; d: F32 [1], expected nothing"
    )
    wrong = f"{path}: 3 tensors do not fit ({said}); remedy"
    assert told(files.read_tensors, path, "remedy", "", shapes) == wrong
    found = told(files.check_header, path, {**shapes, "e": (1,)}, "remedy")
    assert found == f"{path}: 4 tensors do not fit ({said}); remedy"
    shapes = {"b": (2, 3), "c": (4,), "d": (1,)}
    files.write_tensors(path, {name: torch.ones(shape) for name, shape in shapes.items()})
    assert files.read_tensors(path, "remedy", files.sha256(path), shapes).keys() == shapes.keys()
    said = f"{path}: changed since it was written, its checksum differs; remedy"
    assert told(files.read_tensors, path, "remedy", "0" * 64) == said


def test_a_manifest_says_its_format_facts_and_checksums(tmp_path):
    seal(tmp_path, {"b": "1", "a": "2"}, run="x", step="3")
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content == {
        **{"format": 1, "facts": {"run": "x", "step": "3"}, "sha256": {"b": "1", "a": "2"}}
    }
    identity = Sealed(tmp_path, "remedy").identity("b")
    seal(tmp_path, {"a": "2"})
    assert Sealed(tmp_path, "remedy").identity() == identity  # of all files but those left out
    assert identity == hashlib.sha256(b'{"a": "2"}').hexdigest()
    seal(tmp_path, {"a": "3"})
    assert Sealed(tmp_path, "remedy").identity() != identity
    files.write_json(tmp_path / "manifest.json", {**content, "format": 2})
    assert "manifest.json: not a manifest (" in told(Sealed, tmp_path, "remedy")


def test_a_sealed_file_is_read_as_its_kind_or_says_what_it_is(tmp_path):
    sums = {"a.json": files.write_json(tmp_path / "a.json", [1, "2"])}
    sums["x"] = files.write_tensors(tmp_path / "x", {"z": torch.ones(2)})
    seal(tmp_path, sums)
    sealed = Sealed(tmp_path, "remedy")
    sealed.verify()
    said = f"{tmp_path}/a.json: not a valid a.json (TypeError: it[1] is 2, not int); remedy"
    assert told(sealed.decoded, "a.json", list[int]) == said
    assert torch.equal(sealed.tensors("x", {"z": (2,)})["z"], torch.ones(2))
    assert "do not fit" in told(sealed.tensors, "x", {"z": (3,)})
    files.write_tensors(tmp_path / "x", {"z": torch.zeros(2)})
    for read in (lambda: sealed.tensors("x", {"z": (2,)}), sealed.verify):
        assert told(read).startswith(f"{tmp_path}/x: changed since it was written")


def test_what_was_read_from_a_file_is_constant(run):
    sealed = Sealed(run / "base", "remedy")
    for x in (
        *(sealed, sealed.manifest, sealed.decoded("config.json", BaseConfig)),
        *(sealed.decoded("vocabulary.json", Vocabulary),),
        Sealed(run / "control", "remedy").decoded("config.json", ControlConfig),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(x, next(iter(x.__dataclass_fields__)), None)


@dataclass
class Table:
    cells: dict[str, list[float]]
    anything: Any
    either: int | None


def test_dictionaries_and_whatever_is_allowed_are_read_and_what_is_wrong_is_named():
    right = {"cells": {"a": [1, 2.5]}, "anything": {"x": [None]}, "either": None}
    table = decode(Table, right)
    assert table == Table({"a": [1.0, 2.5]}, {"x": [None]}, None)
    assert [type(x) for x in table.cells["a"]] == [float, float]
    assert decode(Table, {**right, "either": 3}).either == 3
    for change, said in (
        ({"cells": {"a": [1, "2"]}}, "cells.a[1] is 2, not float"),
        ({"cells": {"a": math.inf}}, "cells.a is inf, not list"),
        ({"cells": [["a"]]}, "cells is [['a']], not dict"),
        ({"either": "x" * 99}, f"either is {'x' * 40}, not int"),
        ({"more": 1}, "it lacks or should not have more"),
        ({"x" * 99: 1}, f"it lacks or should not have {'x' * 80}"),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            decode(Table, {**right, **change})
        assert str(error.value) == said
    for value in (None, 3, [], {"cells": {}}):
        with pytest.raises(ValueError, match=r"^it lacks or should not have "):
            decode(Table, value)
    assert decode(dict[str, int], {"a": 1}) == {"a": 1} and decode(Path, "a") == Path("a")
    for kind, value in ((str, 1), (int, True), (bool, 1), (float, True), (str, ["a"]), (int, [1])):
        with pytest.raises(TypeError, match=r"^it is .*, not"):
            decode(kind, value)
    with pytest.raises(TypeError, match=r"^it is a, not "):
        decode(tuple[int, ...], "a")


def test_the_parts_of_a_base_fit_together_or_are_refused():
    parts = {"vae": VAEConfig(), "text": TextConfig(), "unet": UNetConfig(), "schedule": Schedule()}
    for resolution in (8, 24, 32, 4096):  # 4 in the autoencoder, 2 in the U-Net
        assert BaseConfig(1, **parts, resolution=resolution).resolution == resolution
    fit = "sizes of autoencoder, text encoder and U-Net that do not fit together"
    for change, said in (
        ({"resolution": 36}, fit),
        ({"resolution": 28}, fit),
        ({"unet": UNetConfig(channels=3)}, fit),
        ({"unet": UNetConfig(context_width=32)}, fit),
        ({"resolution": 0}, "resolution 0: must be between 1 and 4096"),
        ({"resolution": 4112}, "resolution 4112: must be between 1 and 4096"),
    ):
        with pytest.raises(ValueError, match=rf"^{said}$"):
            BaseConfig(1, **{**parts, "resolution": 32, **change})
    one = replace(UNetConfig(), widths=(4,), attention=(False,))
    parts |= {"vae": VAEConfig(widths=(4,)), "unet": one}
    assert BaseConfig(1, **parts, resolution=1).resolution == 1


def test_a_vocabulary_is_that_of_its_text_encoder(run, tmp_path):
    shutil.copytree(run / "base", tmp_path / "base")
    path = tmp_path / "base" / "vocabulary.json"
    content = json.loads(path.read_text())
    for change in ({"length": 6}, {"vocabulary": [*content["vocabulary"], "more"]}):
        sums = Sealed(run / "base", "").manifest.sha256
        seal(tmp_path / "base", {**sums, path.name: files.write_json(path, {**content, **change})})
        reason = "its numbers of words and tokens are not those of the text encoder"
        said = f"{path}: not the vocabulary of this base (ValueError: {reason}); "
        assert told(load_base, tmp_path / "base").startswith(said)


def test_a_run_folder_says_what_it_is(run):
    """Formats, facts and every file with its checksum, the settings among them if there are any."""
    ldm = small_ldm()
    names = {"config.json", "vocabulary.json", "latents.safetensors", "settings.json"}
    names |= {f"{name}.safetensors" for name in ("vae", "text", "unet")}
    assert Sealed(run / "base", "").manifest.sha256 == {
        name: files.sha256(run / "base" / name) for name in names
    }
    config = json.loads((run / "base" / "config.json").read_text())
    assert config["format"] == 1 and config["resolution"] == 32
    assert config["vae"] == json.loads(json.dumps(asdict(ldm.vae.config)))
    assert config["schedule"] == asdict(ldm.schedule)
    assert set(Sealed(run / "control", "").manifest.sha256) == {
        "config.json",
        "controlnet.safetensors",
    }
    config = json.loads((run / "control" / "config.json").read_text())
    assert config["format"] == 1 and config["condition"] == "canny"
    assert config["base_sha256"] == base_checksum(run / "base")


def test_a_control_whose_levels_are_not_those_of_the_autoencoder_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "x")
    control, ldm = tmp_path / "x" / "control", load_base(tmp_path / "x" / "base")
    save_control(
        control,
        ControlNet(ldm.unet, ControlNetConfig(1, (4, 8))),
        Condition(),
        base_checksum(run / "base"),
    )
    said = f"{control}/config.json (4, 8): give 3, as many as the autoencoder has"
    assert told(load_control, control, run / "base", ldm) == said


def test_what_fails_aside_is_a_warning_and_what_is_missing_is_named(capsys):
    @warned("drawing")
    def draw():
        raise ValueError("a\n  b" + "x" * 999)

    draw()
    reason = ("ValueError: a b" + "x" * 999)[:300]
    assert capsys.readouterr().err == f"warning: drawing failed ({reason})\n"
    assert needed("json", "pictures") is json
    assert needed("os.path", "pictures") is os.path
    for module, package in (("no_such.thing.here", "no-such"), ("none", "none")):
        said = f"pictures need {package}: pip install 'tinyldm[report]'"
        assert told(needed, module, "pictures") == said
    assert str(Stopped(15, "saved")) == "saved" and Stopped(15).number == 15
