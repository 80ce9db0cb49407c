"""Two trainings on the same cores, each a process of its own, beside one of them alone."""

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path

from maep.benchmarks.bench_report import BenchRow
from maep.benchmarks.compute_rates import ComputeBench, Variant
from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.data.pairs import PairDataset
from maep.training.loop import Trainer

SIDE_BY_SIDE = "two trainings side by side"
PERIODS = 3  # times the seconds of other figures: how two processes disturb each other takes more steps to see
ANSWER = "bench: "  # begins the lines that are meant for the parent
READY = "ready"

Training = subprocess.Popen[str]


def side_by_side(settings: Settings, batch: int, budget: float, scratch: Path) -> BenchRow:
    """Images a second of two trainings together; the ratio to one alone is 1 where they lose nothing to each other.

    scratch: directory with the shards that the bench has written.
    """
    config = scratch.resolve() / "config.yaml"
    config.write_text(to_yaml(settings))
    command = [sys.executable, "-m", "maep", "bench", f"cfg={config}", "--batch", str(batch), "--beside", str(scratch)]
    trainings = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for training in trainings:
            _answer(training)
        alone, together = (_rate(group, PERIODS * budget) for group in (trainings[:1], trainings))
    finally:
        for training in trainings:
            training.communicate()  # closes its input, upon which it ends
    limit = f"one alone {alone:.1f} images/s"
    return BenchRow(SIDE_BY_SIDE, together, "images/s", limit, together / alone)


def _rate(trainings: Sequence[Training], seconds: float) -> float:
    """Images a second of all of them, which train at the same time."""
    for training in trainings:
        assert training.stdin
        training.stdin.write(f"{seconds}\n")
        training.stdin.flush()
    return sum(float(_answer(training)) for training in trainings)


def _answer(training: Training) -> str:
    assert training.stdout
    for line in training.stdout:
        if line.startswith(ANSWER):
            return line.removeprefix(ANSWER).strip()
    raise RuntimeError(f"a training to be measured ended with {training.wait()}; its message is above")


def train_on_request(settings: Settings, pairs: PairDataset, batch: int, scratch: Path, requests: Iterable[str]) -> int:
    """Be one of the trainings: say that all is loaded; then train for the seconds of each request, and say how fast.

    requests: lines with a number of seconds each, until there are no more. Returns the exit code.
    """
    bench = ComputeBench(settings, "cpu", batch, budget=0.0)
    trainer = Trainer(bench.job(pairs, scratch / "training", Variant()))
    batches = bench.batches(pairs)
    try:
        same = repeat(next(batches))
        trainer.advance(same)
        print(f"{ANSWER}{READY}", flush=True)
        for request in requests:
            steps, started = 0, time.perf_counter()
            while time.perf_counter() - started < float(request):
                trainer.advance(same)
                steps += 1
            print(f"{ANSWER}{steps * batch / (time.perf_counter() - started)}", flush=True)
    finally:
        batches.close()
    return 0
