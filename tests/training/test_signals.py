"""Signals that ask a training to save and stop."""

import os
import signal
import time
from contextlib import suppress

import pytest

from maep.runtime.errors import PeerLost
from maep.runtime.unwinding import AT_ONCE
from maep.training.signals import StopFlag


def test_one_ctrl_c_that_comes_twice_is_one() -> None:
    """From the terminal, and from the launcher of several processes, which has it too: the save is not given up.

    Pressed again, it ends the process at once.
    """
    with pytest.raises(KeyboardInterrupt), StopFlag() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        time.sleep(AT_ONCE)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("the training went on")


@pytest.mark.parametrize("error", [None, PeerLost("rank 1 is gone")])
def test_a_signal_that_no_step_acted_on_is_not_lost(error: PeerLost | None) -> None:
    """It came in the last step: the command ends all the same, before its next stage; a fault says more than it."""
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda signum, _: received.append(signum))
    try:
        with suppress(PeerLost), StopFlag():
            os.kill(os.getpid(), signal.SIGUSR2)
            if error:
                raise error
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert received == ([] if error else [signal.SIGUSR2])
