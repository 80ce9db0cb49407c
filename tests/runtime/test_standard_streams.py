"""What a command prints goes into any terminal, pipe or full disk; who stops reading it ends it without a word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maep.runtime.standard_streams import has_lost_reader

COMMAND = (sys.executable, "-c", "import sys; from maep.__main__ import command; sys.exit(command())")


def ended(words: tuple[str, ...], stdout: int, **environment: str) -> tuple[int, str]:
    """(exit code, what came on stderr) of a command whose stdout is this descriptor, and buffered."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | environment
    process = subprocess.run([*COMMAND, *words], stdout=stdout, stderr=subprocess.PIPE, env=variables, check=False)
    return process.returncode, process.stderr.decode()


@pytest.fixture
def unread() -> int:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


# The first prints plainly, the second by rich.
@pytest.mark.parametrize("words", [("--help",), ("run", "cfg=digits", "pretrain.epochs=2", "pretrain.epochs=3")])
def test_who_stops_reading_ends_the_command_without_a_word(words: tuple[str, ...], unread: int) -> None:
    """With SIGPIPE's code, as `| head -1` ends others; not with a traceback and the code of a failure."""
    assert ended(words, unread) == (141, "")


def test_an_error_is_said_though_the_output_is_not_read(unread: int) -> None:
    """And its exit code is that of the error."""
    code, errors = ended(("run", "cfg=nosuch"), unread)
    assert (code, errors.count("\n")) == (2, 1)


def test_a_full_disk_under_the_output_is_one_line() -> None:
    """The interpreter adds nothing to it, such as its own try to write the rest, and exit code 120."""
    with Path("/dev/full").open("wb") as full:
        code, errors = ended(("--version",), full.fileno())
    assert (code, errors) == (2, "error: No space left on device: make room, and the same command goes on\n")


def test_what_an_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    """An ellipsis in ASCII, as a terminal of another locale has it."""
    with (tmp_path / "out").open("wb") as out:
        assert ended(("--help",), out.fileno(), PYTHONIOENCODING="ascii") == (0, "")
    assert "maep VERB \\u2026" in (tmp_path / "out").read_text()


def test_another_pipe_that_broke_is_no_lost_reader() -> None:
    """As that of a process that died: its error is not passed over in silence."""
    program = """
import os, sys
from maep.runtime.errors import exit_code
def main():
    reader, writer = os.pipe()
    os.close(reader)
    os.write(writer, b"x")
sys.exit(exit_code(main))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert process.returncode == 1
    assert b"BrokenPipeError" in process.stderr
    assert not has_lost_reader()
