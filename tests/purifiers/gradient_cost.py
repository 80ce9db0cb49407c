"""Cost of an exact gradient: `python -m tests.purifiers.gradient_cost cfg=diffpure/digits --out FILE`.

Through 100 steps of DiffPure on one image, its network as configured with random weights: memory beside that of one
step and the states that are stored, time beside plain autograd's, which keeps the graph of all steps. Each where no
graph is kept, and where `purify.gradient_memory` has room for a few, or by its default for all.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from maep.benchmarks.evaluation_rates import Row
from maep.config.command_line import command_line
from maep.config.evaluation_settings import PurifySettings
from maep.config.schema import Settings
from maep.evaluation.audit.purification_cost import PeakMemory
from maep.evaluation.reporting.provenance import environment
from maep.purifiers.diffpure import DiffPurePurifier
from maep.purifiers.stepwise import GraphMemory, Step, stepwise, walk
from maep.runtime.device import prepare_device
from maep.runtime.errors import exit_code
from maep.storage.atomic import write_json

SIDE, STEPS, ROUNDS = 32, 100, 5  # rounds: of all ways in turn, for a median of ratios
NAME = f"exact gradient through {STEPS} steps"
FEW = 10  # steps through which plain autograd's memory is measured: the measurement itself takes long beyond
Follow = Callable[[Tensor, Tensor, list[Step]], Tensor]


def within(purifier: DiffPurePurifier, budget: int) -> Follow:
    """`stepwise` with so many bytes for graphs."""

    def follow(start: Tensor, pictures: Tensor, steps: list[Step]) -> Tensor:
        return stepwise(start, pictures, steps, GraphMemory(budget, purifier.model.parameters()))

    return follow


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
    """Memory and time, rows of each."""
    torch.manual_seed(0)
    section = replace(settings.diffpure, steps=STEPS, rounds=[])  # type: ignore[attr-defined]
    settings = replace(settings, diffpure=section)  # type: ignore[call-arg]
    purifier = DiffPurePurifier.from_settings(settings).eval().requires_grad_(False)
    return [*memory_rows(purifier), *time_rows(purifier)]


def memory_rows(purifier: DiffPurePurifier) -> list[Row]:
    """Of no graph kept, and of a budget for about `FEW`."""
    states = (STEPS + 1) * 3 * SIDE * SIDE * 4
    one, few = peak(purifier, walk, 1), peak(purifier, walk, FEW)
    none, kept = peak(purifier, within(purifier, 0), STEPS), peak(purifier, within(purifier, few), STEPS)
    what = f"{none / 1e6:.1f} MB, of which states {states / 1e6:.1f}; one step {one / 1e6:.1f} MB; plain autograd "
    what += f"through {FEW} {few / 1e6:.1f} MB"
    within_budget = f"{kept / 1e6:.1f} MB, of which states {states / 1e6:.1f} and one step {one / 1e6:.1f}; budget "
    within_budget += f"{few / 1e6:.1f} MB"
    return [
        Row(f"{NAME}, memory", what, (none - states) / one, "at most 1.5"),
        Row(f"{NAME}, memory with graphs of some steps", within_budget, (kept - states - one) / few, "at most 1"),
    ]


def time_rows(purifier: DiffPurePurifier) -> list[Row]:
    """Beside plain autograd, in turn with it, of the CPU: what else the machine does counts little so."""
    budget = PurifySettings().gradient_memory
    ways: dict[str, Follow] = {"plain": walk, "kept": within(purifier, budget), "again": within(purifier, 0)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, follow in ways.items():
            started = time.process_time()
            gradient(purifier, follow, STEPS)
            seconds[name].append(time.process_time() - started)
    return [
        _time_row(f"{NAME}, time", seconds["again"], seconds["plain"], "1.5, by three passes beside two"),
        _time_row(f"{NAME}, time within {budget / 1e9:g} GB", seconds["kept"], seconds["plain"], "at most 1.4"),
    ]


def _time_row(name: str, ours: list[float], plain: list[float], wanted: str) -> Row:
    ratio = statistics.median(our / other for our, other in zip(ours, plain, strict=True))
    what = f"{statistics.median(ours):.2f} s of CPU, plain autograd {statistics.median(plain):.2f} s"
    return Row(name, what, ratio, wanted)


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
