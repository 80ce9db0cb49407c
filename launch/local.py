"""Run the pipeline on this machine: `python launch/local.py cfg=digits`, the same as `maep run cfg=digits`."""

import sys

from maep.__main__ import command

if __name__ == "__main__":
    sys.exit(command("run"))
