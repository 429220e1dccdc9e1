"""The readers on small files, good and broken; captions; and that hints belong to their images."""

import contextlib
import errno
import gzip
import hashlib
import importlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from tinyldm.data import fetch as fetch_file
from tinyldm.data import load
from tinyldm.data.conditions import canny, silhouette
from tinyldm.data.dataset import (
    SPLITS,
    Captions,
    Columns,
    Tokens,
    drop_captions,
    to_float,
    to_uint8,
)
from tinyldm.data.fashion_mnist import read_idx
from tinyldm.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    RADII,
    SHAPES,
    Figure,
    Scene,
    draw_figure,
    draw_scene,
    random_scene,
)
from tinyldm.support.errors import UserError
from tinyldm.text import Tokenizer
from tinyldm.training.caches import hints_of

fashion = importlib.import_module(
    "tinyldm.data.fashion_mnist"
)  # the package has a function of that name

ROOT = Path(__file__).parents[1]
DEBIAN = "apt-get download dataset-fashion-mnist"
PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8)
IDX = b"\0\0\x08\x03" + struct.pack(">3i", 2, 3, 4) + PIXELS.tobytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reads_idx_files_raw_and_zipped(tmp_path, suffix):
    (tmp_path / f"images{suffix}").write_bytes(gzip.compress(IDX) if suffix else IDX)
    tensor = read_idx(tmp_path / "images", sha256(IDX))
    assert torch.equal(tensor, torch.from_numpy(PIXELS.reshape(2, 3, 4)))


