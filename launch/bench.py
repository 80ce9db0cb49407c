"""Measure this machine on a configuration: `python launch/bench.py cfg=cifar10`, the same as `maep bench …`."""

import sys

from maep.__main__ import command

if __name__ == "__main__":
    sys.exit(command("bench"))
