"""Run the pipeline on a SLURM cluster: `python launch/slurm.py --nodes 4 cfg=imagenet`, the same as `maep slurm …`."""

import sys

from maep.__main__ import command

if __name__ == "__main__":
    sys.exit(command("slurm"))
