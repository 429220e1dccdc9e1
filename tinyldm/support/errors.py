"""What ends a command early: a mistake, a signal, nothing left to do; and what may fail without ending it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class UserError(Exception):
    """Bad input: its message is one line that names the file or flag and the remedy. Exit code 2."""


class Finished(Exception):
    """Nothing is left to do, as the message says. Exit code 0."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; the message says what was saved. Exit code 128 + number."""

    def __init__(self, number: int, message: str = "stopped; what was saved before stays"):
        super().__init__(message)
        self.number = number


@contextmanager
def warned(what: str) -> Iterator[None]:
    """Inside, an exception becomes a warning on stderr. Also a decorator of functions without a result."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"warning: {what} failed ({reason})", file=sys.stderr)


def needed(module: str, purpose: str) -> Any:
    """Import a module of the extra `report`. Raises UserError, naming the purpose, if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise UserError(f"{purpose} need {package}: pip install 'tinyldm[report]'") from error
