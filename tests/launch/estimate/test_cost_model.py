"""The cost model's arithmetic, against sums done by hand."""

import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.launch.estimate.cost_model import Constant, Constants, Workload, communication_seconds, cost, memory_bytes
from maep.launch.estimate.data_sizes import training_images
from maep.launch.estimate.scaling_table import (
    node_counts,
    print_plan,
    with_measured,
    workload,
)
from maep.runtime.errors import UserError
from tests.tiny import ROOT

WORK = Workload(
    parameters=100_000_000, flops=1e12, blocks=10, channels=1000, image_bytes=3000, batch=512, steps=100,
    save_every=10, workers=4, bf16=True,
)  # fmt: skip


def machine(**values: float) -> Constants:
    """The constants with some replaced."""
    return replace(Constants(), **{name: Constant(value, "", "test") for name, value in values.items()})


def test_one_node_moves_the_gradient_inside_only() -> None:
    """All-reduce of 400 MB by 8 GPUs: twice seven eighths of it over NVLink; ZeRO-3 half as much again."""
    seconds = communication_seconds(400e6, machine(nvlink=100e9), 1, 0)
    assert seconds == pytest.approx(2 * 350e6 / 100e9)
    assert communication_seconds(400e6, machine(nvlink=100e9), 1, 3) == pytest.approx(1.5 * seconds)
    assert communication_seconds(400e6, machine(nvlink=100e9), 1, 2) == pytest.approx(seconds)


def test_between_nodes_each_card_carries_an_eighth() -> None:
    """Four nodes: three quarters of an eighth, twice, and two hops each way."""
    seconds = communication_seconds(800e6, machine(nvlink=1e30, network=10e9, hop=1e-3), 4, 0)
    assert seconds == pytest.approx(2 * (100e6 * 3 / 4 / 10e9 + 2e-3))


def test_compute_is_arithmetic_or_launches() -> None:
    """64 images a GPU are arithmetic; one image of a small model waits for launches."""
    fast = machine(peak_bf16=1e15, mfu=0.5, kernels=100, launch=1e-5)
    assert cost(WORK, fast, 1, None).compute == pytest.approx(3 * 1e12 * 64 / 0.5e15)
    assert cost(replace(WORK, flops=1e6), fast, 1, None).compute == pytest.approx(10 * 100 * 1e-5)


def test_a_slow_loader_is_the_step() -> None:
    """With one worker that takes 10 ms an image, 64 pairs take 1.28 s, whatever the GPU does."""
    slow = machine(read=0.01, decode=1e30)
    assert cost(replace(WORK, workers=1), slow, 1, None).step == pytest.approx(1.28)


def test_zero_shares_memory_out() -> None:
    """20 bytes a parameter, of which each stage shares out what it says."""
    bare = machine(activation=0, reserved=0)
    held = {stage: memory_bytes(WORK, bare, 8, stage, 1) / WORK.parameters for stage in range(4)}
    assert held == pytest.approx({0: 20, 1: 12 + 8 / 8, 2: 8 + 12 / 8, 3: 20 / 8})


def test_save_is_bounded_by_the_file_system() -> None:
    """1.6 GB by 8 writers at 100 MB/s: 2 s; 512 writers are no faster than the storage."""
    disk = machine(write=100e6, storage=1e9, to_host=1e9)
    assert cost(WORK, disk, 1, None).background == pytest.approx(2.0)
    assert cost(WORK, disk, 64, None).background == pytest.approx(1.6)
    assert cost(WORK, disk, 1, None).blocked == pytest.approx(0.2)


def test_workload_of_imagenet() -> None:
    """FLOPs and parameters are the model's own; steps follow from the data set's size."""
    work = workload(load_settings("imagenet"))
    assert work.steps == 50_046
    assert work.blocks == 16
    assert work.channels == 192 * (12 * (128 + 1) + 4 * (256 + 1))
    assert work.image_bytes == 3 * 224 * 224


def test_measured_constants_are_marked() -> None:
    """What `maep bench` measured replaces what was assumed, and says so."""
    measured = with_measured(Constants(), ROOT / "tests" / "reports" / "bench.json")
    assert {name for name in ("read", "write", "mfu") if getattr(measured, name).measured} == {"read", "write"}
    assert measured.write.value > 1e6


def test_measured_rates_come_from_where_one_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--bench PATH`, else the run's own bench.json; without either it is said which constants are assumed."""
    settings = load_settings("digits", [f"run.dir={tmp_path}"])
    print_plan(settings, Namespace(nodes="1", bench=None))
    assert "read and write are assumed, not measured" in capsys.readouterr().out
    report = ROOT / "tests" / "reports" / "bench.json"
    print_plan(settings, Namespace(nodes="1", bench=str(report)))
    assert f"read and write were measured: {report}" in capsys.readouterr().out.replace("\n", "")
    shutil.copy(report, tmp_path / "bench.json")
    print_plan(settings, Namespace(nodes="1", bench=None))
    assert "read and write were measured" in capsys.readouterr().out
    with pytest.raises(UserError, match="missing.json"):
        print_plan(settings, Namespace(nodes="1", bench=str(tmp_path / "missing.json")))


def test_unknown_size_is_refused(tmp_path: Path) -> None:
    """A data set of unknown size needs a limit or a number of steps."""
    with pytest.raises(UserError, match="number of images is not known"):
        training_images(load_settings("imagenet", ["data.name=mine", f"run.cache={tmp_path}"]))


@pytest.mark.parametrize("text", ["", "1,", "0,4", "a", "1, 4"])
def test_numbers_of_nodes(text: str) -> None:
    """Anything but numbers above 0 is refused."""
    with pytest.raises(UserError, match="--nodes"):
        node_counts(text)
