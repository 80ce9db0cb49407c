"""One process of a training stage: `python -m maep.training.worker pretrain cfg=NAME …`.

Started N times by `launch/local.py --nproc N`, by torchrun, or by a SLURM job; RANK and WORLD_SIZE in the
environment say which process this is.
"""

import sys
from collections.abc import Callable, Sequence

from maep.config import command_line
from maep.errors import exit_code, fail
from maep.settings import Settings
from maep.training.finetune import finetune
from maep.training.loop import NonFiniteLoss
from maep.training.pretrain import pretrain
from maep.training.signals import Stopped

TRAININGS: dict[str, Callable[[Settings], None]] = {"pretrain": pretrain, "finetune": finetune}


def run_training(name: str, settings: Settings) -> None:
    """Run a training stage in this process, as the rank that the environment says."""
    TRAININGS[name](settings)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """`pretrain|finetune` and settings; exit code 128 + signal when stopped by one, 1 for a loss not finite."""
    if not arguments or arguments[0] not in TRAININGS:
        fail(f"maep.training.worker: first argument must be one of {', '.join(TRAININGS)}")
    _, settings = command_line("One process of a training stage.", arguments[1:])
    return stopped_code(lambda: run_training(arguments[0], settings))


def stopped_code(work: Callable[[], None]) -> int:
    """Run `work`; turn a requested stop and a loss that is not finite into one line and their exit codes."""
    try:
        work()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