BROKEN = {
    "empty": b"",
    "wrong magic": b"\0\0\x09\x03" + IDX[4:],
    "no sizes": IDX[:6],
    "too short": IDX[:-1],
    "too long": IDX + b"x",
    "negative size": b"\0\0\x08\x01" + struct.pack(">i", -5) + b"12345",
    "flipped bit": IDX[:-1] + bytes([IDX[-1] ^ 1]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_idx_file_is_one_clear_error(tmp_path, name):
    (tmp_path / "images").write_bytes(BROKEN[name])
    with pytest.raises(UserError, match="checksum") as error:
        read_idx(tmp_path / "images", sha256(IDX))
    assert (
        "images" in str(error.value)
        and "--data-dir" in str(error.value)
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize(
    "content", [b"", b"not gzip", gzip.compress(IDX)[:-10], gzip.compress(IDX)[:20] + b"\xff" * 20]
)
def test_a_broken_gzip_is_one_clear_error(tmp_path, content):
    (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.gz"):
        read_idx(tmp_path / "images", sha256(IDX))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder, not there yet, in which what is fetched is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tinyldm"


def ask(monkeypatch, mirror, debian) -> None:
    """Fetch from these instead."""
    sources = dict(zip(fashion.SOURCES, (mirror, debian), strict=True))
    monkeypatch.setattr(fashion, "SOURCES", sources)


def fetch_fashion() -> list[str]:
    return fetch_file.fetch("fashion-mnist", fashion.SOURCES, fashion.check)


def test_fashion_mnist_not_found_lists_the_places_and_the_remedies(tmp_path, monkeypatch, cache):
    def fail(folder):
        raise urllib.error.URLError("no network")

    monkeypatch.delenv("TINYLDM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion, "holds_fashion_mnist", lambda folder: False)
    ask(monkeypatch, fail, fail)
    with pytest.raises(UserError) as error:
        fashion.find_fashion_mnist()
    for place in (
        "data",
        "/usr/share/datasets/fashion-mnist",
        str(cache / "fashion-mnist"),
        "amazonaws",
        "apt-get",
        "--data-dir",
    ):
        assert place in str(error.value)
    assert list(cache.iterdir()) == []  # nothing half-fetched is left


def test_what_a_source_serves_is_checked_before_it_is_kept(monkeypatch, cache):
    """A mirror with other bytes leaves nothing behind; then the other source is asked."""
    right = dict(zip(fashion.FILES, (IDX, IDX + b"?", IDX + b"??", IDX + b"???"), strict=True))
    monkeypatch.setattr(fashion, "FILES", {name: sha256(x) for name, x in right.items()})
    monkeypatch.setattr(fashion, "read_sn3_pascalvincent_tensor", lambda path: None)
    wrong, folder, asked = next(reversed(right)), cache / "fashion-mnist", []

    def serve(change):
        def get(part):
            asked.append(part)
            for name, content in (right | change).items():
                (part / f"{name}.gz").write_bytes(gzip.compress(content))

        return get

    ask(monkeypatch, serve({wrong: b"another dataset"}), serve({wrong: IDX}))
    said = [f"{source} (UserError)" for source in (fashion.MIRROR, DEBIAN)]
    assert fetch_fashion() == said and len(asked) == 2
    assert list(cache.iterdir()) == []
    ask(monkeypatch, serve({wrong: b"another dataset"}), serve({}))
    assert fetch_fashion() == said[:1] and fashion.holds_fashion_mnist(folder)
    assert [path.name for path in cache.iterdir()] == ["fashion-mnist"]
    kept = {path.name: gzip.decompress(path.read_bytes()) for path in folder.iterdir()}
    assert kept == {f"{name}.gz": content for name, content in right.items()}


def put_in_place(folder, content):
    """Four files of this content where Fashion-MNIST should be."""
    folder.mkdir()
    for name in fashion.FILES:
        (folder / name).write_bytes(content)


def test_files_that_are_not_regular_are_not_fashion_mnist_and_nothing_hangs(tmp_path):
    for kind, make in (("pipes", os.mkfifo), ("folders", os.mkdir)):
        (tmp_path / kind).mkdir()
        for name in fashion.FILES:
            make(tmp_path / kind / name)
    (tmp_path / "a file").write_bytes(b"")
    for name in ("pipes", "folders", "a file", "nothing"):
        with pytest.raises(UserError, match=f"not readable, in .*{name}.*TINYLDM_DATA.*apt-get"):
            fashion.find_fashion_mnist(tmp_path / name)


def test_a_folder_that_may_not_be_read_is_one_clear_error(tmp_path, monkeypatch):
    def refuse(path, **settings):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    put_in_place(tmp_path / "mine", b"")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        patch.setattr(Path, "stat", refuse)
        with pytest.raises(UserError) as error:
            fashion.find_fashion_mnist(tmp_path / "mine")
    assert all(word in str(error.value) for word in ("mine", "TINYLDM_DATA", "apt-get"))


def test_without_a_home_the_cache_is_among_temporary_files(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    expected = Path(tempfile.gettempdir()) / "tinyldm" / "fashion-mnist"
    assert fetch_file.cache("fashion-mnist") == expected


@pytest.fixture
def drip():
    """The address of a server that sends one byte of an endless file every 20 ms."""

    def serve(connection):
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                connection.sendall(b"x")
                time.sleep(0.02)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        server.shutdown(socket.SHUT_RDWR)


def test_a_server_that_drips_and_a_tool_that_crawls_are_given_up(monkeypatch, cache, drip):
    def trickle(folder):
        with contextlib.suppress(OSError), open(folder / "package", "wb", buffering=0) as file:
            while folder.exists():
                file.write(b"x")
                time.sleep(0.02)

    monkeypatch.setattr(fetch_file, "SILENCE", 0.3)
    names = [f"{name}.gz" for name in fashion.FILES]
    ask(monkeypatch, fetch_file.from_mirror(drip, names), trickle)
    started = time.monotonic()
    failures = fetch_fashion()
    assert time.monotonic() - started < 2
    assert len(failures) == 2 and all("TimeoutError" in failure for failure in failures)
    assert list(cache.iterdir()) == []


def test_a_slow_download_that_goes_on_is_waited_for(monkeypatch, cache):
    def slow(folder):
        for name, content in CONTENTS.items():
            time.sleep(0.15)
            (folder / name).write_bytes(content)

    contents = [bytes([i]) * 2**17 for i in range(4)]
    CONTENTS = dict(zip(fashion.FILES, contents, strict=True))
    monkeypatch.setattr(fashion, "FILES", {name: sha256(x) for name, x in CONTENTS.items()})
    monkeypatch.setattr(fetch_file, "SILENCE", 0.3)
    ask(monkeypatch, slow, lambda folder: pytest.fail("was asked too"))
    monkeypatch.setattr(fashion, "read_idx", lambda path, sha256: path.read_bytes())
    assert fetch_fashion() == []
    assert fashion.holds_fashion_mnist(cache / "fashion-mnist")


def test_a_kill_while_fetching_leaves_nothing_that_is_taken_for_the_data(cache):
    code = """
import importlib, os, signal
fashion = importlib.import_module("tinyldm.data.fashion_mnist")

def half(folder):
    for name in [*fashion.FILES][:4]:
        (folder / name).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

fashion.fetch("fashion-mnist", {"half": half}, fashion.check)
"""
    folder = cache / "fashion-mnist"
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert killed.returncode == -signal.SIGKILL and not folder.exists()
    assert len(list(folder.parent.rglob("*idx?-ubyte"))) == 4  # where nobody looks
    for place in (folder, folder.parent):
        assert not fashion.holds_fashion_mnist(place)


def test_a_named_data_dir_without_the_files_is_an_error_without_looking_elsewhere(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(fashion, "fetch", lambda *a: pytest.fail("went to the network"))
    with pytest.raises(UserError, match=str(tmp_path)):
        fashion.find_fashion_mnist(tmp_path)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}i", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def little_fashion(tmp_path, monkeypatch):
    """A folder with four idx files of random garments, of every class and brightness."""
    rng = np.random.default_rng(0)
    files = {}
    for prefix, n in (("train", 600), ("t10k", 90)):
        pixels = np.zeros((n, 28, 28), dtype=np.uint8)
        pixels[:, 8:20, 8:20] = rng.integers(1, 256, (n, 1, 1))
        files[f"{prefix}-images-idx3-ubyte"] = idx(pixels)
        files[f"{prefix}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, n).astype(np.uint8))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(fashion, "FILES", {name: sha256(files[name]) for name in fashion.FILES})
    monkeypatch.setattr(fashion, "VALIDATION", 100)
    fashion.read_all.cache_clear()
    yield tmp_path
    fashion.read_all.cache_clear()


def test_fashion_mnist_splits_labels_and_padding(little_fashion):
    parts = {
        split: load("fashion-mnist", split, data_dir=little_fashion, held_out=True)
        for split in SPLITS
    }
    assert [len(parts[split]) for split in SPLITS] == [500, 100, 90]
    train = parts["train"]
    assert train.images.shape == (500, 1, 32, 32) and train.images.dtype == torch.uint8
    assert train.images[:, :, :2].max() == 0
    shares = train.labels["tone"].bincount() / 500
    assert (shares - 1 / 3).abs().max() < 0.03  # terciles of the training images
    middle = train.images[:, 0, 16, 16]
    assert middle[train.labels["tone"] == 0].max() <= middle[train.labels["tone"] == 1].min()


def test_held_out_pairs_are_in_no_split_unless_asked_for(little_fashion):
    pairs = {(fashion.CLASSES.index(c), fashion.TONES.index(t)) for c, t in fashion.HELD_OUT}
    for split in SPLITS:
        whole = load("fashion-mnist", split, data_dir=little_fashion, held_out=True)
        part = load("fashion-mnist", split, data_dir=little_fashion)
        seen = [
            set(zip(d.labels["class"].tolist(), d.labels["tone"].tolist(), strict=True))
            for d in (whole, part)
        ]
        assert seen[0] & pairs and not seen[1] & pairs
        assert len(part) == int((~whole.held_out).sum())


def test_fashion_captions_name_class_and_tone_with_the_complete_one_first():
    for c, t in itertools.product(range(10), range(3)):
        captions = fashion.fashion_captions(c, t)
        assert captions[0] == f"a photo of a {fashion.TONES[t]} {fashion.NOUNS[c][0]}"
        assert len(set(captions)) == len(captions) >= 16
        assert not any(" a a" in caption or " a e" in caption for caption in captions)


def test_twenty_captions_of_a_garment_the_last_four_without_its_tone():
    captions = fashion.fashion_captions(9, 0)
    wordings = [f"{tone} {noun}" for tone in ("dark", "black") for noun in ("ankle boot", "boot")]
    templates = ["a photo of {}", "{}", "a picture of {}", "a studio photo of {}"]
    expected = [template.format(f"a {x}") for template in templates for x in wordings]
    assert list(captions) == expected + [template.format("an ankle boot") for template in templates]
    assert fashion.fashion_captions(8, 2)[-1] == "a studio photo of a bag"
    assert fashion.CLASSES[1] == "trousers" and fashion.CLASSES[9] == "ankle boot"


TONE_NAMES = {"dark": 0, "black": 0, "grey": 1, "gray": 1, "light": 2, "white": 2}


def test_the_words_for_a_tone_match_the_brightness_that_is_measured(little_fashion):
    """ "White" for a dark garment would be noticed: the words of a caption say the third it is in."""
    data = load("fashion-mnist", "train", data_dir=little_fashion, held_out=True)
    brightness = data.images[:, 0, 16, 16].float()  # a garment here is of one brightness
    third = 3 * brightness.argsort().argsort() // len(data)
    edges = brightness.quantile(torch.tensor([1 / 3, 2 / 3]))
    clear = (brightness[:, None] - edges).abs().min(1).values > 2
    assert clear.sum() > 400
    for i in clear.nonzero()[:, 0].tolist():
        for caption in data.captions.choices[i]:
            tones = {TONE_NAMES[word] for word in caption.split() if word in TONE_NAMES}
            assert tones <= {int(third[i])}, caption
        assert data.names["tone"][third[i]] in data.captions.full()[i].split()


def test_brightness_is_the_mean_over_what_is_not_black():
    images = torch.zeros(4, 28, 28, dtype=torch.uint8)
    images[0, :2, :3], images[1, 5, 5], images[1, 5, 6], images[2, 5, 5] = 90, 10, 1, 7
    assert fashion.brightness(images).tolist() == [90, 5.5, 7, 0]


def test_garments_of_the_test_split_are_sorted_by_the_thirds_of_the_training_images(monkeypatch):
    levels = torch.tensor([10, 20, 30, 40, 50, 60, 70], dtype=torch.uint8)
    train = levels[:, None, None].expand(7, 28, 28), torch.zeros(7, dtype=torch.uint8)
    bright = torch.tensor([29, 30, 31, 50, 51, 200], dtype=torch.uint8)
    test = bright[:, None, None].expand(6, 28, 28), torch.zeros(6, dtype=torch.uint8)
    monkeypatch.setattr(fashion, "read_all", lambda folder: {"train": train, "test": test})
    monkeypatch.setattr(fashion, "find_fashion_mnist", lambda data_dir: data_dir)
    data = load("fashion-mnist", "test", held_out=True)
    assert data.labels["tone"].tolist() == [0, 0, 1, 1, 2, 2]  # a third is its upper end


def test_the_validation_split_is_the_end_of_the_training_file(little_fashion):
    content = (little_fashion / "train-images-idx3-ubyte").read_bytes()
    pixels = torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).copy()).reshape(
        -1, 28, 28
    )
    for split, part in (("train", pixels[:500]), ("validation", pixels[500:])):
        data = load("fashion-mnist", split, data_dir=little_fashion, held_out=True)
        assert torch.equal(data.images[:, 0, 2:-2, 2:-2], part)
    few = load("fashion-mnist", "validation", data_dir=little_fashion, held_out=True, limit=7)
    assert torch.equal(few.images[:, 0, 2:-2, 2:-2], pixels[500:507])


def test_garments_are_padded_by_two_and_enlarged_bilinearly():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (3, 1, 28, 28)).astype(np.uint8))
    padded = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    padded[:, :, 2:30, 2:30] = images
    assert torch.equal(fashion.enlarge(images, 32), padded)
    expected = torch.nn.functional.interpolate(padded.float(), (64, 64), mode="bilinear")
    enlarged = fashion.enlarge(images, 64)
    assert enlarged.dtype == torch.uint8 and (enlarged - expected).abs().max() <= 1
    assert all(fashion.enlarge(images, n).shape == (3, 1, n, n) for n in (31, 32, 33))


def letters(captions: list[str]) -> torch.Tensor:
    """Captions of up to two letters as tokens (b, 2); 0 pads."""
    return torch.tensor([[*map(ord, c), 0, 0][:2] for c in captions])


def drawn(tokens: Tokens) -> list[str]:
    """A caption of every image, of one letter, as `letters` encodes it."""
    return [chr(token) for token in tokens[torch.arange(len(tokens))][:, 0].tolist()]


def test_drawing_captions_is_a_function_of_the_global_seed():
    tokens = Tokens.of(Captions([tuple("abcdefgh")] * 50), letters)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(drawn(tokens))
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0]) == set("abcdefgh")


def test_the_caption_of_an_image_is_the_one_at_its_draw_times_their_number():
    """With images of 1 to 5 captions, some of which they share: one draw each, in the order of the batch."""
    choices = [tuple("abcdefg"[i % 3 : i % 3 + 1 + i % 5]) for i in range(300)]
    tokens = Tokens.of(Captions(choices), letters)
    assert len(tokens) == 300 and len(tokens.table) == len(set("".join(map("".join, choices))))
    indices = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:200]
    seen = set()
    for seed in range(50):
        torch.manual_seed(seed)
        draws = zip(indices.tolist(), torch.rand(200).tolist(), strict=True)
        expected = [choices[i][int(u * len(choices[i]))] for i, u in draws]
        torch.manual_seed(seed)
        assert torch.equal(tokens[indices], letters(expected))
        seen |= {*zip(indices.tolist(), expected, strict=True)}
    assert seen == {(i, caption) for i in indices.tolist() for caption in choices[i]}


