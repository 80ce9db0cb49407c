"""One process of a training stage: `python -m maep.training.worker pretrain cfg=NAME …`.

Started N times by `launch/local.py --nproc N` or by torchrun; RANK and WORLD_SIZE in the environment say which
process this is. A SLURM job calls `run_training` in its own processes.
"""

import sys
from collections.abc import Callable, Sequence

from maep.config.command_line import command_line
from maep.config.schema import Settings
from maep.runtime.errors import PeerLost, exit_code, fail
from maep.runtime.exits import ExitCode, leave
from maep.training.distributed.heartbeat import is_peer_loss
from maep.training.distributed.world import join_world
from maep.training.finetune import finetune
from maep.training.pretrain import pretrain
from maep.training.signals import arm

TRAININGS = {"pretrain": pretrain, "finetune": finetune}


def run_training(name: str, settings: Settings, on_stall: Callable[[str], object] | None = None) -> None:
    """Run a training stage in this process, as the rank that the environment says.

    on_stall: called with the reason before the watchdog ends a process that stalls.
    """
    TRAININGS[name](settings, on_stall)


def main(arguments: Sequence[str]) -> int:
    """`pretrain|finetune` and settings; exit codes as in maep.runtime.exits."""
    arm()
    if not arguments or arguments[0] not in TRAININGS:
        fail(f"maep.training.worker: first argument must be one of {', '.join(TRAININGS)}")
    _, settings = command_line("One process of a training stage.", arguments[1:])
    try:
        join_world(settings.compute)
        run_training(arguments[0], settings)
    except Exception as error:
        if is_peer_loss(error):
            raise PeerLost(f"{arguments[0]}: the connection to another process broke: {error}") from error
        raise
    return ExitCode.DONE


if __name__ == "__main__":
    leave(exit_code(lambda: main(sys.argv[1:])))
