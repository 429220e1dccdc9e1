"""A user's own folder of pictures, in the convention of Hugging Face's imagefolder.

Pictures, and perhaps metadata.jsonl or metadata.csv with `file_name` and `text`; without it the names of
class folders are captions.
"""

import csv
import hashlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import rgb_to_grayscale as grey

from tinyldm.data.dataset import Captions, Dataset
from tinyldm.data.hints import read_map
from tinyldm.data.pictures import centred, fitted, flattened, open_picture
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.support.progress import progress

METADATA = ("metadata.jsonl", "metadata.csv")
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
SPLITS = {"train", "training", "test", "val", "valid", "validation", "dev"}  # others' names of them
SHARES = {"train": 80, "validation": 10, "test": 10}  # per cent
FILE, TEXT, HINT = "file_name", "text", "conditioning_image_file_name"
MOST = 2**30  # bytes of metadata
NAMED = 5  # of the pictures that are left out


class Item(NamedTuple):
    """A picture of a folder."""

    name: str  # its path in the folder, with "/"
    caption: str  # "" is the null caption
    kind: str  # the class folder that it lies in, or ""
    hint: str  # the name of its conditioning picture, or ""


# ---------------------------------------------------------------- what is there


def number_of(name: str) -> int:
    """A hash of a picture's name."""
    return int(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest(), 16)


def split_of(name: str) -> str:
    """The split of a picture: by its number, so that it stays when others come or go."""
    percent = number_of(name) % 100
    return next(s for i, s in enumerate(SHARES) if percent < sum([*SHARES.values()][: i + 1]))


def inside(folder: Path, name: object, column: str, where: str) -> str:
    """A name in the folder, as it is given in the metadata. Raises UserError for any other."""
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: no {column}; give the name of a picture in {folder}")
    path = folder / name
    with files.expecting(f"a {column}", Path(where), "mend the name or remove the line"):
        if os.path.isabs(name) or not files.real(path).is_relative_to(files.real(folder)):
            raise UserError(f"{where}: {column} {name!r} lies outside of {folder}; move it there")
        if not path.is_file():
            raise UserError(
                f"{where}: there is no picture {path}; mend the name or remove the line"
            )
    return Path(os.path.normpath(name)).as_posix()


def json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(Where it stands, row) of metadata.jsonl."""
    for i, line in enumerate(text.split("\n"), 1):  # captions may have other breaks
        where = f"{path}, line {i}"
        if line.strip():
            with files.expecting("a line of JSON", Path(where), "mend or remove it"):
                row = json.loads(line)
            if not isinstance(row, dict):
                raise UserError(f"{where}: not a JSON object; mend or remove it")
            yield where, row


def csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(Where it stands, row) of metadata.csv."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    with files.expecting("a table", path, "mend its quotes", csv.Error):
        if FILE not in (names := reader.fieldnames or []):
            remedy = "name it in the first line, and separate columns by commas"
            raise UserError(f"{path}: has no column {FILE} (but {', '.join(names)}); {remedy}")
        for row in reader:
            yield f"{path}, line {reader.line_num}", row


def metadata_rows(folder: Path) -> list[tuple[str, dict[str, Any]]] | None:
    """(Where it stands, row) of the folder's metadata; None if it has none. Raises UserError."""
    found = [folder / name for name in METADATA if (folder / name).exists()]
    if len(found) > 1:
        raise UserError(f"{folder}: has {found[0].name} and {found[1].name}; remove one")
    if not found:
        return None
    content = files.read(found[0], "give UTF-8 text", MOST)
    with files.expecting("UTF-8 text", found[0], "save it as UTF-8"):
        text = content.decode("utf-8-sig")
    return list((json_rows if found[0].suffix == ".jsonl" else csv_rows)(found[0], text))


def caption_of(row: dict[str, Any], where: str) -> str:
    """The caption of a row, "" where it is missing. Raises UserError if it is no text."""
    text = row.get(TEXT)
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {TEXT} is {text!r}, no text; put it in quotes")
    return (text or "").strip()


