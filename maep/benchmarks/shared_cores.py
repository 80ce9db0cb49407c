"""Two trainings on the same cores, each a process of its own, beside one of them alone."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat
from pathlib import Path

from maep.benchmarks.bench_report import BenchRow
from maep.benchmarks.compute_rates import ComputeBench, Variant
from maep.benchmarks.measured_process import MeasuredProcess, answer
from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.data.pairs import PairDataset
from maep.training.loop import Trainer

SIDE_BY_SIDE = "two trainings side by side"
PERIODS = 3  # times the seconds of other figures: how two processes disturb each other takes more steps to see


def training_command(settings: Settings, batch: int, scratch: Path, *, compiled: bool = False) -> list[str]:
    """A training that is measured, in fp32, of the shards in `scratch`, where its configuration is written too."""
    config = scratch.resolve() / f"config{'-compiled' * compiled}.yaml"
    compute = replace(settings.compute, compile=compiled)
    config.write_text(to_yaml(replace(settings, compute=compute)), encoding="utf-8")
    return [sys.executable, "-m", "maep", "bench", f"cfg={config}", "--batch", str(batch), "--beside", str(scratch)]


def side_by_side(settings: Settings, batch: int, budget: float, scratch: Path) -> BenchRow:
    """Images a second of two trainings together; the ratio to one alone is 1 where they lose nothing to each other.

    scratch: directory with the shards that the bench has written.
    """
    command = training_command(settings, batch, scratch)
    with ExitStack() as stack:
        trainings = [stack.enter_context(MeasuredProcess(command)) for _ in range(2)]
        for training in trainings:
            training.wait_until_ready()
        _rate(trainings, budget)  # not counted: the first steps touch memory for the first time
        alone, together = (_rate(group, PERIODS * budget) for group in (trainings[:1], trainings))
    limit = f"one alone {alone:.1f} images/s"
    return BenchRow(SIDE_BY_SIDE, together, "images/s", limit, together / alone)


def _rate(trainings: Sequence[MeasuredProcess], seconds: float) -> float:
    """Images a second of all of them, which train at the same time."""
    for training in trainings:
        training.ask(seconds, "wall")
    return sum(training.rate() for training in trainings)


def train_on_request(settings: Settings, pairs: PairDataset, batch: int, scratch: Path) -> None:
    """Be one of the trainings: the trainer's whole step, on one batch, as often as standard input asks."""
    bench = ComputeBench(settings, "cpu", batch, budget=0.0)
    trainer = Trainer(bench.job(pairs, scratch / "training", Variant(compile=settings.compute.compile)))
    batches = bench.batches(pairs)
    try:
        same = repeat(next(batches))
        answer(lambda: trainer.advance(same), batch, sys.stdin)
    finally:
        batches.close()
