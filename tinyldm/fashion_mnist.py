"""Fashion-MNIST: where it is found, how its files are read and checked, and the sentences made from its labels."""

import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
import urllib.request
import zlib
from functools import lru_cache
from http.client import HTTPException
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinyldm.dataset import Captions, Dataset
from tinyldm.errors import UserError

FILES = {  # sha256 of the decompressed bytes
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # the one that torchvision uses
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyldm" / "fashion-mnist"
REMEDY = (
    "give --data-dir a folder with its four idx files (https://github.com/zalandoresearch/fashion-mnist), "
    "or install them with 'apt-get install dataset-fashion-mnist'; '--dataset shapes' needs no files"
)


def read_bytes(path: Path) -> bytes:
    """The content of a file, unzipped if it ends in .gz. Raises UserError if it is not readable."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from error


def parse_idx(content: bytes, path: Path) -> Tensor:
    """The uint8 tensor in an idx file's bytes: 0, 0, 8 (uint8), rank, sizes as big-endian int32, data. Raises UserError."""
    rank = content[3] if len(content) > 3 else 0
    start = 4 + 4 * rank
    if content[:3] != b"\0\0\x08" or not rank or len(content) < start:
        raise UserError(f"{path}: not an idx file of bytes (wrong magic number); {REMEDY}")
    sizes = struct.unpack(f">{rank}i", content[4:start])
    if min(sizes) < 1 or len(content) - start != np.prod(sizes, dtype=object):
        raise UserError(f"{path}: header says {sizes}, but {len(content) - start} bytes follow; {REMEDY}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)


def read_idx(path: Path, sha256: str) -> Tensor:
    """The uint8 tensor in PATH or PATH.gz, its decompressed bytes checked. Raises UserError naming the file."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    content = read_bytes(path)
    tensor = parse_idx(content, path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: checksum differs, the file is damaged or another dataset; {REMEDY}")
    return tensor


def holds_fashion_mnist(folder: Path) -> bool:
    return all((folder / name).exists() or (folder / f"{name}.gz").exists() for name in FILES)


def fetch_from_mirror(folder: Path) -> None:
    """Download the four files from torchvision's mirror; gives up after 10 silent seconds."""
    for name in FILES:
        with urllib.request.urlopen(f"{MIRROR}{name}.gz", timeout=10) as response:
            (folder / f"{name}.gz").write_bytes(response.read())


def fetch_from_debian(folder: Path) -> None:
    """Unpack Debian's package dataset-fashion-mnist, without installing it and without root."""
    run = {"cwd": folder, "check": True, "capture_output": True, "timeout": 120}
    try:
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], **run)
    except subprocess.CalledProcessError:  # perhaps this machine has no package lists yet; updating them takes root
        subprocess.run(["apt-get", "update"], **run)
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], **run)
    package = next(folder.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", package.name, "package"], **run)
    for path in (folder / "package/usr/share/datasets/fashion-mnist").iterdir():
        path.rename(folder / path.name)
    package.unlink()
    shutil.rmtree(folder / "package")


def fetch(folder: Path) -> list[str]:
    """Put Fashion-MNIST into `folder`, complete or not at all; returns what was tried, and why it failed."""
    failures = []
    for source, get in ((MIRROR, fetch_from_mirror), ("apt-get download dataset-fashion-mnist", fetch_from_debian)):
        print(f"Fashion-MNIST: fetching from {source}", flush=True)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                part = Path(temporary) / "part"
                part.mkdir()
                get(part)
                for name, sha256 in FILES.items():
                    read_idx(part / name, sha256)
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)
                return failures
        except (OSError, HTTPException, subprocess.SubprocessError, StopIteration, UserError) as error:
            failures.append(f"{source} ({type(error).__name__})")
    return failures


