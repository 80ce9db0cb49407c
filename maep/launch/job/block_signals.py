"""Start a command with the stop signals held back: `python maep/launch/job/block_signals.py PROGRAM ARGUMENT …`.

They arrive when it says that it can take them (`maep.training.signals.arm`), so that none comes too early.
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT))
    os.execv(sys.argv[1], sys.argv[1:])
