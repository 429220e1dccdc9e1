"""A command outlives its streams, and whatever it is given on its command line is one line at most."""

import errno
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import tyro
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinyldm.sample import SampleSettings
from tinyldm.support import progress, streams
from tinyldm.support.command_line import explained, flagged, parse, parse_with_preset, run_command
from tinyldm.support.errors import Finished, Stopped, UserError

ROOT = Path(__file__).parents[1]
TALKATIVE = """
import pathlib, sys
from tinyldm.support import progress, streams

progress.HALF_A_MINUTE = 0.0
streams.guard()  # as run_command does, which needs torch, and seconds to import it
done = pathlib.Path(sys.argv[1])

def command():
    for i in progress.progress(range(300), desc="caf\\xe9"):
        print("\\udcff \\u05e9 \\xe9" + "x" * 2000, flush=True)
        print("note", file=sys.stderr)
    done.write_text("computed")

command()
"""
COMMAND = TALKATIVE.replace("streams.guard()", "").replace(
    "\ncommand()", "from tinyldm.support.command_line import run_command\nrun_command(command)"
)


def talk(
    tmp_path: Path, shell: str, script: str = TALKATIVE, **environment: str
) -> subprocess.CompletedProcess:
    """Run the script as "$@" of this line of bash, whose exit code is the command's."""
    arguments = [sys.executable, "-c", script, str(tmp_path / "done")]
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell, "bash", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "shell",
    [
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        '"$@" | head -c1',
        '"$@" 2>&1 | true',
        '"$@" 2> >(true)',
    ],
)
def test_a_command_ends_well_whoever_listens(tmp_path, shell):
    ended = talk(tmp_path, shell)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "done").read_text() == "computed"
    assert b"Traceback" not in ended.stderr and b"BrokenPipe" not in ended.stderr


def test_what_ascii_cannot_show_is_escaped(tmp_path):
    ended = talk(tmp_path, '"$@"', PYTHONIOENCODING="ascii")
    assert ended.returncode == 0 and b"\\udcff \\u05e9 \\xe9x" in ended.stdout
    assert b"caf\\xe9: 100%" in ended.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
@pytest.mark.parametrize(("shell", "code"), [('"$@" | head -c1', 0), ('"$@" > /dev/full', 2)])
def test_lost_output_is_an_error_after_the_work_unless_nobody_reads_it(tmp_path, shell, code):
    ended = talk(tmp_path, shell, script=COMMAND)
    assert ended.returncode == code and (tmp_path / "done").exists()
    expected = b"error: stdout or stderr: cannot be written (No space left"
    assert ended.stderr.splitlines()[-1].startswith(expected if code else b"caf")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB"),
        lambda: torch.empty(2**50),
    ],
)
def test_too_little_memory_is_one_line(capsys, error):
    def command():
        if callable(error):
            error()
        raise error

    with pytest.raises(SystemExit) as exit:
        run_command(command)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1
    assert err.startswith("error: out of memory (") and "lower the batch size" in err


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyError("ours")])
def test_any_other_error_is_ours_and_keeps_its_traceback(error):
    def command():
        raise error

    with pytest.raises(type(error), match="ours"):
        run_command(command)


FLAGS = [f"--{name.replace('_', '-')}" for name in SampleSettings.__dataclass_fields__]
WORDS = st.text(st.characters(), max_size=8)  # surrogates included
NUMBERS = st.sampled_from(["-1", "0", "1e999", "nan", "9" * 5000, "", "None", "--", "[", "1" * 30])
PAIRS = st.tuples(st.sampled_from([*FLAGS, "--help", "-h", "--out", "--nope"]), WORDS | NUMBERS)


@given(args=st.lists(WORDS | PAIRS.map("=".join), max_size=3) | PAIRS.map(list))
@example(args=["--num-images", "0"])
@example(args=["--prompt", os.fsdecode(b"\xff\xfe")])
@example(args=["--tyro-print-completion", "bash"])
@settings(deadline=None, max_examples=60)
def test_any_command_line_is_parsed_or_is_one_clear_error(args):
    try:
        assert isinstance(parse(SampleSettings, args=args), SampleSettings)
    except UserError as error:
        assert str(error)
    except SystemExit as exit:
        assert exit.code in (0, None)


