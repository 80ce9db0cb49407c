"""Measure the evaluation on this machine: `python launch/bench_evaluation.py cfg=…`, as `maep bench-evaluation …`."""

import sys

from maep.__main__ import command

if __name__ == "__main__":
    sys.exit(command("bench-evaluation"))
