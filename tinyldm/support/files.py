"""Write so that a kill or a full disk never costs what was there; read so that damage is one clear error."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
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
    ArithmeticError,
    RecursionError,
)
MOST_JSON = 2**26  # bytes

# ---------------------------------------------------------------- writing


def temporary_name(path: Path) -> Path:
    """A new name beside `path`, which no other process uses and `sweep` recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync(folder: Path) -> None:
    """Flush the entries of a folder to disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_no_device(path: Path) -> None:
    """Raise OSError for a device or a pipe, whose content might never end, and if nothing is there."""
    if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "a device or a pipe")


def real(path: Path) -> Path:
    """The path without links, as far as there are any."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a new name, which becomes `path` when all is written; whatever fails, nothing else is left.

    Follows links, makes folders above. Raises UserError for what the system refuses, and for devices.
    """
    path = real(path)
    temporary = temporary_name(path)
    try:
        if os.path.exists(path):
            check_no_device(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        remove(temporary)


def write(path: Path, content: bytes) -> str:
    """Replace a file as a whole or not at all: write a sibling, flush it to disk, rename it.

    Returns the checksum of the content, as do the other writers.
    """
    with writing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder, which gets the name `path` when all is in it. Raises UserError if that is in use."""
    with writing(path) as temporary:
        temporary.mkdir()
        try:
            yield temporary
        except UserError as error:
            raise UserError(str(error).replace(str(temporary), str(path))) from error
        sync(temporary)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def move(folder: Path, new: Path) -> None:
    """Rename a folder. Raises UserError."""
    try:
        os.rename(folder, new)
        sync(new.parent)
    except OSError as error:
        raise UserError(f"{folder}: cannot be moved to {new} ({error.strerror})") from error


def discard(folder: Path) -> None:
    """Delete a folder, if it is there; a kill leaves all of it, or nothing under its name."""
    if folder.exists():
        hidden = temporary_name(folder)
        move(folder, hidden)
        remove(hidden)


def is_temporary(path: Path, name: str = "") -> bool:
    """Is this a name from `temporary_name`, for a file of this name if one is given?"""
    pattern = re.escape(name) if name else ".+"
    return bool(re.fullmatch(rf"\.{pattern}\.[0-9a-f]{{8}}\.tmp", path.name))


def sweep(path: Path) -> None:
    """Delete what writers that were killed left of a folder, beside it and in it."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    leftovers = [entry for entry in beside if is_temporary(entry, path.name)]
    for leftover in [*leftovers, *(entry for entry in path.rglob(".*.tmp") if is_temporary(entry))]:
        remove(leftover)


def writable(path: Path) -> bool:
    """Can something be made there, or in it if it is a folder?"""
    place = path.absolute()
    folder = next(folder for folder in (place, *place.parents) if os.path.exists(folder))
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def check_writable(flag: str, path: Path) -> None:
    """Raise UserError, naming the flag, unless a file can be written there."""
    special = os.path.exists(path) and not os.path.isfile(path)
    if special or not writable(real(path).parent):
        raise UserError(f"{flag} {path}: cannot be written there")


@contextlib.contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Hold a lock on this file, which a process that dies gives back.

    Waits for another process that holds it, or raises UserError, `busy` and who holds it.
    """
    lock, holder = FileLock(path, timeout=0 if busy else -1), path.with_name(f"{path.name}.holder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout as error:
        who = holder.read_text() if holder.exists() else "another process"
        raise UserError(f"{busy} ({who})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def write_json(path: Path, content: Any) -> str:
    return write(path, (json.dumps(content, indent=1, default=str) + "\n").encode())


def write_figure(path: Path, figure: Any, dpi: int) -> str:
    """Write a figure of matplotlib as a PNG."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi)
    return write(path, content.getvalue())


def write_lines(path: Path, entries: Iterable[dict]) -> str:
    """Write a file of JSON lines."""
    return write(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors. Raises UserError, and writes nothing, if one is not finite."""
    content = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    for name, x in content.items():
        if not x.isfinite().all():
            raise UserError(
                f"{path}: not written, since {name} is not finite; lower the learning rate"
            )
    return write(path, safetensors.torch.save(content))


# ---------------------------------------------------------------- reading


@contextlib.contextmanager
def expecting(what: str, path: Path, remedy: str, *damage: type[Exception]) -> Iterator[None]:
    """Inside, a file is read that should be `what`. Raises UserError, naming it, if that fails.

    Content that is something else shows in the exceptions that it causes: DAMAGE, and those given.
    """
    try:
        yield
    except UserError:
        raise
    except DAMAGE + damage as error:
        if cause := getattr(error, "strerror", None):  # the system's: not about the content
            raise UserError(f"{path}: cannot be read ({cause}); {remedy}") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: not {what} ({reason}); {remedy}") from error


def read(path: Path, remedy: str, most: int | None = None) -> bytes:
    """The content of a file, of at most so many bytes. Raises UserError naming it, with the remedy."""
    with expecting("a file", path, remedy):
        check_no_device(path)
        if most is not None and path.stat().st_size > most:
            raise ValueError(f"more than {most} bytes")
        return path.read_bytes()


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file. Raises UserError naming it, with the remedy."""
    content = read(path, remedy, MOST_JSON)
    with expecting("JSON", path, remedy):
        return json.loads(content)


def read_lines(path: Path) -> list[dict]:
    """The entries of a file of JSON lines, [] without one; a line torn by a kill is left out. UserError."""
    remedy = "delete it"
    content = read(path, remedy) if path.exists() else b""
    with expecting("lines of JSON", path, remedy):
        lines = [line for line in content.decode().splitlines() if line.endswith("}")]
        return [dict(json.loads(line)) for line in lines]


def check_header(path: Path, shapes: Mapping[str, Iterable[int]], remedy: str) -> None:
    """Raise UserError unless a safetensors file says that it holds float32 tensors of these shapes only."""
    with expecting("safetensors", path, remedy, SafetensorError):
        check_no_device(path)
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: f"{x.get_dtype()} {x.get_shape()}" for name, x in parts.items()}
    expected = {name: f"F32 {list(shape)}" for name, shape in shapes.items()}
    wrong = [
        f"{name}: {found.get(name, 'not there')}, expected {expected.get(name, 'nothing')}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        first = "; ".join(wrong[:3])
        raise UserError(f"{path}: {len(wrong)} tensors do not fit ({first}); {remedy}")


def read_tensors(
    path: Path, remedy: str, checksum: str = "", shapes: Mapping[str, Iterable[int]] | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises UserError naming it, with the remedy.

    If they are given, first the header is compared with `shapes`, then the content with `checksum`.
    """
    if shapes is not None:
        check_header(path, shapes, remedy)
    content = read(path, remedy)
    if checksum:
        check_sum(path, content, checksum, remedy)
    with expecting("safetensors", path, remedy, SafetensorError):
        return safetensors.torch.load(content)


def check_sum(path: Path, content: bytes, checksum: str, remedy: str) -> None:
    """Raise UserError unless this content of a file has this SHA-256."""
    if hashlib.sha256(content).hexdigest() != checksum:
        raise UserError(f"{path}: changed since it was written, its checksum differs; {remedy}")


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
