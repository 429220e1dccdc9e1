"""stdout and stderr that end no command: closed, without a reader, on a full disk, or ASCII-only."""

import errno
import io
import os
import sys

from tinyldm.support.errors import UserError

GONE = (errno.EPIPE, errno.EIO)  # the reader, the terminal


def first() -> bool:
    """Is this the process that speaks, of those that torchrun started?"""
    return os.environ.get("RANK", "0") == "0"


class Unbroken(io.FileIO):
    """A file descriptor; what it cannot take is lost, and raises nothing."""

    failure: str | None = None  # of any of them, unless nobody was there to read

    def write(self, content) -> int:  # type: ignore[no-untyped-def, override]
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in GONE:
                Unbroken.failure = error.strerror
            return len(content)


def guard() -> None:
    """Have stdout and stderr, unless they were replaced, take any text and outlive their readers.

    Of the processes that torchrun started, only the first has an stdout.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            mute = not stream or (name == "stdout" and not first())
            number = os.open(os.devnull, os.O_WRONLY) if mute else stream.fileno()
            buffer = io.BufferedWriter(Unbroken(number, "w", closefd=False))
            encoding = getattr(stream, "encoding", "utf-8")
            guarded = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, guarded)


def check() -> None:
    """Raise UserError if something could not be written, though there was a reader."""
    if Unbroken.failure:
        raise UserError(f"stdout or stderr: cannot be written ({Unbroken.failure}); make room")
