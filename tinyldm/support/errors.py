"""What ends a command early: a mistake of the user's, or a signal; and libraries that are missing."""

from importlib import import_module
from typing import Any


class UserError(Exception):
    """Bad input: its message is one line that names the file or flag and the remedy. Exit code 2."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; the message says what was saved. Exit code 128 + number."""

    def __init__(self, number: int, message: str = "stopped"):
        super().__init__(message)
        self.number = number


def needed(module: str, purpose: str) -> Any:
    """Import a module of the extra `report`. Raises UserError, naming the purpose, if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise UserError(f"{purpose} need {package}: pip install 'tinyldm[report]'") from error
