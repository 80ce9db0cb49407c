"""Signals that ask a training to save and stop."""

import os
import signal
import time

import pytest

from maep.training.signals import AT_ONCE, StopFlag


def test_one_ctrl_c_that_comes_twice_is_one() -> None:
    """From the terminal, and from the launcher of several processes, which has it too: the save is not given up.

    Pressed again, it ends the process at once.
    """
    with StopFlag() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        time.sleep(AT_ONCE)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
