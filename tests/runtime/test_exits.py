"""How processes end, seen from outside."""

import subprocess
import sys

import pytest

LEAVES = "from maep.runtime.exits import leave; print('said', end=''); leave(4)"
TRAINS = (
    "import runpy, sys; sys.argv = ['worker', 'nothing']; runpy.run_module('maep.training.worker', run_name='__main__')"
)


@pytest.mark.parametrize(("program", "code", "said"), [(LEAVES, 4, "said"), (TRAINS, 2, "")], ids=["leave", "worker"])
def test_ends_without_the_interpreters_own_end(program: str, code: int, said: str) -> None:
    """What was printed is written, and nothing runs after: neither exit handlers nor the end of libraries' threads.

    A training's process ends so too, since a thread that outlives the interpreter would change its exit code.
    """
    program = f"import atexit; atexit.register(print, 'ended by the interpreter'); {program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (code, said), done.stderr