def test_the_largest_draw_is_the_last_caption_however_many_there_are(monkeypatch):
    tokens = Tokens.of(Captions([tuple("abcdefgh"[:n]) for n in range(1, 9)]), letters)
    largest = 1 - 2**-24
    monkeypatch.setattr(torch, "rand", lambda n, device: torch.full((n,), largest, device=device))
    assert drawn(tokens) == [*"abcdefgh"]


def test_tokens_and_columns_move_whole_to_a_device():
    meta = torch.device("meta")
    tokens = Tokens.of(Captions([("a", "b"), ("c",)]), letters)
    z, moved = Columns(torch.zeros(2, 3), tokens).to(meta).columns
    assert {x.device for x in (z, moved.table, moved.choices, moved.counts)} == {meta}
    assert moved.table.shape == (3, 2) and moved.choices.shape == (2, 2)
    assert torch.equal(tokens.to(torch.device("cpu")).choices, tokens.choices)


def test_columns_are_indexed_together():
    z, tokens = torch.arange(4), Tokens.of(Captions([(word,) for word in "abcd"]), letters)
    batch = Columns(z, tokens)[torch.tensor([3, 1])]
    assert batch[0].tolist() == [3, 1] and torch.equal(batch[1], letters(["d", "b"]))
    assert len(Columns(z)) == len(Columns(z, tokens)) == 4


