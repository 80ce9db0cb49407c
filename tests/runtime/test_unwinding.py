"""A request to end a command comes at any moment: it is heard, and said without a traceback."""

import signal
import subprocess
import sys

import pytest

from maep.runtime.errors import Stopped, UserError
from maep.runtime.unwinding import SIGNALS, request_behind

PROGRAM = """\
import os, signal, sys, tempfile, threading, time
from maep.runtime.errors import exit_code, fail
signal.signal(signal.SIGINT, {on_ctrl_c})  # whatever it is here: a suite may run in the background
ME, SIGNUM = os.getpid(), {signum}
def kill(): os.kill(ME, SIGNUM)
def work():
{work}
sys.exit(exit_code(work))
"""


def _ended(signum: int, work: str, on_ctrl_c: str = "signal.default_int_handler") -> tuple[int, str]:
    """Exit code and errors of a command that is sent a signal where its work says `kill()`."""
    indented = "\n".join(f"    {line}" for line in work.splitlines())
    text = PROGRAM.format(signum=int(signum), work=indented, on_ctrl_c=on_ctrl_c)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


INTERRUPTED = "interrupted: the same command goes on from here\n"


def _unwound(signum: int, said: str = "") -> tuple[int, str]:
    """The same of one that heard it: its own errors, and a line for a Ctrl-C alone."""
    return 128 + signum, said + (INTERRUPTED if signum == signal.SIGINT else "")


@pytest.mark.parametrize("signum", SIGNALS)
def test_it_unwinds(signum: int) -> None:
    """By whichever signal, so that what is temporary goes."""
    work = "try:\n    kill()\n    time.sleep(30)\nfinally:\n    sys.stderr.write('cleaned up; ')"
    assert _ended(signum, work) == _unwound(signum, "cleaned up; ")


@pytest.mark.parametrize("signum", SIGNALS)
def test_what_python_drops_is_asked_again(signum: int) -> None:
    """In a destructor, where Python says `Exception ignored` and goes on as if nothing had been."""
    work = "class Dying:\n    def __del__(self):\n        kill()\n        sum(range(9))\nDying()\ntime.sleep(30)"
    assert _ended(signum, work) == _unwound(signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_destructor_that_fails_on_the_way_out_asks_for_nothing(signum: int) -> None:
    """Sent once more, the request would meet a process that has done its cleaning up, and kill it."""
    work = (
        "class Dying:\n    def __del__(self):\n        raise ValueError('of its own')\ndying = Dying()\n"
        "try:\n    kill()\n    time.sleep(30)\nfinally:\n    del dying"
    )
    code, errors = _ended(signum, f"{work}\n")
    assert code == 128 + signum
    assert "ValueError: of its own" in errors
    assert errors.endswith(INTERRUPTED) == (signum == signal.SIGINT)


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_same_request_does_not_interrupt_its_own_cleaning_up(signum: int) -> None:
    """As when a launcher passes on a Ctrl-C that the terminal sent to all."""
    work = "try:\n    kill()\n    time.sleep(30)\nfinally:\n    kill()\n    sys.stderr.write('cleaned up; ')"
    assert _ended(signum, work) == _unwound(signum, "cleaned up; ")


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("raise OSError(39, 'Directory not empty', 'scratch')", "not all could be cleaned up: OSError: [Errno 39]"),
        ("fail('no room')", "error: no room"),
    ],
)
def test_what_cannot_be_cleaned_up_does_not_hide_the_request(signum: int, fails: str, says: str) -> None:
    """A script that waits for 143 is not told that the input was bad, or that the command crashed."""
    code, errors = _ended(signum, f"try:\n    kill()\n    time.sleep(30)\nfinally:\n    {fails}")
    assert code == 128 + signum
    assert says in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("signum", SIGNALS)
def test_nothing_is_said_where_the_interpreter_itself_ends(signum: int) -> None:
    """A signal after the work kills; before, Python complained of a destructor, a thread or a callback of its own."""
    work = "import atexit\natexit.register(kill)\natexit.register(time.sleep, 0)"
    assert _ended(signum, work) == (-signum, "")


def test_what_a_script_runs_in_the_background_ignores_ctrl_c() -> None:
    """A shell starts it with SIGINT ignored, and so it stays."""
    went_on = "kill()\nsys.stderr.write('went on')"
    assert _ended(signal.SIGINT, went_on, on_ctrl_c="signal.SIG_IGN") == (0, "went on")


def test_the_request_behind_an_error() -> None:
    """Itself, or what was being unwound for; other exits of a process are none."""
    assert request_behind(Stopped(signal.SIGUSR2, 3)) == signal.SIGUSR2
    assert request_behind(KeyboardInterrupt()) == signal.SIGINT
    assert [request_behind(error) for error in (None, UserError("bad"), SystemExit(2), SystemExit(141))] == [0] * 4
    with pytest.raises(UserError) as caught:
        try:
            raise SystemExit(128 + signal.SIGTERM)
        finally:
            raise UserError("no room")
    assert request_behind(caught.value) == signal.SIGTERM
