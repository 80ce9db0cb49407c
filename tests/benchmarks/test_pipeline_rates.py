"""`maep bench`, whole, on a model that a CPU trains in milliseconds; and the arithmetic of its clocks."""

import time
from pathlib import Path

import pytest

from maep.__main__ import run
from maep.benchmarks.bench_report import BenchReport
from maep.benchmarks.compute_rates import Variant
from maep.benchmarks.device_clock import busy_seconds, covered, seconds_of
from tests.tiny import TINY

NAMES = (
    "shard writing", "training step, r = 0.5, fp32", "training, r = 0.5, fp32", "host reads a training step",
    "graph breaks a training step", "attack step (cifar_resnet8)", "purification",
    "adversarial shards", "shard reading (pairs)", "loader", "checkpoint save",
    "training blocked by a save", "checkpoint load", "two trainings side by side",
)  # fmt: skip


def test_the_bench_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row, each a rate beside a limit of the same run, with command, commit, device and seed; nothing else."""
    monkeypatch.chdir(tmp_path)
    words = [
        "bench",
        "cfg=digits",
        *TINY,
        "compute.device=cpu",
        "run.seed=3",
        "--seconds=0.02",
        "--batch=8",
        "run.dir=run",
    ]
    assert run(words) == 0
    report = BenchReport.read(tmp_path / "run" / "bench.json")
    assert tuple(row.name for row in report.rows) == NAMES
    rates = {row.name: row.rate for row in report.rows}
    assert (rates.pop("host reads a training step"), rates.pop("graph breaks a training step")) == (1, 0)
    assert all(rate > 0 for rate in rates.values())
    assert (report.batch, report.workers, report.seed) == (8, 0, 3)
    assert report.seconds > 0
    assert {"command", "commit", "device", "versions"} <= set(report.environment)
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "the scratch directory is gone"


def test_variants_are_named_once() -> None:
    """fp32 goes without saying; what surrogates do not have is bf16 there."""
    assert (Variant().suffix, Variant("bf16", compile=True).suffix) == ("", ", bf16, compiled")
    assert str(Variant("fp16").surrogate) == "bf16"
    assert Variant("fp32", compile=True).surrogate.compile
    assert Variant("bf16", compile=True, cuda_graphs=True).suffix == ", bf16, compiled, CUDA graphs"


def test_time_covered_counts_once() -> None:
    """Kernels on two streams at a time, one within another, and gaps between."""
    assert covered([(10, 20), (15, 30), (16, 18), (40, 41)]) == 21
    assert covered([(0, 5)]) == 5


def test_a_device_that_is_not_seen_is_not_idle() -> None:
    """Without a kernel in the profile there is no share of time, rather than one of 100 %."""
    with pytest.raises(RuntimeError, match="no kernel"):
        busy_seconds(lambda: None)


def test_seconds_are_a_median() -> None:
    """One slow call among many does not count."""
    calls = iter([0.0, 0.02, *[0.0] * 10**6])

    def work() -> None:
        time.sleep(next(calls))

    assert seconds_of(work, 0.03) < 0.01