def test_a_caption_is_dropped_where_the_draw_is_below_the_share(monkeypatch):
    """Its tokens are then those of ""."""
    monkeypatch.setattr(torch, "rand", lambda n, device: torch.arange(n) / 4)  # 0, 0.25, 0.5, 0.75
    tokens = letters(["a", "be", "ca", "d"])
    assert torch.equal(drop_captions(tokens, 0.0), tokens)
    assert torch.equal(drop_captions(tokens, 0.5), letters(["", "", "ca", "d"]))
    assert torch.equal(drop_captions(tokens, 1.0), letters([""] * 4))


def test_dropped_tokens_are_those_of_the_empty_caption():
    captions = [f"a {colour} ring" for colour in ("red", "blue", "green")] * 20
    encode = Tokenizer.from_captions(captions, 4).encode
    torch.manual_seed(0)
    dropped = (torch.rand(60) < 0.4).tolist()
    torch.manual_seed(0)
    expected = encode(["" if d else c for c, d in zip(captions, dropped, strict=True)])
    assert torch.equal(drop_captions(encode(captions), 0.4), expected)
    assert 10 < sum(dropped) < 40 and expected.dtype == torch.long


def test_uint8_and_float_are_inverse():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values).min() == -1 and to_float(values).max() == 1
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_floats_are_rounded_to_the_nearest_pixel_value():
    x = torch.tensor([-1.0, -0.997, 0.0005, 0.995, 1.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 254, 255]
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx(
        [-1, -0.6, 1]
    )


def test_captions_are_drawn_evenly_and_the_first_is_the_complete_one():
    captions = Captions([("a", "b", "c", "d")] * 20_000 + [("e",)])
    assert len(captions) == 20_001
    assert captions.full() == ["a"] * 20_000 + ["e"]
    assert captions.all() == [*"abcd"] * 20_000 + ["e"]
    torch.manual_seed(0)
    one_each = drawn(Tokens.of(captions, letters))
    assert one_each[-1] == "e"
    for letter in "abcd":
        assert abs(one_each.count(letter) / 20_000 - 0.25) < 0.02


def test_a_subset_keeps_image_caption_label_and_held_out_together():
    data = load("shapes", "validation", limit=40, held_out=True)
    part = data.subset(torch.tensor([31, 2, 7]))
    assert len(part) == 3 and part.names == data.names
    for i, j in enumerate((31, 2, 7)):
        assert torch.equal(part.images[i], data.images[j])
        assert part.captions.choices[i] == data.captions.choices[j]
        assert all(part.labels[name][i] == data.labels[name][j] for name in data.labels)
        assert part.held_out[i] == data.held_out[j] and part.origins[i] == data.origins[j]


# ---------------------------------------------------------------- shapes


def test_shapes_are_reproducible_and_their_splits_differ():
    one, two, other = (
        load("shapes", s, held_out=True) for s in ("validation", "validation", "test")
    )
    assert torch.equal(one.images, two.images) and one.captions.choices == two.captions.choices
    assert not torch.equal(one.images[:100], other.images[:100])
    assert one.images.shape == (1000, 3, 32, 32)


def test_shapes_pictures_have_the_colours_of_their_captions():
    dataset = load("shapes", "validation", resolution=64, limit=200)
    colours = torch.tensor(list(COLOURS.values()))
    backgrounds = torch.tensor(list(BACKGROUNDS.values()))
    for i in range(200):
        pixels = dataset.images[i].long().permute(1, 2, 0)
        assert torch.equal(pixels[0, 0], backgrounds[dataset.labels["background"][i]])
        colour = colours[dataset.labels["colour"][i]]
        area = (pixels == colour).all(-1).sum()
        assert area > 20, dataset.captions.full()[i]
        words = [names[dataset.labels[key][i]] for key, names in dataset.names.items()]
        assert all(word in dataset.captions.full()[i].split() for word in words)


def test_shapes_held_out_figures_are_never_in_training():
    dataset = load("shapes", "train", limit=3000)
    pairs = [f"{colour} {shape}" for shape, colour in HELD_OUT]
    assert not any(pair in caption for caption in dataset.captions.full() for pair in pairs)
    assert load("shapes", "validation", held_out=True).held_out.any()


def painted(shape: str, size: str = "large") -> np.ndarray:
    """Where the figure is, bool (400, 400), painted at (200, 160) with radius 88 or 52."""
    canvas = np.zeros((400, 400, 3), dtype=np.uint8)
    draw_figure(canvas, Figure(size, "yellow", shape, 0.5, 0.4))
    mask = canvas.any(2)
    assert (canvas[mask] == COLOURS["yellow"]).all()
    return mask


@pytest.mark.parametrize(("size", "r"), [("large", 88), ("small", 52)])
def test_figures_have_their_form_their_radius_and_their_centre(size, r):
    y, x = np.mgrid[:400, :400] - np.array([160, 200])[:, None, None]
    side, distance = round(0.9 * r), np.hypot(x, y)
    square = np.maximum(abs(x), abs(y)) <= side
    triangle = (abs(y) <= r) & (2 * abs(x) <= y + r)  # the point above
    exact = {
        "square": square,
        "triangle": triangle,
        "circle": distance <= r,
        "ring": abs(distance - 0.8 * r) <= 0.2 * r,
    }
    tolerance = {"square": 0, "triangle": 1, "circle": 1, "ring": 2}  # of the outline, in pixels
    for shape, expected in exact.items():
        mask = painted(shape, size)
        assert (mask != expected).sum() <= tolerance[shape] * 2 * np.pi * r, shape


def test_scenes_are_one_figure_in_the_middle_or_two_that_stand_as_the_caption_says():
    scenes = [random_scene(np.random.default_rng(i)) for i in range(3000)]
    single = [scene for scene in scenes if len(scene.figures) == 1]
    assert abs(len(single) / 3000 - 0.5) < 0.03
    for scene in single:
        (figure,) = scene.figures
        assert scene.caption == f"a {figure} on a {scene.background} background"
    centres = np.array([(s.figures[0].x, s.figures[0].y) for s in single]) - 0.5
    assert 0.045 < abs(centres).max() <= 0.05 and abs(centres.mean(0)).max() < 0.005
    assert {s.figures[0].size for s in single} == {"small", "large"}
    relations = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
    seen = set()
    for scene in (scene for scene in scenes if len(scene.figures) == 2):
        large, small = scene.figures
        assert (large.size, small.size) == ("large", "small")
        relation = scene.caption.removeprefix(f"a {large} ").partition(" a ")[0]
        assert scene.caption == f"a {large} {relation} a {small} on a {scene.background} background"
        for figure, share in ((large, 0.22), (small, -0.28)):
            expected = [0.5 + share * d for d in relations[relation]]
            assert [figure.x, figure.y] == pytest.approx(expected, abs=0.05)
        seen.add(relation)
    assert seen == set(relations)


def test_colours_in_rgb_look_like_their_words():
    """Which of red, green and blue are strong in a colour: "red" and "blue" are not swapped."""
    strong = {"red": "r", "green": "g", "blue": "b", "yellow": "rg", "purple": "rb", "white": "rgb"}
    for word, rgb in COLOURS.items():
        assert (
            "".join(c for c, v in zip("rgb", rgb, strict=True) if v > 0.6 * max(rgb))
            == strong[word]
        )
    assert max(BACKGROUNDS["black"]) < 20 and set(BACKGROUNDS["grey"]) == {120}
    red, green, blue = BACKGROUNDS["brown"]
    assert red > green > blue


def test_every_shape_colour_and_background_is_drawn_as_often_as_the_others():
    scenes = [random_scene(np.random.default_rng(i)) for i in range(3000)]
    figures = [figure for scene in scenes for figure in scene.figures]
    for values, names in (
        ([scene.background for scene in scenes], BACKGROUNDS),
        ([figure.colour for figure in figures], COLOURS),
        ([figure.shape for figure in figures], SHAPES),
    ):
        assert set(values) == set(names)
        assert max(abs(values.count(n) * len(names) / len(values) - 1) for n in names) < 0.15


def test_a_scene_is_painted_in_order_and_averaged_over_blocks_of_four_pixels():
    large, small = (
        Figure("large", "red", "square", 0.5, 0.5),
        Figure("small", "blue", "ring", 0.6, 0.5),
    )
    canvas = np.full((64, 64, 3), BACKGROUNDS["brown"], dtype=np.uint8)
    for figure in (large, small):
        draw_figure(canvas, figure)
    blocks = canvas.reshape(16, 4, 16, 4, 3).mean((1, 3))
    picture = draw_scene(Scene("brown", (large, small), ""), 16)
    assert picture.dtype == np.uint8 and abs(picture - blocks).max() <= 0.5


def test_a_scene_is_held_out_for_any_of_its_figures():
    plain, held_out = (Figure("large", colour, "circle", 0, 0) for colour in ("red", "green"))
    for figures, expected in (
        ((plain,), False),
        ((held_out,), True),
        ((plain, held_out), True),
        ((plain, plain), False),
    ):
        assert Scene("black", figures, "").held_out == expected
    assert {shape for shape, _ in HELD_OUT} == set(SHAPES)


def test_shapes_are_those_that_the_committed_classifier_was_trained_on():
    """Other colours or other scenes are another dataset: its classifier is then to be trained anew."""
    rngs = (np.random.default_rng((split, i)) for split in range(3) for i in range(100))
    captions = [random_scene(rng).caption for rng in rngs]
    pinned = json.dumps([COLOURS, BACKGROUNDS, RADII, HELD_OUT, captions])
    assert (
        sha256(pinned.encode())
        == "8ce075b03cc1f9f9bc5e5d08c789475d213a0274590a41ac07a2ba9a6836bf28"
    )


def test_labels_of_shapes_are_those_of_the_first_figure_of_the_caption():
    data = load("shapes", "test", limit=200)
    for i, caption in enumerate(data.captions.full()):
        _, _, colour, shape, *_ = caption.split()
        background = caption.split()[-2]
        told = {name: data.names[name][data.labels[name][i]] for name in data.names}
        assert told == {"class": shape, "colour": colour, "background": background}


def test_splits_of_shapes_have_the_sizes_that_the_readme_names(monkeypatch):
    pixel = np.zeros((1, 1, 3), dtype=np.uint8)
    monkeypatch.setattr(
        importlib.import_module("tinyldm.data.shapes"), "draw_scene", lambda *a: pixel
    )
    sizes = [len(load("shapes", split, held_out=True)) for split in SPLITS]
    assert sizes == [20_000, 1_000, 2_000]


# ---------------------------------------------------------------- conditions


def test_cannys_thresholds_are_100_and_200():
    rng = np.random.default_rng(0)
    pictures = cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 40)).astype(np.uint8), (0, 0), 1.2)
    pictures = torch.from_numpy(pictures).permute(2, 0, 1)
    ours = canny(pictures[:, None])[:, 0]

    def theirs(low: float, high: float) -> torch.Tensor:
        edges = [cv2.Canny(picture.numpy(), low, high) > 0 for picture in pictures]
        return torch.from_numpy(np.stack(edges))

    assert torch.equal(ours, theirs(100, 200))
    for low, high in ((99, 200), (102, 200), (100, 199), (100, 202)):  # a gradient is even
        assert not torch.equal(ours, theirs(low, high))


