"""`emoji`: Noto Color Emoji in eight colours: the outline fixes the shape, the caption the colour."""

import hashlib
import io
import os
import re
import struct
from collections.abc import Iterable, Iterator
from csv import DictReader
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from tinyldm.data.colour import COLOURFUL, HUES, recolour
from tinyldm.data.dataset import Captions, Dataset
from tinyldm.data.fetch import Source, cache, fetch, from_debian
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.support.progress import progress

FONT = "NotoColorEmoji.ttf"
INSTALLED = Path("/usr/share/fonts/truetype/noto")  # by Debian's package
FOLDERS = (
    *(Path("/usr/share/fonts"), Path("/usr/local/share/fonts")),
    *(Path("~/.local/share/fonts"), Path("~/.fonts")),
)
SOURCES: dict[str, Source] = {
    "apt-get download fonts-noto-color-emoji": from_debian("fonts-noto-color-emoji", INSTALLED)
}
REMEDY = (
    f"set TINYLDM_DATA, or --data-dir where there is one, to a folder with the bitmap font {FONT} "
    "(https://github.com/googlefonts/noto-emoji, fonts/), "
    "or install it with 'apt-get update && apt-get install fonts-noto-color-emoji'; "
    "'train_base.py --dataset shapes' needs no files"
)
SIZE, WIDTH, HEIGHT = 109, 136, 128  # of the font's bitmaps
CHECKSUM = 0xB1B0AFBA  # of every TrueType file: the sum of its 32-bit words
COLOURED = 0.3  # share of a drawing that must be
NAMES_FILE = Path(__file__).with_name("emoji.tsv")

KINDS = {  # word -> subgroups of Unicode
    "face": (
        *("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical"),
        *("face-sleepy", "face-unwell", "face-hat", "face-glasses", "face-concerned"),
        *("face-negative", "face-costume"),
    ),
    "animal": ("cat-face", "monkey-face", "animal-mammal", "animal-amphibian", "animal-reptile"),
    "bird": ("animal-bird",),
    "sea animal": ("animal-marine", "food-marine"),
    "bug": ("animal-bug",),
    "flower": ("plant-flower",),
    "plant": ("plant-other",),
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "dish": ("food-prepared", "food-asian", "dishware"),
    "dessert": ("food-sweet",),
    "drink": ("drink",),
    "landscape": ("place-map", "place-geographic", "place-other"),
    "building": ("place-building", "place-religious"),
    "vehicle": ("transport-ground",),
    "ship": ("transport-water",),
    "aircraft": ("transport-air",),
    "clock": ("time",),
    "sky": ("sky & weather",),
    "decoration": ("event", "award-medal"),
    "toy": ("sport", "game", "arts & crafts"),
    "garment": ("clothing",),
    "musical instrument": ("sound", "music", "musical-instrument"),
    "machine": ("phone", "computer", "light & video"),
    "book": ("book-paper", "office"),
    "letter": ("mail", "writing"),
    "banknote": ("money",),
    "tool": ("tool", "lock", "science", "medical"),
    "household thing": ("household", "hotel", "other-object"),
    "heart": ("heart",),
    "sign": ("transport-sign", "warning", "emotion", "punctuation", "currency", "other-symbol"),
    "arrow": ("arrow",),
    "button": ("av-symbol", "alphanum", "keycap", "math", "gender", "religion", "zodiac"),
    "shape": ("geometric",),
}
KIND_OF = {subgroup: kind for kind, subgroups in KINDS.items() for subgroup in subgroups}
COLOURS = tuple(HUES)
NAMES = {"class": tuple(KINDS), "colour": COLOURS}
HELD_OUT = (  # never trained on
    *(("bird", "purple"), ("fruit", "cyan"), ("building", "green")),
    *(("vehicle", "orange"), ("clock", "pink")),
)
SPLITS = {0: "test", 1: "validation"}  # of ten parts; the others are for training
SHADES = re.compile(
    rf"\b(light |dark )?({'|'.join([*COLOURS, 'black', 'white', 'grey', 'brown'])})\b"
)
ALIKE = {"closed book": "book"}  # names of one drawing in several colours


class Emoji(NamedTuple):
    """A character that is drawn."""

    character: str
    kind: str
    name: str  # without words of colour

    @property
    def origin(self) -> int:
        """A stable hash of the name, which characters that differ in colour only share."""
        digest = hashlib.sha256(ALIKE.get(self.name, self.name).encode()).digest()
        return int.from_bytes(digest[:7], "big")

    @property
    def split(self) -> str:
        """Its split: the same in every colour, whatever else the font has."""
        return SPLITS.get(self.origin % 10, "train")


