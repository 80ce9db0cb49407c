"""One process of a stage whose work is shared out: `python -m maep.pipeline.shared_stage evaluate cfg=NAME …`.

Started N times by `maep run --nproc N`; RANK and WORLD_SIZE in the environment say which of them this is. The launcher
keeps the stage's books and, when they have ended, does what they left. A SLURM array calls `work_on_stage` instead.
"""

import os
import sys
from collections.abc import Sequence

from maep.config.command_line import command_line
from maep.pipeline.stages import SHARED, STAGES
from maep.runtime.errors import exit_code, fail
from maep.runtime.exits import ExitCode, leave
from maep.runtime.unwinding import unwind_for_launcher


def main(arguments: Sequence[str]) -> int:
    """A shared stage's name and settings; exit codes as in maep.runtime.exits."""
    unwind_for_launcher()
    share = STAGES[arguments[0]].share if arguments and arguments[0] in SHARED else None
    if share is None:
        fail(f"maep.pipeline.shared_stage: first argument must be one of {', '.join(SHARED)}")
    _, settings = command_line("One process of a stage whose work is shared out.", arguments[1:])
    share(settings, (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))
    return ExitCode.DONE


if __name__ == "__main__":
    # A signal in the middle of a library's import leaves it half made, and the interpreter's own end then aborts.
    leave(exit_code(lambda: main(sys.argv[1:])))
