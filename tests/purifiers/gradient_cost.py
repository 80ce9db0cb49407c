"""Cost of an exact gradient: `python -m tests.purifiers.gradient_cost cfg=diffpure/digits --out FILE`.

Through 100 steps of DiffPure on one image, its network as configured with random weights: memory beside that of one
step and the states that are stored, time beside plain autograd's, which keeps the graph of all steps.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from maep.benchmarks.evaluation_rates import Row, timed
from maep.config.command_line import command_line
from maep.config.schema import Settings
from maep.evaluation.audit.purification_cost import PeakMemory
from maep.evaluation.reporting.provenance import environment
from maep.purifiers.diffpure import DiffPurePurifier
from maep.purifiers.stepwise import Step, stepwise, walk
from maep.runtime.device import prepare_device
from maep.runtime.errors import exit_code
from maep.storage.atomic import write_json

SIDE, STEPS, ROUNDS = 32, 100, 5  # rounds: of both in turn, for a median
FEW = 10  # steps through which plain autograd's memory is measured: the measurement itself takes long beyond
Follow = Callable[[Tensor, Tensor, list[Step]], Tensor]


def gradient(purifier: DiffPurePurifier, follow: Follow, steps: int) -> Tensor:
    """Of the sum of what comes out with respect to one picture, through the first `steps` steps."""
    pictures = torch.zeros(1, 3, SIDE, SIDE).requires_grad_()
    seeds = torch.tensor([1])
    state = follow(purifier.start(pictures, seeds), pictures, purifier.steps(seeds)[:steps])
    (found,) = torch.autograd.grad(state.square().sum(), pictures)
    return found


def peak(purifier: DiffPurePurifier, follow: Follow, steps: int) -> int:
    """Bytes of tensors alive at once, at most."""
    with PeakMemory() as memory:
        gradient(purifier, follow, steps)
    return memory.peak


def measure(settings: Settings) -> list[Row]:
    """Memory and time, a row each."""
    torch.manual_seed(0)
    section = replace(settings.diffpure, steps=STEPS, rounds=[])  # type: ignore[attr-defined]
    settings = replace(settings, diffpure=section)  # type: ignore[call-arg]
    purifier = DiffPurePurifier.from_settings(settings).eval().requires_grad_(False)
    states = (STEPS + 1) * 3 * SIDE * SIDE * 4
    whole, one, few = peak(purifier, stepwise, STEPS), peak(purifier, walk, 1), peak(purifier, walk, FEW)
    what = f"{whole / 1e6:.1f} MB, of which states {states / 1e6:.1f}; one step {one / 1e6:.1f} MB; plain autograd "
    what += f"through {FEW} {few / 1e6:.1f} MB"
    rows = [Row(f"exact gradient through {STEPS} steps, memory", what, (whole - states) / one, "at most 1.5")]
    seconds: dict[Follow, list[float]] = {stepwise: [], walk: []}
    for _ in range(ROUNDS):
        for follow, times in seconds.items():
            times.append(timed(lambda follow=follow: gradient(purifier, follow, STEPS))[0])  # type: ignore[misc]
    ours, others = (statistics.median(times) for times in seconds.values())
    what = f"{ours:.2f} s, plain autograd {others:.2f} s"
    return [*rows, Row(f"exact gradient through {STEPS} steps, time", what, ours / others, "at most 1.4")]


def main() -> int:
    """Measure, print, write."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--out", type=Path, required=True, help="where to write")
    namespace, settings = command_line(__doc__ or "", sys.argv[1:], options=options)
    prepare_device(settings.compute)
    rows = [row.to_json() for row in measure(settings)]
    for row in rows:
        print(row)
    write_json(namespace.out, {"schema": 1, "environment": environment(sys.argv), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