def test_a_silhouette_is_what_is_brighter_than_a_tenth_of_white():
    rows = torch.tensor([[25, 25, 25], [26, 26, 26], [76, 0, 0], [0, 77, 0]], dtype=torch.uint8)
    assert silhouette(rows[:, :, None, None]).flatten().tolist() == [False, True, False, True]


@pytest.mark.parametrize("channels", [1, 3])
def test_canny_is_opencvs(channels):
    images = to_uint8(torch.rand(2, channels, 32, 32) * 2 - 1)
    images[:, :, 8:24, 8:24] = 255
    hints = canny(images)
    assert hints.shape == (2, 1, 32, 32) and hints.dtype == torch.bool
    assert set(hints.unique().tolist()) == {False, True}
    for image, hint in zip(images, hints, strict=True):
        picture = image.permute(1, 2, 0).numpy().copy()
        assert np.array_equal(cv2.Canny(picture, 100, 200) > 0, hint[0].numpy())


def test_a_cached_hint_belongs_to_its_image_through_every_batch():
    """No augmentation follows the hint: image, latent and hint are always indexed together."""
    data = load("shapes", "validation", limit=50)
    tokens = Tokens.of(data.captions, Tokenizer.from_captions(data.captions.all(), 16).encode)
    columns = Columns(data.images, hints_of(canny, data.images), tokens)
    batch, hints, _ = columns[torch.randperm(50)]
    assert hints.dtype == torch.bool
    assert torch.equal(hints, canny(batch))
    assert not torch.equal(hints, canny(batch.flip(3)))


