"""Fashion-MNIST: finding, checking and reading its files, and the sentences made from its labels."""

import gzip
import hashlib
import io
import os
import tempfile
import zlib
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor
from torchvision.transforms.v2 import functional as transforms

from tinyldm.data.dataset import Captions, Dataset
from tinyldm.data.fetch import cache, fetch, from_debian, from_mirror
from tinyldm.support import files
from tinyldm.support.errors import UserError

FILES = {  # sha256 of the decompressed bytes
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MOST = 2**26  # bytes, decompressed
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # torchvision's
INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # by Debian's package
SOURCES = {
    MIRROR: from_mirror(MIRROR, [f"{name}.gz" for name in FILES]),
    "apt-get download dataset-fashion-mnist": from_debian("dataset-fashion-mnist", INSTALLED),
}
REMEDY = (
    "set TINYLDM_DATA, or --data-dir where there is one, to a folder with its four idx files "
    "(https://github.com/zalandoresearch/fashion-mnist), "
    "or install them with 'apt-get update && apt-get install dataset-fashion-mnist'; "
    "'train_base.py --dataset shapes' needs no files"
)


def read_idx(path: Path, sha256: str) -> Tensor:
    """The uint8 tensor in PATH or PATH.gz, once its decompressed bytes are checked. Raises UserError."""
    path = path if os.path.isfile(path) else path.with_name(f"{path.name}.gz")
    content = files.read(path, REMEDY)
    if path.suffix == ".gz":
        with files.expecting("a gzip file", path, REMEDY, zlib.error):
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MOST)
    if hashlib.sha256(content).hexdigest() != sha256:
        wrong = "checksum differs, the file is damaged or another dataset"
        raise UserError(f"{path}: {wrong}; {REMEDY}")
    with (
        files.expecting("an idx file", path, REMEDY),
        tempfile.TemporaryDirectory() as folder,  # torchvision reads a path, and no .gz
    ):
        unzipped = Path(folder) / "idx"
        unzipped.write_bytes(content)
        return read_sn3_pascalvincent_tensor(str(unzipped))


def holds_fashion_mnist(folder: Path) -> bool:
    """Whether the four are regular files there; False if the folder cannot be read."""
    paths = [(folder / name, folder / f"{name}.gz") for name in FILES]
    return all(any(map(os.path.isfile, either)) for either in paths)


def check(folder: Path) -> None:
    """Raise UserError unless all four are there and right."""
    for name, sha256 in FILES.items():
        read_idx(folder / name, sha256)


def find_fashion_mnist(data_dir: Path | None = None) -> Path:
    """The folder with the four files: --data-dir, $TINYLDM_DATA, torchvision's, Debian's, the cache.

    A place that was named must hold them; else they are fetched into the cache. Raises UserError with
    every place tried and the remedies.
    """
    named = data_dir or os.environ.get("TINYLDM_DATA")
    roots = [Path(named)] if named else [Path("data"), INSTALLED, cache("fashion-mnist")]
    folders = [folder for root in roots for folder in (root, root / "FashionMNIST" / "raw")]
    here = named or any(map(holds_fashion_mnist, folders))
    failures = [] if here else fetch("fashion-mnist", SOURCES, check)
    for folder in filter(holds_fashion_mnist, folders):
        return folder
    tried = ", ".join([*map(str, folders), *failures])
    raise UserError(f"Fashion-MNIST not found, or not readable, in {tried}; {REMEDY}")


# ---------------------------------------------------------------- labels and captions

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
CLASSES = tuple(noun.removeprefix("pair of ") for noun, _ in NOUNS)
TONE_WORDS = (("dark", "black"), ("grey", "gray"), ("light", "white"))
TONES = tuple(word for word, _ in TONE_WORDS)
TEMPLATES = ("a photo of {}", "{}", "a picture of {}", "a studio photo of {}")
VALIDATION = 5_000  # the last of the training file
HELD_OUT = (("dress", "grey"), ("bag", "light"), ("pullover", "dark"))  # never trained on


def brightness(images: Tensor) -> Tensor:
    """Mean brightness (n,) in 0..255 of the pixels that are not black, of images (n, H, W)."""
    return images.float().sum((1, 2)) / (images > 0).sum((1, 2)).clamp(min=1)


@lru_cache
def fashion_captions(class_index: int, tone: int) -> tuple[str, ...]:
    """Every caption of a class and tone: with the tone in all wordings first, then some that leave it open."""
    nouns, tones = NOUNS[class_index], TONE_WORDS[tone]
    article = "an" if nouns[0][0] in "aeiou" else "a"
    full = product(TEMPLATES, (f"a {tone} {noun}" for tone, noun in product(tones, nouns)))
    return tuple(t.format(x) for t, x in (*full, *product(TEMPLATES, [f"{article} {nouns[0]}"])))


@lru_cache(maxsize=1)
def read_all(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Images uint8 (n, 28, 28) and classes uint8 (n,) of each split."""
    x, y, *test = (read_idx(folder / name, sha256) for name, sha256 in FILES.items())
    return {
        "train": (x[:-VALIDATION], y[:-VALIDATION]),
        "validation": (x[-VALIDATION:], y[-VALIDATION:]),
        "test": (test[0], test[1]),
    }


def fashion_mnist(
    split: str, resolution: int, data_dir: Path | None, limit: int, held_out: bool
) -> Dataset:
    """Fashion-MNIST padded to 32 px, enlarged to `resolution`: train 55,000, validation 5,000, test 10,000.

    Labels: class (10) and tone, which Canny edges do not show: terciles, over the training images, of
    the garment's mean brightness. Held out are the pairs of HELD_OUT.
    """
    splits = read_all(find_fashion_mnist(data_dir))
    images, classes = splits[split][0], splits[split][1].long()
    terciles = torch.quantile(brightness(splits["train"][0]), torch.tensor([1 / 3, 2 / 3]))
    tones = torch.bucketize(brightness(images), terciles)
    out = torch.tensor([[(c, t) in HELD_OUT for t in TONES] for c in CLASSES])[classes, tones]
    wanted = (~out | held_out).nonzero()[: limit or None, 0]
    classes, tones = classes[wanted], tones[wanted]
    return Dataset(
        images=enlarge(images[wanted, None], resolution),
        captions=Captions(list(map(fashion_captions, classes.tolist(), tones.tolist()))),
        labels={"class": classes, "tone": tones},
        names={"class": CLASSES, "tone": TONES},
        held_out=out[wanted],
    )


def enlarge(images: Tensor, resolution: int) -> Tensor:
    """Images (n, 1, 28, 28) -> padded to 32 with black, then bilinearly enlarged, uint8."""
    images = transforms.pad(images, [2, 2, 2, 2])
    return images if resolution == 32 else transforms.resize(images, [resolution, resolution])
