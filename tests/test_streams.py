"""A command outlives its streams, and whatever it is given on its command line is one line at most."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinyldm.sample import SampleSettings
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError

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
    assert err.startswith("error: out of memory (") and "lower --batch-size" in err


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