def test_canny_is_white_on_black_on_the_border_of_a_square():
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = 255
    hint = canny(images)[0, 0]
    assert not hint[0, 0] and not hint[16, 16]
    assert hint[16, 7:9].any() and hint.sum() < 80


def test_a_silhouette_is_where_something_is():
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[:, 1, 8:24, 8:24] = 255  # green alone
    assert silhouette(images)[0, 0, 16, 16] and silhouette(images).sum() == 16 * 16
    assert not silhouette(torch.full_like(images, 20)).any()


@pytest.mark.parametrize("held_out", [False, True])
def test_a_limit_draws_only_the_first_images_that_are_wanted(monkeypatch, held_out):
    shapes_file, drawn = importlib.import_module("tinyldm.data.shapes"), []
    draw = shapes_file.draw_scene
    monkeypatch.setattr(shapes_file, "draw_scene", lambda *a: drawn.append(a) or draw(*a))
    few = load("shapes", "validation", limit=64, held_out=held_out)
    assert len(few) == len(drawn) == 64
    whole = load("shapes", "validation", held_out=held_out)
    assert torch.equal(few.images, whole.images[:64])
    assert few.captions.choices == whole.captions.choices[:64]


def test_nothing_is_updated_on_the_users_machine_to_fetch_the_data(tmp_path, monkeypatch):
    commands = []

    def fail(command, **settings):
        commands.append(command)
        raise subprocess.CalledProcessError(100, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(subprocess.CalledProcessError):
        fashion.SOURCES[DEBIAN](tmp_path)
    assert commands == [["apt-get", "download", "dataset-fashion-mnist"]]
    assert "apt-get update" in fashion.REMEDY


def test_debians_package_is_unpacked_and_nothing_else_is_left(tmp_path, monkeypatch):
    """apt-get and dpkg-deb are replaced by what they write."""

    def write(command, cwd, **settings):
        assert settings == {"check": True, "capture_output": True, "timeout": 120}
        if command[0] == "apt-get":
            (cwd / "data_1_all.deb").write_bytes(b"package")
        else:
            assert command == ["dpkg-deb", "-x", "data_1_all.deb", "package"]
            place = cwd / "package" / "usr" / "share" / "datasets" / "fashion-mnist"
            place.mkdir(parents=True)
            for name in fashion.FILES:
                (place / f"{name}.gz").write_bytes(name.encode())

    monkeypatch.setattr(subprocess, "run", write)
    fashion.SOURCES[DEBIAN](tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {f"{name}.gz": name.encode() for name in fashion.FILES}


def test_damaged_files_are_fetched_from_the_next_source_and_at_last_from_none(
    monkeypatch, cache, capfd
):
    def damaged(folder):
        for name in fashion.FILES:
            (folder / name).write_bytes(b"half")

    ask(monkeypatch, damaged, damaged)
    failures = [f"{source} (UserError)" for source in (fashion.MIRROR, DEBIAN)]
    assert fetch_fashion() == failures
    assert not [*cache.iterdir()]
    said = [f"fashion-mnist: fetching from {s}" for s in (fashion.MIRROR, DEBIAN)]
    assert capfd.readouterr().out.splitlines() == said


@pytest.mark.parametrize(("growth", "enough"), [(2**16, True), (2**16 - 1, False)])
def test_a_download_goes_on_while_it_grows_by_64_kib_at_a_time(
    tmp_path, monkeypatch, growth, enough
):
    rounds = iter(range(5))

    def pass_the_time(futures, seconds):
        assert seconds == fetch_file.SILENCE
        left = [*futures] if next(rounds, None) is not None else []
        with open(tmp_path / "part", "ab") as file:
            file.write(b"x" * growth)
        return SimpleNamespace(not_done=left)

    monkeypatch.setattr(fetch_file, "wait", pass_the_time)
    with contextlib.nullcontext() if enough else pytest.raises(TimeoutError):
        fetch_file.watched(lambda folder: None, tmp_path)
    assert len([*rounds]) == (0 if enough else 4)


@pytest.mark.slow
def test_debians_package_gives_the_four_files(tmp_path):
    fashion.SOURCES[DEBIAN](tmp_path)
    for name, checksum in fashion.FILES.items():
        read_idx(tmp_path / name, checksum)
    assert not list(tmp_path.glob("*.deb"))
