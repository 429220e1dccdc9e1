"""Command lines: flags from a dataclass by tyro, defaults from a preset, every mistake one line and exit code 2."""

import argparse
import contextlib
import ctypes
import io
import re
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from tinyldm.errors import UserError

Config = TypeVar("Config")
Result = TypeVar("Result")


def parse(kind: type[Config], default: Config | None = None, args: list[str] | None = None) -> Config:
    """The dataclass `kind` from the command line. Raises UserError, in one line, where tyro would print a box."""
    complaint = io.StringIO()
    default = tyro.MISSING_NONPROP if default is None else default
    description = kind.__doc__ if isinstance(kind, type) else sys.modules["__main__"].__doc__  # a union has none
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, default=default, args=args, description=description)
    except SystemExit as exit:
        if not exit.code:
            raise
        raise UserError(one_line(complaint.getvalue())) from exit


def one_line(box: str) -> str:
    """The text in a box that tyro drew, without the frame and its title."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    return " ".join(" ".join(line.strip("│ ") for line in lines if not line.startswith(("╭", "╰", "│ ─"))).split())


def parse_with_preset(presets: dict[str, Config], args: list[str] | None = None) -> Config:
    """The configuration that `--preset NAME` starts from (by default gpu or cpu, by the machine), then the other flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default="auto", nargs="?")
    name = first.parse_known_args(args)[0].preset
    if name == "auto":
        name = "gpu" if has_gpu() else "cpu"
    if name not in presets:
        raise UserError(f"--preset {name}: not one of auto, {', '.join(presets)}")
    return parse(type(presets[name]), presets[name], args)


def has_gpu() -> bool:
    """Is there a CUDA device? Without a driver the answer is no, and torch is not imported to ask."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


def run_command(command: Callable[[], Result]) -> Result:
    """What a command returns; a UserError becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