@lru_cache(maxsize=1)
def read_names() -> tuple[Emoji, ...]:
    """What emoji.tsv lists, in an order that mixes the kinds."""
    lines = NAMES_FILE.read_text(encoding="utf-8").splitlines()
    rows = DictReader((line for line in lines if not line.startswith("#")), delimiter="\t")
    found = [
        Emoji(
            chr(int(row["code"], 16)),
            KIND_OF[row["subgroup"]],
            " ".join(SHADES.sub("", row["name"]).split()),
        )
        for row in rows
    ]
    return tuple(sorted(found, key=lambda each: each.origin))


# ---------------------------------------------------------------- the font


def find_font(data_dir: Path | None = None) -> Path:
    """The font: in `data_dir` only, if given; else in $TINYLDM_DATA, the system's folders, the cache.

    Fetches it into the cache if it is in none. Raises UserError with every place tried and the remedies.
    """
    folder = data_dir or os.environ.get("TINYLDM_DATA")
    named = [Path(folder)] if folder else []
    folders = named if data_dir else [*named, *map(home, FOLDERS), cache("emoji")]
    failures: list[str] = []
    if not (found := next(fonts(folders), None)) and not data_dir:
        failures = fetch("emoji", SOURCES, read_font)
        found = next(fonts(folders), None)
    if found:
        return found
    tried = ", ".join([*map(str, folders), *failures])
    raise UserError(f"{FONT} not found in {tried}; {REMEDY}")


def font_checksum(data_dir: Path | None = None) -> str:
    """The sha256 of the font, which identifies the drawings. Raises UserError."""
    return files.sha256(find_font(data_dir))


def home(folder: Path) -> Path:
    """`folder` with ~ replaced, where there is a home."""
    return Path(os.path.expanduser(folder))


def fonts(folders: Iterable[Path]) -> Iterator[Path]:
    """Every file with the font's name in or below these folders, in a stable order."""
    for folder in folders:
        for root, below, names in os.walk(folder):
            below.sort()
            if FONT in names and os.path.isfile(path := Path(root, FONT)):
                yield path


def read_font(folder: Path) -> ImageFont.FreeTypeFont:
    """The font in a folder, checked. Raises UserError if it is damaged or has no bitmaps of SIZE."""
    path = folder / FONT
    content = files.read(path, REMEDY)
    words = np.frombuffer(content + b"\0" * (-len(content) % 4), ">u4")
    if int(words.sum(dtype=np.uint64)) % 2**32 != CHECKSUM:
        raise UserError(f"{path}: checksum differs, the font is damaged; {REMEDY}")
    with files.expecting("a TrueType font", path, REMEDY, struct.error):
        (number,) = struct.unpack(">H", content[4:6])
        tables = {content[12 + 16 * i : 16 + 16 * i] for i in range(number)}
        if b"CBDT" in tables:
            return ImageFont.truetype(io.BytesIO(content), SIZE)
    raise UserError(f"{path}: has no coloured bitmaps (table CBDT); {REMEDY}")


# ---------------------------------------------------------------- drawing


def draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """A drawing, (136, 136, 4) uint8 RGBA, as the font has it."""
    picture = Image.new("RGBA", (WIDTH, WIDTH), (255, 255, 255, 0))
    corner = (0, (WIDTH - HEIGHT) // 2)
    ImageDraw.Draw(picture).text(corner, character, font=font, embedded_color=True)
    return np.asarray(picture)


def flatten(picture: np.ndarray) -> np.ndarray:
    """RGBA (H, W, 4) -> RGB (H, W, 3) on white, uint8."""
    colour, alpha = picture[..., :3].astype(np.float32), picture[..., 3:] / np.float32(255)
    return (colour * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def coloured_share(picture: np.ndarray) -> float:
    """Share of the drawing RGBA (H, W, 4) that has a colour; 0 where nothing is drawn."""
    drawn = picture[..., 3] > 127
    chroma = np.ptp(flatten(picture), axis=-1)[drawn]
    return float((chroma > 255 * COLOURFUL).mean()) if drawn.any() else 0.0


@lru_cache(maxsize=1)
def drawings(path: Path) -> dict[Emoji, np.ndarray]:
    """RGB (136, 136, 3) uint8 on white of every emoji that is coloured enough. Raises UserError."""
    font, found = read_font(path.parent), {}
    for each in progress(read_names(), desc="emoji", unit="drawing", leave=False):
        with files.expecting("an undamaged font", path, REMEDY):
            picture = draw(font, each.character)
        if coloured_share(picture) >= COLOURED:
            found[each] = flatten(picture)
    if len({each.split for each in found}) < 3:
        raise UserError(f"{path}: draws too few coloured emoji; {REMEDY}")
    return found


def view(picture: np.ndarray, resolution: int, character: str, number: int) -> np.ndarray:
    """View `number` of a drawing (H, H, 3), scaled to (resolution, resolution, 3); 0 is the drawing itself.

    Any other is flipped or not, turned by up to 15 degrees, scaled by 0.8 to 1.05 and shifted by up to 4 %,
    all drawn by (character, number) alone.
    """
    if number:
        rng, size = np.random.default_rng((ord(character), number)), len(picture)
        picture = picture[:, ::-1] if rng.random() < 0.5 else picture
        centre, angle, scale = (size / 2, size / 2), rng.uniform(-15, 15), rng.uniform(0.8, 1.05)
        matrix = cv2.getRotationMatrix2D(centre, angle, scale)
        matrix[:, 2] += rng.uniform(-0.04, 0.04, 2) * size
        white = (255, 255, 255)
        picture = cv2.warpAffine(
            np.ascontiguousarray(picture),
            matrix,
            (size, size),
            flags=cv2.INTER_CUBIC,
            borderValue=white,
        )
    return cv2.resize(picture, (resolution, resolution), interpolation=cv2.INTER_AREA)


# ---------------------------------------------------------------- captions


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@lru_cache(maxsize=2**14)
def emoji_captions(emoji: Emoji, colour: str) -> tuple[str, ...]:
    """Every caption of an emoji in a colour; first the complete one."""
    kind, name = f"{colour} {emoji.kind}", f"{colour} {emoji.name}"
    return (
        *(a(kind), f"a drawing of {a(kind)}", f"an emoji of {a(kind)}", kind),
        *(a(name), f"a drawing of {a(name)}"),
        *(a(emoji.kind), f"a drawing of {a(emoji.kind)}", f"something {colour}"),
    )


def emoji(
    split: str, resolution: int, data_dir: Path | None, limit: int, held_out: bool, views: int = 1
) -> Dataset:
    """Noto Color Emoji in eight colours (n, 3, H, H), on white: 799 drawings, 113 and 113, split by drawing.

    Labels: class (the kind of thing, from Unicode's subgroup) and colour, which is that of the caption.
    People, flags and drawings that are less than 30 % coloured are left out. Held out are the pairs of
    HELD_OUT. Images are ordered by view, drawing and colour: the training split has every drawing as it is,
    then again in each of the other `views`, see `view`. Raises UserError.
    """
    if resolution > HEIGHT:
        most = f"the drawings of {FONT} are {HEIGHT} pixels high; give at most that"
        raise UserError(f"--resolution {resolution}: {most}")
    every = drawings(find_font(data_dir))
    numbers = range(views if split == "train" else 1)
    chosen = [(e, v) for v in numbers for e in every if e.split == split]
    classes = torch.tensor([NAMES["class"].index(e.kind) for e, _ in chosen])
    origins = torch.tensor([e.origin for e, _ in chosen])
    out = torch.tensor([[(k, c) in HELD_OUT for c in COLOURS] for k in KINDS])[classes]  # (n, 8)
    rows, colours = (~out | held_out).nonzero()[: limit or None].T
    chosen = chosen[: int(rows.max()) + 1]
    pictures = [
        torch.from_numpy(view(every[e], resolution, e.character, v))
        for e, v in progress(chosen, desc="draw", unit="drawing", leave=False)
    ]
    parts = rearrange(pictures, "n H W k -> n k H W").split(250)  # what fits a small memory
    kept = (~out | held_out)[: len(chosen)].split(250)
    images = [recolour(part)[keep] for part, keep in zip(parts, kept, strict=True)]  # (n, 3, H, H)
    pairs = zip(rows.tolist(), colours.tolist(), strict=True)
    return Dataset(
        images=torch.cat(images)[: len(rows)],
        captions=Captions([emoji_captions(chosen[i][0], COLOURS[c]) for i, c in pairs]),
        labels={"class": classes[rows], "colour": colours},
        names=NAMES,
        held_out=out[rows, colours],
        origins=origins[rows],
    )
