"""Writing so that a kill or a full disk never costs what was there, and reading so that damage is one clear error."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from tinyldm.errors import UserError


def write(path: Path, content: bytes) -> None:
    """Write a whole file or leave the old one: to a sibling first, flushed to disk, then renamed over it. Makes folders."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on this file; wait for a process that holds it. The system lets go of a dead process's lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: Path, content: Any) -> None:
    write(path, (json.dumps(content, indent=1, default=str) + "\n").encode())


def read_text(path: Path, remedy: str) -> str:
    """The content of a text file. Raises UserError naming it, with the remedy."""
    try:
        return path.read_text()
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', 'not text')}); {remedy}") from error


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file. Raises UserError naming it, with the remedy."""
    try:
        return json.loads(read_text(path, remedy))
    except ValueError as error:
        raise UserError(f"{path}: not JSON; {remedy}") from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    write(path, safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises UserError naming it, with the remedy."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); {remedy}") from error


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
