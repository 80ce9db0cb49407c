"""`maep bench`, whole, on a model that a CPU trains in milliseconds; and the arithmetic of its clocks."""

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from maep.__main__ import run
from maep.attacks import gradient
from maep.attacks.attack_spec import AttackSpec
from maep.benchmarks import compute_rates, device_clock, pipeline_rates
from maep.benchmarks.bench_report import BenchReport
from maep.benchmarks.compute_rates import Variant
from maep.benchmarks.device_clock import MATMUL, beside_matmul, busy_seconds, covered, seconds_of
from maep.config.load import load_settings
from maep.runtime.device import prepare_device
from maep.runtime.errors import exit_code
from maep.training import robust
from maep.training.checkpointing.async_saver import Saver
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


@pytest.mark.parametrize(
    ("words", "attacked", "read"),
    [
        ([], "", "pairs"),
        (["attack.online=true", "attack.method=fgsm"], ", with fgsm on the classifier", "clean images"),
        (
            ["attack.online=true", "attack.method=pgd", "attack.steps=3", "pretrain.attacked=whole",
             "objective.name=robust", "robust.clean_until=0.5", "robust.eps_ramp=0.5", "robust.check_every=1"],
            ", with pgd-3 on the whole", "clean images",
        ),
        (["objective.name=nim", "pretrain.mask_ratio=0"], "", "clean images"),
    ],
)  # fmt: skip
def test_a_training_that_attacks_is_measured_with_its_attack(
    words: list[str], attacked: str, read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all its steps at once, and named; and what is read of shards is counted, which then is no pair."""
    monkeypatch.setattr(pipeline_rates, "SHARD_IMAGES", 8)
    attacks: list[int] = []
    ascend = gradient.ascend

    def counted(loss: Any, images: Any, labels: Any, spec: AttackSpec, start: Any, **more: Any) -> Any:
        attacks.append(spec.steps)
        return ascend(loss, images, labels, spec, start, **more)

    monkeypatch.setattr(gradient, "ascend", counted)
    monkeypatch.setattr(robust, "ascend", counted)
    settings = load_settings("digits", [*TINY, "compute.device=cpu", *words])
    bench = pipeline_rates.Bench(settings, 4, 0.001, "cpu", tmp_path)
    bench.writing()
    pairs = bench.pairs()
    bench.compute.training(pairs, tmp_path / "run", Variant())
    assert set(attacks) == ({AttackSpec.of(settings.attack).steps} if attacked else set())
    bench.loader(pairs)
    ratio = f"r = {settings.pretrain.mask_ratio:g}"
    rows = {row.name: row for row in bench.rows}
    assert {f"training step, {ratio}, fp32{attacked}", f"training, {ratio}, fp32{attacked}"} <= set(rows)
    images = 2 if read == "pairs" else 1
    megabytes = rows["loader"].rate * images * 3 * settings.model.image_size**2 / 1e6
    assert rows[f"shard reading ({read})"].rate == pytest.approx(megabytes)


def test_a_step_of_several_threads_is_measured_on_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the product of one; with one thread alone it would be the same figure again (NAMES above)."""
    used: list[int] = []

    def counted(*arguments: Any) -> tuple[float, float]:
        used.append(torch.get_num_threads())
        return beside_matmul(*arguments)

    monkeypatch.setattr(compute_rates, "beside_matmul", counted)
    settings = load_settings("digits", [*TINY, "compute.device=cpu", "compute.threads=2"])
    prepare_device(settings.compute)
    bench = pipeline_rates.Bench(settings, 4, 0.001, "cpu", tmp_path)
    bench.writing()
    bench.compute.training(bench.pairs(), tmp_path / "run", Variant())
    step = "training step, r = 0.5, fp32"
    assert [row.name for row in bench.rows][1:4] == [step, f"{step}, one thread", "training, r = 0.5, fp32"]
    assert used == [2, 1, 2]


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


def test_a_machine_that_gets_slower_is_slower_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work as long as the matrix product keeps a share of 1 of it on a machine that halves its rate meanwhile."""
    clock = itertools.count()
    monkeypatch.setattr(device_clock, "_wall", lambda _: 1 + next(clock) / 20)
    calls: list[None] = []
    seconds, rate = beside_matmul(lambda: calls.append(None), torch.float32, "cpu", 20.0)
    assert rate * seconds / (2 * MATMUL**3) == pytest.approx(1, rel=0.1)
    assert next(clock) >= 15, "it has become half as fast or slower"


def test_a_bench_says_its_figures_and_can_be_stopped_while_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row is said when it is measured; stopped in the middle of a save, its scratch directory is removed."""
    monkeypatch.chdir(tmp_path)
    save = Saver.save

    def stopped(saver: Saver, *arguments: Any, **options: Any) -> bool:
        begun = save(saver, *arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return begun

    monkeypatch.setattr(Saver, "save", stopped)
    words = ["cfg=digits", *TINY]
    with pytest.raises(SystemExit) as ended:
        exit_code(lambda: run(["bench", *words, "compute.device=cpu", "--seconds=0.02", "--batch=8", "run.dir=run"]))
    assert ended.value.code == 143
    said = capsys.readouterr().out
    assert [name for name in NAMES if f"{name}: " in said] == list(NAMES[: NAMES.index("checkpoint save")])
    assert list(tmp_path.iterdir()) == []
