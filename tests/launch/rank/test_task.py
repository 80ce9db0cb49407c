"""How a process of a SLURM job says that it ended."""

import signal

import pytest
from torch.distributed import DistNetworkError

from maep.launch.job.attempts import CRASHED, FINAL, LOST, STOPPED
from maep.launch.rank.task import how_it_ended
from maep.runtime.errors import NonFiniteLoss, Paused, PeerLost, Stopped, UserError, exit_code
from maep.runtime.exits import ExitCode


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Stopped(signal.SIGUSR2, 12), STOPPED),
        (NonFiniteLoss("step 3"), FINAL),
        (Paused("pretrain", 300), FINAL),
        (PeerLost("rank 1 is gone"), LOST),
    ],
)
def test_ends_have_the_exit_codes_of_a_training_without_slurm(error: Exception, kind: str) -> None:
    """One table of exit codes, whoever starts the training."""

    def end() -> None:
        raise error

    assert how_it_ended(error) == (kind, exit_code(end))


def test_other_ends() -> None:
    """Bad input is final, and what has nothing to do with other processes is a crash."""
    assert how_it_ended(UserError("no such file")) == (FINAL, 2)
    assert how_it_ended(RuntimeError("shapes differ")) == (CRASHED, 1)
    assert how_it_ended(SystemExit(128 + signal.SIGTERM)) == (STOPPED, 128 + signal.SIGTERM)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc] Read error"),
        RuntimeError("Connection closed by peer [127.0.0.1]"),
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("NCCL communicator was aborted"),
        RuntimeError("Broken pipe"),
        DistNetworkError("the client socket has timed out"),
    ],
)
def test_a_broken_connection_is_not_a_crash(error: Exception) -> None:
    """In whatever words torch says it, and wherever: the training loop and the job ask the same question."""
    assert how_it_ended(error) == (LOST, ExitCode.PEER_LOST)