def find_fashion_mnist(data_dir: Path | None = None) -> Path:
    """The folder with the four files: --data-dir, $TINYLDM_DATA, torchvision's, Debian's, else fetched into the cache.

    A place that was named must hold them. Raises UserError with every place tried and the remedies.
    """
    named = data_dir or os.environ.get("TINYLDM_DATA")
    roots = [Path(named)] if named else [Path("data"), Path("/usr/share/datasets/fashion-mnist"), CACHE]
    folders = [folder for root in roots for folder in (root, root / "FashionMNIST" / "raw")]
    for folder in folders:
        if holds_fashion_mnist(folder):
            return folder
    failures = [] if named else fetch(CACHE)
    if not named and holds_fashion_mnist(CACHE):
        return CACHE
    raise UserError(f"Fashion-MNIST not found in {', '.join([*map(str, folders), *failures])}; {REMEDY}")


# ---------------------------------------------------------------- labels and captions

CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
NOUNS = (
    ("t-shirt", "tee"),
    ("pair of trousers", "pair of pants"),
    ("pullover", "sweater"),
    ("dress", "gown"),
    ("coat", "overcoat"),
    ("sandal", "strappy sandal"),
    ("shirt", "blouse"),
    ("sneaker", "trainer"),
    ("bag", "handbag"),
    ("ankle boot", "boot"),
)
TONES = ("dark", "grey", "light")
TONE_WORDS = (("dark", "black"), ("grey", "gray"), ("light", "white"))
TEMPLATES = ("a photo of {}", "{}", "a picture of {}", "a studio photo of {}")
VALIDATION = 5_000  # the last of the training file
HELD_OUT = (("dress", "grey"), ("bag", "light"), ("pullover", "dark"))  # class and tone, never trained on


def brightness(images: Tensor) -> Tensor:
    """Mean brightness (n,) in 0..255 of the garment, that is of the pixels that are not black, of images (n, 1, H, W)."""
    return images.float().sum((1, 2, 3)) / (images > 0).sum((1, 2, 3)).clamp(min=1)


def fashion_captions(class_index: int, tone: int) -> tuple[str, ...]:
    """Every caption of a class and tone: with the tone in all wordings first, then some that leave it open."""
    nouns, tones = NOUNS[class_index], TONE_WORDS[tone]
    full = [t.format(f"a {adjective} {noun}") for t, adjective, noun in product(TEMPLATES, tones, nouns)]
    article = "an" if nouns[0][0] in "aeiou" else "a"
    return (*full, *(t.format(f"{article} {nouns[0]}") for t in TEMPLATES))


@lru_cache(maxsize=3)
def fashion_mnist(split: str, resolution: int = 32, data_dir: Path | None = None) -> Dataset:
    """Fashion-MNIST padded to 32 px, enlarged if `resolution` is more: train 55,000, validation 5,000, test 10,000 images.

    Labels: class (10) and tone, which Canny edges do not show: terciles, over the training images, of the garment's
    mean brightness. Held out are the pairs of HELD_OUT.
    """
    folder = find_fashion_mnist(data_dir)
    tensors = {name: read_idx(folder / name, sha256) for name, sha256 in FILES.items()}
    train, train_labels, test, test_labels = (tensor for tensor in tensors.values())
    terciles = torch.quantile(brightness(train[:-VALIDATION, None]), torch.tensor([1 / 3, 2 / 3]))
    whole = test if split == "test" else train
    part = {"train": slice(-VALIDATION), "validation": slice(-VALIDATION, None), "test": slice(None)}[split]
    images, classes = whole[part, None], (test_labels if split == "test" else train_labels)[part].long()
    tones = torch.bucketize(brightness(images), terciles)
    held_out = sum((classes == CLASSES.index(c)) & (tones == TONES.index(t)) for c, t in HELD_OUT).bool()
    table = {pair: fashion_captions(*pair) for pair in product(range(len(CLASSES)), range(len(TONES)))}
    captions = Captions([table[pair] for pair in zip(classes.tolist(), tones.tolist(), strict=True)])
    labels, names = {"class": classes, "tone": tones}, {"class": CLASSES, "tone": TONES}
    return Dataset(enlarge(images, resolution), captions, labels, names, held_out)


def enlarge(images: Tensor, resolution: int) -> Tensor:
    """Images (n, 1, 28, 28) -> padded to 32 with black, then bilinearly enlarged to `resolution`, uint8."""
    images = torch.nn.functional.pad(images, (2, 2, 2, 2))
    if resolution == 32:
        return images
    size = (resolution, resolution)
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
