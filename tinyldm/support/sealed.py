"""Folders with a manifest.json: written last, it holds the checksum of every file that is read from them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tinyldm.support import files
from tinyldm.support.decode import decode
from tinyldm.support.errors import UserError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    format: Literal[1]
    facts: dict[str, str]  # about the folder
    sha256: dict[str, str]  # name of a file -> checksum


def is_sealed(folder: Path) -> bool:
    """Was this folder written to its end?"""
    return (folder / MANIFEST).is_file()


def seal(folder: Path, sums: Mapping[str, str], **facts: str) -> None:
    """Write manifest.json: name of a file -> checksum of what was written into it, and facts."""
    files.write_json(folder / MANIFEST, {"format": 1, "facts": facts, "sha256": sums})


@dataclass(frozen=True)
class Sealed:
    """A sealed folder: each file is checked when it is read. All raise UserError, with this remedy."""

    folder: Path
    remedy: str
    manifest: Manifest = field(init=False)

    def __post_init__(self) -> None:
        path = self.folder / MANIFEST
        content = files.read_json(path, self.remedy)
        with files.expecting("a manifest", path, self.remedy):
            object.__setattr__(self, "manifest", decode(Manifest, content))

    def identity(self, *without: str) -> str:
        """A checksum of the checksums of all files but these."""
        sums = {k: v for k, v in self.manifest.sha256.items() if k not in without}
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()

    def checksum(self, name: str) -> str:
        """That of a file. Raises UserError if it is not listed."""
        if name not in self.manifest.sha256:
            path = self.folder / MANIFEST
            raise UserError(f"{path}: does not list {name}; {self.remedy}")
        return self.manifest.sha256[name]

    def read(self, name: str) -> bytes:
        """The content of a file."""
        path, checksum = self.folder / name, self.checksum(name)
        content = files.read(path, self.remedy)
        files.check_sum(path, content, checksum, self.remedy)
        return content

    def decoded(self, name: str, kind: Any, **absent: Any) -> Any:
        """The content of a JSON file as `kind`, see `decode`; `absent` are fields that older files lack."""
        path, content = self.folder / name, self.read(name)
        with files.expecting(f"a valid {name}", path, self.remedy):
            found = json.loads(content)
            return decode(kind, absent | found if isinstance(found, dict) else found)

    def tensors(
        self, name: str, shapes: Mapping[str, Iterable[int]] | None = None
    ) -> dict[str, Tensor]:
        """The tensors of a safetensors file, which must have exactly these shapes if they are given."""
        path = self.folder / name
        return files.read_tensors(path, self.remedy, self.checksum(name), shapes)

    def verify(self) -> None:
        """Read every file."""
        for name in self.manifest.sha256:
            self.read(name)