# ---------------------------------------------------------------- what a command says, and its exit code


MEMORY = "can't allocate memory: " + "x" * 999  # as torch says it, at length
ROOM = "lower the batch size or the sizes"
ENDS = [
    (UserError("--x: bad"), 2, "", "error: --x: bad\n"),
    (Finished("done already"), None, "done already\n", ""),
    (Stopped(15, "saved"), 143, "", "saved\n"),
    (Stopped(2), 130, "", "stopped; what was saved before stays\n"),
    (KeyboardInterrupt(), 130, "", ""),
    (MemoryError("no\n room"), 2, "", f"error: out of memory (no room); {ROOM}\n"),
    (RuntimeError(MEMORY), 2, "", f"error: out of memory ({MEMORY[:200]}); {ROOM}\n"),
]


@pytest.mark.parametrize(("error", "code", "out", "err"), ENDS)
def test_whatever_ends_a_command_is_one_line_and_its_exit_code(capsys, error, code, out, err):
    def command():
        raise error

    if code is None:
        assert run_command(command) is None
    else:
        with pytest.raises(SystemExit) as exit:
            run_command(command)
        assert exit.value.code == code
    assert tuple(capsys.readouterr()) == (out, err)
    assert run_command(lambda: 7) == 7


class Failing(io.FileIO):
    """A descriptor that the system refuses to write to."""

    number = errno.EPIPE

    def write(self, content) -> int:
        raise OSError(self.number, "full")


class Broken(streams.Unbroken, Failing):
    """Unbroken, above a descriptor that fails."""


def test_output_that_was_lost_ends_a_command_with_an_error(capsys, monkeypatch):
    """Once the work is done; what nobody was there to read may be lost."""
    monkeypatch.setattr(streams.Unbroken, "failure", None)
    for number, lost in ((errno.EPIPE, None), (errno.EIO, None), (errno.ENOSPC, "full")):
        monkeypatch.setattr(Failing, "number", number)
        with open(os.devnull) as nothing, Broken(nothing.fileno(), "w", closefd=False) as broken:
            assert broken.write(b"abc") == 3
        assert streams.Unbroken.failure == lost
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: None)
    said = "error: stdout or stderr: cannot be written (full); make room\n"
    assert exit.value.code == 2 and capsys.readouterr().err == said


@dataclass(frozen=True)
class Chosen:
    """Settings with a preset."""

    preset: str = "auto"
    seed: int = 0


PRESETS = {name: Chosen(name, seed) for seed, name in enumerate(("cpu", "gpu", "tiny"))}