def items_of(folder: Path, hint_column: str = HINT) -> list[Item]:
    """The pictures that the metadata lists, else all, shuffled by their numbers. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"--dataset {folder}: no folder; give one with pictures")
    rows = metadata_rows(folder)
    found = unlisted(folder) if rows is None else listed(folder, rows, hint_column)
    if not found:
        remedy = f"give one with pictures ({', '.join(ENDINGS)})"
        raise UserError(f"--dataset {folder}: has no pictures; {remedy}")
    given = [bool(item.hint) for item in found]
    if any(given) and not all(given):
        raise UserError(
            f"{folder}: some pictures have a {hint_column} and some have not; give it to all"
        )
    if hint_column != HINT and not any(given):
        flag = f"--conditioning-image-column {hint_column}"
        raise UserError(f"{flag}: {folder} has no such column; name one of its metadata")
    return sorted(found, key=lambda item: number_of(item.name))


def listed(folder: Path, rows: list[tuple[str, dict[str, Any]]], hint_column: str) -> list[Item]:
    """Those of the metadata."""
    found: dict[str, Item] = {}
    for where, row in rows:
        name = inside(folder, row.get(FILE), FILE, where)
        if name in found:
            raise UserError(f"{where}: {name} is listed twice; remove one of the lines")
        hint = row.get(hint_column) or ""
        hint = inside(folder, hint, hint_column, where) if hint else ""
        found[name] = Item(name, caption_of(row, where), "", hint)
    return [*found.values()]


def unlisted(folder: Path) -> list[Item]:
    """All pictures; those in class folders are captioned "a photo of a CLASS". Raises UserError."""
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.name in METADATA and not hidden:
            raise UserError(f"{path}: metadata of a folder in it; give --dataset {path.parent}")
        if path.suffix.lower() in ENDINGS and path.is_file() and not hidden:
            kind = name.parts[0] if len(name.parts) > 1 else ""
            found.append(Item(name.as_posix(), caption_of_class(kind), kind, ""))
    kinds = {item.kind for item in found}
    if kinds and kinds <= SPLITS:
        inner = folder / ("train" if "train" in kinds else min(kinds))
        raise UserError(f"--dataset {folder}: its folders are splits; give --dataset {inner}")
    return found


def caption_of_class(kind: str) -> str:
    """The caption of a picture in a class folder; "" if it is in none."""
    article = "an" if kind[:1].lower() in tuple("aeiou") else "a"
    return f"a photo of {article} {kind.replace('_', ' ')}" if kind else ""


def folder_checksum(folder: Path, hint_column: str = HINT) -> str:
    """What identifies a folder: names, captions, and the sizes of pictures and hints."""
    text = hashlib.sha256()
    for item in items_of(folder, hint_column):
        sizes = [(folder / name).stat().st_size for name in (item.name, item.hint) if name]
        text.update(json.dumps([*item, *sizes]).encode())
    return text.hexdigest()


# ---------------------------------------------------------------- pictures


class Decoder:
    """Item i -> (i, its image uint8 (1, 3, H, H), its hint (1, 1, H, H)), or why there is none."""

    def __init__(self, folder: Path, items: Sequence[Item], resolution: int, ground: str):
        self.folder, self.items = folder, items
        self.resolution, self.ground = resolution, ground

    def __len__(self) -> int:
        return len(self.items)

    def read(self, name: str) -> Tensor:
        square = flattened(centred(open_picture(self.folder / name)), self.ground)
        return fitted(square, 3, self.resolution)

    def __getitem__(self, i: int) -> tuple[int, Tensor | str, Tensor | None]:
        item = self.items[i]
        try:
            hint = read_map(self.folder / item.hint, self.resolution) if item.hint else None
            return i, self.read(item.name), hint
        except UserError as error:
            return i, str(error), None


def stored(*size: int) -> Tensor:
    """A tensor uint8 in a file without a name, which takes no memory that the system cannot have back.

    Raises UserError if there is no room for it.
    """
    number = max(1, math.prod(size))
    with tempfile.TemporaryFile() as file:  # stays until the tensor is gone
        try:
            getattr(os, "posix_fallocate", lambda *_: None)(file.fileno(), 0, number)
        except OSError as error:
            where = f"$TMPDIR, {tempfile.gettempdir()}"
            raise UserError(
                f"{where}: no room for {number >> 20} MB; name another folder"
            ) from error
        content = np.memmap(file, np.uint8, "w+", shape=number)
    return torch.from_numpy(content)[: math.prod(size)].view(size)


def decoded(decoder: Decoder, workers: int) -> Iterator[tuple[int, Tensor | str, Tensor | None]]:
    """Every item, by as many processes."""
    loader: Any = DataLoader(decoder, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    yield from progress(loader, total=len(decoder), desc="pictures", unit="picture", leave=False)


def processes(pictures: int) -> int:
    """How many processes decode so many pictures; 0 is this one."""
    return min(8, os.cpu_count() or 1) if pictures > 500 else 0


def complain(failures: Sequence[str], skip: bool) -> None:
    """Tell of the pictures that cannot be read. Raises UserError unless they are to be skipped."""
    if failures and not skip:
        raise UserError(f"{failures[0]}; or give --skip-bad-images")
    for failure in failures[:NAMED]:
        print(f"warning: {failure}; it is skipped", file=sys.stderr)
    if len(failures) > NAMED:
        print(f"warning: {len(failures)} pictures are skipped in all", file=sys.stderr)


def is_grey(images: Tensor) -> bool:
    """Are images uint8 (n, 3, H, W) without colour?"""
    return all(bool((part == part[:, :1]).all()) for part in images.split(1000))


def as_grey(images: Tensor) -> Tensor:
    """Images uint8 (n, 3, H, W) -> (n, 1, H, W)."""
    return torch.cat([grey(part) for part in images.split(1000)])


@lru_cache(maxsize=3)
def read_split(
    folder: Path, split: str, resolution: int, limit: int, ground: str, column: str, skip: bool
) -> tuple[Tensor, Tensor | None, list[Item]]:
    """Images uint8 (n, 3, H, H), hints bool (n, 1, H, H) if the metadata names them, and their items."""
    items = [item for item in items_of(folder, column) if split_of(item.name) == split]
    items = items[: limit or None]
    decoder = Decoder(folder, items, resolution, ground)
    images, hints = stored(len(items), 3, resolution, resolution), None
    if items and items[0].hint:
        hints = stored(len(items), 1, resolution, resolution).view(torch.bool)
    kept, failures = list[Item](), list[str]()
    for i, image, hint in decoded(decoder, processes(len(items))):
        if isinstance(image, str):
            failures.append(image)
            continue
        images[len(kept)] = image[0]
        if hints is not None and hint is not None:
            hints[len(kept)] = hint[0]
        kept.append(items[i])
    complain(failures, skip)
    return images[: len(kept)], None if hints is None else hints[: len(kept)], kept


def tell(folder: Path, items: Sequence[Item], hints: Tensor | None) -> None:
    """Say how many captions are missing, and how many hints (n, 1, H, W) are empty."""
    missing = sum(not item.caption for item in items)
    empty = 0 if hints is None else int((~hints.flatten(1).any(1)).sum())
    for number, what in ((missing, "no caption"), (empty, "a hint without anything white")):
        if number:
            note = f"note: {number} of {len(items)} pictures of {folder} have {what}"
            print(note, file=sys.stderr)


def channels_of(
    folder: Path, resolution: int, limit: int, ground: str, column: str, skip: bool
) -> int:
    """1 if all training pictures of a folder are grey, else 3. Raises UserError."""
    images, *_ = read_split(folder, "train", resolution, limit, ground, column, skip)
    return 1 if is_grey(images) else 3


def folder_dataset(
    folder: Path,
    split: str,
    resolution: int,
    limit: int = 0,
    ground: str = "white",
    column: str = HINT,
    skip: bool = False,
    channels: int = 3,
) -> Dataset:
    """A split of a user's folder: the middle squares of its pictures, scaled, uint8 (n, k, H, H).

    Transparent pictures are put on `ground`. The label "class" is the class folder. Hints are those of `column`
    of the metadata. Raises UserError, naming file and line.
    """
    images, hints, items = read_split(folder, split, resolution, limit, ground, column, skip)
    if not items:
        raise UserError(f"--dataset {folder}: no picture in its {split} split; add pictures")
    tell(folder, items, hints)
    kinds = tuple(sorted({item.kind for item in items_of(folder, column)}))
    return Dataset(
        as_grey(images) if channels == 1 else images,
        Captions([(item.caption,) for item in items]),
        {"class": torch.tensor([kinds.index(item.kind) for item in items])},
        {"class": tuple(kind or "picture" for kind in kinds)},
        torch.zeros(len(items)) > 0,
        hints=hints,
    )
