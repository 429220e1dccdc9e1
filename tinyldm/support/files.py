"""Write so that a kill or a full disk never costs what was there; read so that damage is one clear error."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from tinyldm.support.errors import UserError

# what reading other content than was expected may raise
DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


def write(path: Path, content: bytes) -> None:
    """Replace a file as a whole or not at all: write a sibling, flush it to disk, rename it. Make folders."""
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


def check_writable(flag: str, path: Path) -> None:
    """Raise UserError, naming the flag, unless a file can be written there."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{flag} {path}: cannot be written there")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on this file; wait for another process that holds it. A dead process holds none."""
    import fcntl  # not on Windows, where only this function cannot be used

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: Path, content: Any) -> None:
    write(path, (json.dumps(content, indent=1, default=str) + "\n").encode())


@contextlib.contextmanager
def expecting(what: str, path: Path, remedy: str, *damage: type[Exception]) -> Iterator[None]:
    """Inside, a file is read that should be `what`. Raises UserError, naming it, if that fails.

    Content that is something else shows in the exceptions that it causes: DAMAGE, and those given.
    """
    try:
        yield
    except DAMAGE + damage as error:
        if cause := getattr(
            error, "strerror", None
        ):  # the system's, so it is not about the content
            raise UserError(f"{path}: cannot be read ({cause}); {remedy}") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: not {what} ({reason}); {remedy}") from error


def read(path: Path, remedy: str) -> bytes:
    """The content of a file. Raises UserError naming it, with the remedy."""
    with expecting("a file", path, remedy):
        return path.read_bytes()


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file. Raises UserError naming it, with the remedy."""
    content = read(path, remedy)
    with expecting("JSON", path, remedy):
        return json.loads(content)


def read_lines(path: Path) -> list[dict]:
    """The entries of a file of JSON lines, [] without one; a line torn by a kill is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_lines(path: Path, entries: Iterable[dict]) -> None:
    """Write a file of JSON lines."""
    write(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    content = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    write(path, safetensors.torch.save(content))


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises UserError naming it, with the remedy."""
    content = read(path, remedy)
    with expecting("safetensors", path, remedy, SafetensorError):
        return safetensors.torch.load(content)


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
