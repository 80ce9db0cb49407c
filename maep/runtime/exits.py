"""The exit codes of every command and of every process of a job."""

import os
import sys
from enum import IntEnum
from typing import NoReturn


class ExitCode(IntEnum):
    """How a process ended; each error of `maep.runtime.errors` carries its own. 128 + n: ended by signal n.

    FAILED is also what Python gives for an error that is ours to mend, with its traceback.
    """

    DONE = 0
    FAILED = 1  # the loss became NaN or infinite
    BAD_INPUT = 2
    PEER_LOST = 3
    PAUSED = 4
    SOME_SKIPPED = 5  # of `maep purify` with data.on_error=skip: done, but for what was left out
    RUN_UNSEEN = 66  # of a batch script: a node does not see the run directory
    INTERRUPTED = 130  # 128 + SIGINT, as shells expect
    READER_LEFT = 141  # 128 + SIGPIPE: nobody reads the output any more, as after `| head -1`


def leave(code: int) -> NoReturn:
    """End the process at once, its output written, without the interpreter's own end.

    That would wait for threads of libraries, which hang after a peer is lost, or abort the process (SIGABRT) where one
    of gloo's threads frees a tensor meanwhile.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
