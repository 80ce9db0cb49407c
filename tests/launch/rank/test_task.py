"""How a process of a SLURM job says that it ended."""

import signal

import pytest
from torch.distributed import DistNetworkError

from maep.launch.job.attempts import Outcome
from maep.launch.rank.task import outcome_of
from maep.runtime.errors import NonFiniteLoss, Paused, PeerLost, Stopped, UserError, exit_code
from maep.runtime.exits import ExitCode


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Stopped(signal.SIGUSR2, 12), Outcome.STOPPED),
        (NonFiniteLoss("step 3"), Outcome.FINAL),
        (Paused("pretrain", 300), Outcome.FINAL),
        (PeerLost("rank 1 is gone"), Outcome.PEER_LOST),
    ],
)
def test_ends_have_the_exit_codes_of_a_training_without_slurm(error: Exception, kind: Outcome) -> None:
    """One table of exit codes, whoever starts the training."""

    def end() -> None:
        raise error

    assert outcome_of(error) == (kind, exit_code(end))


def test_other_ends() -> None:
    """Bad input is final, and what has nothing to do with other processes is a crash."""
    assert outcome_of(UserError("no such file")) == (Outcome.FINAL, 2)
    assert outcome_of(RuntimeError("shapes differ")) == (Outcome.CRASHED, 1)
    assert outcome_of(SystemExit(128 + signal.SIGTERM)) == (Outcome.STOPPED, 128 + signal.SIGTERM)


def test_what_fails_on_the_way_out_is_no_crash() -> None:
    """The job was stopped, and is queued again: what could not be cleaned up while it unwound ends no sweep."""
    with pytest.raises(OSError, match="not empty") as caught:
        try:
            raise SystemExit(128 + signal.SIGUSR2)
        finally:
            raise OSError("Directory not empty")
    assert outcome_of(caught.value) == (Outcome.STOPPED, 128 + signal.SIGUSR2)


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
    assert outcome_of(error) == (Outcome.PEER_LOST, ExitCode.PEER_LOST)
