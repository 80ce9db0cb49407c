"""One process of a training stage: `python -m maep.training.worker pretrain cfg=NAME …`.

Started N times by `launch/local.py --nproc N` or by torchrun; RANK and WORLD_SIZE in the environment say which
process this is. A SLURM job calls `run_training` in its own processes.
"""

import sys
from collections.abc import Callable, Sequence

from maep.config import command_line
from maep.errors import exit_code, fail
from maep.settings import Settings
from maep.training.distributed import PEER_LOST, PeerLost, join_world
from maep.training.finetune import finetune
from maep.training.loop import NonFiniteLoss, Paused
from maep.training.pretrain import pretrain
from maep.training.signals import Stopped, arm

PAUSED = 4
TRAININGS: dict[str, Callable[[Settings], None]] = {"pretrain": pretrain, "finetune": finetune}


def run_training(name: str, settings: Settings) -> None:
    """Run a training stage in this process, as the rank that the environment says."""
    TRAININGS[name](settings)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """`pretrain|finetune` and settings; the exit codes are those of `stopped_code`."""
    arm()
    if not arguments or arguments[0] not in TRAININGS:
        fail(f"maep.training.worker: first argument must be one of {', '.join(TRAININGS)}")
    _, settings = command_line("One process of a training stage.", arguments[1:])
    return stopped_code(lambda: _join_and_train(arguments[0], settings))


def _join_and_train(name: str, settings: Settings) -> None:
    join_world(settings.compute)
    run_training(name, settings)


def stopped_code(work: Callable[[], None]) -> int:
    """Run `work`; turn what ends a training early into one line and its exit code.

    128 + signal after a requested stop, 1 for a loss that is not finite, 3 when another process of the job is lost,
    4 when the training has come to its pause_at.
    """
    try:
        work()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except Paused as paused:
        print(paused, file=sys.stderr)
        return PAUSED
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except PeerLost as error:
        print(f"error: {error}; the same command goes on from the last checkpoint", file=sys.stderr)
        return PEER_LOST
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