@pytest.mark.parametrize("gpu", [False, True])
def test_the_preset_is_cpu_on_any_machine_unless_it_is_named(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for args in ([], ["--preset", "auto"], ["--preset=auto"]):
        assert parse_with_preset(PRESETS, args).seed == 0
    for args in (["--preset", "tiny"], ["--preset=tiny"]):
        assert parse_with_preset(PRESETS, args).seed == 2
    assert parse_with_preset(PRESETS, ["--preset", "tiny", "--seed", "7"]) == Chosen("tiny", 7)
    with pytest.raises(UserError) as error:
        parse_with_preset(PRESETS, ["--preset", "huge"])
    assert str(error.value) == "--preset huge: not one of auto, cpu, gpu, tiny"
    with pytest.raises(UserError, match=r"^--preset: give one of auto, cpu, gpu, tiny$"):
        parse_with_preset(PRESETS, ["--preset"])
    with pytest.raises(UserError, match="--pre"):  # no abbreviations
        parse_with_preset(PRESETS, ["--pre", "tiny"])


def test_help_is_that_of_all_flags_whatever_the_preset(capsys):
    with pytest.raises(SystemExit) as exit:
        parse_with_preset(PRESETS, ["--help", "--preset", "tiny"])
    assert exit.value.code in (0, None)
    assert "--seed" in capsys.readouterr().out


def test_a_description_stands_above_the_flags_and_fixed_ones_are_left_out(capsys):
    @dataclass(frozen=True)
    class Sizes:
        given: int = 3
        derived: tyro.conf.Fixed[int] = 4

    with pytest.raises(SystemExit):
        parse(Sizes, args=["--help"], about="What this is for.")
    text = capsys.readouterr().out
    assert "What this is for." in text and "--given" in text and "derived" not in text
    assert parse(Sizes, Sizes(given=5), []) == Sizes(given=5)


@pytest.mark.parametrize(
    ("group", "message", "flag"),
    [
        ("vae-fit", "batch_size 0: must be more", "--vae-fit.batch-size 0: must be more"),
        ("", "kl_weight -1: must be_not", "--kl-weight -1: must be_not"),
        ("BaseSettings", "lr 0: must be", "--lr 0: must be"),
    ],
)
def test_the_name_of_a_field_becomes_that_of_its_flag(group, message, flag):
    assert flagged(group, message) == flag


BOXES = {
    "╭─ Parsing error ───╮\n│ no such --x   │\n│ at all │\n╰───╯\n": "no such --x at all",
    "\x1b[31m- Error ---\x1b[0m\nis  bad\n------\nFor full helptext, see --help": "is bad",
    "only words": "only words",
    "╭─ E ───╮\n│ Error parsing fit: lr -1: must be│\n╰────╯": "--fit.lr -1: must be",
    "╭─ E ───╮\n│ no --learning_rate │\n╰────╯": "no --learning_rate (here it is --lr)",
    "---\nno --guidance-scale --x": "no --guidance-scale --x (here it is --guidance)",
}


@pytest.mark.parametrize(("box", "line"), BOXES.items())
def test_a_box_of_tyro_becomes_one_line(box, line):
    assert explained(box) == line


# ---------------------------------------------------------------- progress


class Screen(io.StringIO):
    """stderr, as a terminal or not, which counts how often it is flushed."""

    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal, self.flushed = terminal, 0

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        self.flushed += 1


def test_a_bar_tells_a_line_every_half_minute_unless_it_is_in_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=False))
    bar = progress.progress(range(3), desc="three")
    assert (bar.mininterval, bar.maxinterval, bar.delay, bar.miniters) == (30, 30, 30, 1)
    assert not bar.dynamic_miniters and list(bar) == [0, 1, 2]
    assert screen.getvalue() == ""  # it ended sooner
    lines = progress.Lines()
    lines.write("\r \x1b[A\n")
    assert (screen.getvalue(), screen.flushed) == ("", 0)
    lines.write("\rthree: 33%\x1b[A")
    assert (screen.getvalue(), screen.flushed) == ("three: 33%\n", 1)
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=True))
    bar = progress.progress(range(3), desc="three")
    assert (bar.mininterval, bar.delay) == (0.1, 0) and list(bar) == [0, 1, 2]
    assert screen.getvalue().count("\r") >= 2 and "three: 100%" in screen.getvalue()


# ---------------------------------------------------------------- guarded streams


def test_streams_are_guarded_unless_they_were_replaced(tmp_path, monkeypatch):
    real = open(tmp_path / "real", "w", encoding="ascii")  # noqa: SIM115
    other = io.StringIO()
    for name, stream in (("stdout", real), ("__stdout__", real), ("stderr", other)):
        monkeypatch.setattr(sys, name, stream)
    streams.guard()
    assert sys.stderr is other and sys.stdout is not real
    sys.stdout.write("caf\xe9\n")  # a line is written at once
    assert (tmp_path / "real").read_bytes() == b"caf\\xe9\n"
    sys.stdout.write("more")
    sys.stdout.flush()
    sys.stdout.close()
    real.write("!")  # its descriptor is still open
    real.close()
    assert (tmp_path / "real").read_bytes() == b"caf\\xe9\nmore!"
    for name in ("stdout", "__stdout__"):
        monkeypatch.setattr(sys, name, None)
    streams.guard()
    sys.stdout.write("to nobody\n")
