"""What several workers of a sweep took is added up, whoever of them writes when."""

import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from maep.ablation.grid.points import Point, expand
from maep.ablation.grid.sweep import read_sweep
from maep.ablation.running.overhead import OverheadTimer, process_age, sweep_time
from maep.storage.atomic import write_json
from tests.ablation.sweeps import write


def one_point(base: Path) -> Point:
    point = expand(read_sweep(str(write(base / "s.yaml"))), [f"run.cache={base / 'cache'}"])[0]
    (point.directory / "stages").mkdir(parents=True, exist_ok=True)
    return point


def work(base: Path, place: str, seconds: float) -> None:
    """A worker that spends `seconds` of stage time on a point of its own."""
    (base / place).mkdir()
    point = one_point(base / place)
    with OverheadTimer(base) as overhead, overhead.on(point):
        write_json(point.directory / "stages" / "pretrain.json", {"seconds": seconds, "finished": True})


def test_workers_at_a_time(tmp_path: Path) -> None:
    """Two processes end at once, and a third comes later: nothing of what they spent is lost."""
    context = get_context("spawn")
    both = [context.Process(target=work, args=(tmp_path, name, seconds)) for name, seconds in (("a", 3.0), ("b", 4.0))]
    for process in both:
        process.start()
    for process in both:
        process.join()
    work(tmp_path, "c", 5.0)
    total = sweep_time(tmp_path)
    assert (total.workers, total.stages, total.trainings) == (3, {"pretrain": 12.0}, 12.0)


def test_what_older_versions_wrote_counts(tmp_path: Path) -> None:
    """In the folder of that time, without a version."""
    write_json(tmp_path / "spent" / "host-1-2.json", {"seconds": 9.0, "stages": {"pretrain": 4.0}})
    work(tmp_path, "a", 5.0)
    total = sweep_time(tmp_path)
    assert (total.workers, total.stages) == (2, {"pretrain": 9.0})


def test_only_the_time_of_this_call_counts(tmp_path: Path) -> None:
    """A stage that went on from an earlier life adds what it took more; one that began again, all."""
    point = one_point(tmp_path)
    stages = point.directory / "stages"
    for name in ("pretrain", "attack"):
        write_json(stages / f"{name}.json", {"seconds": 10.0, "finished": False})
    with OverheadTimer(tmp_path) as overhead, overhead.on(point):
        write_json(stages / "pretrain.json", {"seconds": 12.5, "finished": True})
        write_json(stages / "attack.json", {"seconds": 4.0, "finished": True})
    assert overhead.stages == {"pretrain": 2.5, "attack": 4.0}


def test_a_failed_point_is_counted(tmp_path: Path) -> None:
    """What it took is on disk although the worker goes down with it."""
    point = one_point(tmp_path)
    overhead = OverheadTimer(tmp_path)
    with pytest.raises(RuntimeError), overhead.on(point):
        write_json(point.directory / "stages" / "pretrain.json", {"seconds": 2.0, "finished": False})
        raise RuntimeError
    assert sweep_time(tmp_path).stages == {"pretrain": 2.0}
    assert sweep_time(tmp_path).overhead_percent == pytest.approx(100 * (sweep_time(tmp_path).sweep / 2 - 1))


def test_age_of_this_process() -> None:
    """Counted from its start, as the kernel has it."""
    before = process_age()
    time.sleep(0.05)
    assert 0.04 < process_age() - before < 5
    assert before > 0
