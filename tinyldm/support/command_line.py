"""Command lines: flags from a dataclass by tyro; every mistake is one line and exit code 2."""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from tinyldm.support import files, streams
from tinyldm.support.errors import Finished, Stopped, UserError

Settings = TypeVar("Settings")
Result = TypeVar("Result")

OURS = {  # diffusers' name of a flag -> ours
    "learning-rate": "lr",
    "max-train-steps": "steps",
    "train-batch-size": "batch-size",
    "lr-warmup-steps": "warmup",
    "max-grad-norm": "clip",
    "mixed-precision": "precision",
    "output-dir": "out",
    "resume-from-checkpoint": "resume",
    "pretrained-model-name-or-path": "base",
    "num-inference-steps": "steps",
    "guidance-scale": "guidance",
    "controlnet-conditioning-scale": "control-scale",
    "num-images-per-prompt": "num-images",
}


def parse(
    kind: Any,
    default: Any = tyro.MISSING_NONPROP,
    args: list[str] | None = None,
    about: str | None = None,
) -> Any:
    """The dataclass `kind` from the command line. Raises UserError with the flag in one line.

    ValueErrors of the dataclasses start with the name of a field, which becomes that of its flag.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                default=default,
                args=args,
                description=about,
                config=(tyro.conf.SuppressFixed,),
            )
    except ValueError as error:
        raise UserError(flagged("", str(error))) from error
    except SystemExit as exit:
        if not exit.code:
            raise
        raise UserError(explained(complaint.getvalue())) from exit


def flagged(group: str, message: str) -> str:
    """("vae-fit", "batch_size 0: must be ...") -> "--vae-fit.batch-size 0: must be ...".

    A group that is the name of a class adds no prefix.
    """
    name, _, rest = message.partition(" ")
    prefix = f"{group}." if group[:1].islower() else ""
    return f"--{prefix}{name.replace('_', '-')} {rest}"


def explained(box: str) -> str:
    """The text of a box that tyro drew, in one line, with our name of a flag of diffusers'.

    Frame, title and the pointer to --help are left out.
    """
    box = re.sub(r"\x1b\[[\d;]*m|[│╭╮╰╯]", "", box).split("For full helptext")[0]
    parts = re.split("[─-]{3,}", box)  # by the lines of the box
    message = " ".join(" ".join(parts[1:] or parts).split())
    if found := re.match(r"Error parsing (\w[\w.-]*): (.*)", message):
        return flagged(*found.groups())
    flags = re.findall(r"--([\w-]+)", message.replace("_", "-"))
    return message + "".join(f" (here it is --{OURS[flag]})" for flag in flags if flag in OURS)


def preset_of(base: str) -> str:
    """The preset of a base, by its settings.json; "" if it does not say, of which others complain."""
    try:
        return str(files.read_json(Path(base, "settings.json"), "")["preset"])
    except (UserError, LookupError, TypeError):
        return ""


def parse_with_preset(presets: dict[str, Settings], args: list[str] | None = None) -> Settings:
    """The settings that `--preset NAME` names, then the other flags.

    auto is the preset of the base that is built upon, or the one with the name of --dataset, or "folder" if
    that is a folder; else cpu.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="auto", nargs="?")
    first.add_argument("--dataset", nargs="?")
    first.add_argument("--base", nargs="?", default=getattr(presets["cpu"], "base", None))
    given = first.parse_known_args(args)[0]
    name, auto = given.preset, preset_of(given.base) if given.base else given.dataset
    if given.dataset and given.dataset not in presets and Path(given.dataset).is_dir():
        auto = "folder"
    found: dict[str, Any] = {"auto": presets.get(auto, presets["cpu"]), **presets}
    if name is None:
        raise UserError(f"--preset: give one of {', '.join(found)}")
    if name not in found:
        raise UserError(f"--preset {name}: not one of {', '.join(found)}")
    settings = parse(type(found[name]), found[name], args)
    return replace(settings, preset=found[name].preset)  # not auto, which a control would not know


def complaint(error: Exception) -> str:
    """The line for a UserError, and for memory that ran out; any other error, which is our bug, is raised."""
    if isinstance(error, UserError):
        return str(error)
    ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if ran_out or re.search("DefaultCPUAllocator|can't allocate memory", str(error)):
        reason = " ".join(str(error).split())[:200]
        return f"out of memory ({reason}); lower the batch size or the sizes"
    raise error


def run_command(command: Callable[[], Result]) -> Result | None:
    """What a command returns, whatever becomes of stdout and stderr.

    One line on stderr and exit code 2 for a UserError and for too little memory, 128 + n for signal n.
    """
    streams.guard()
    try:
        result = command()
        streams.check()
        return result
    except Finished as finished:
        print(finished)
        return None
    except Exception as error:
        print(f"error: {complaint(error)}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        sys.exit(130)
