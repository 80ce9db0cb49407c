"""Successive halving: who is stopped follows from the readings alone; a real sweep stops, resumes and stays exact."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from maep.ablation.grid.points import Point
from maep.ablation.grid.sweep import Sweep
from maep.ablation.running import rungs
from maep.ablation.running.point_records import PointRecord, PointState, failures_of, write_record
from maep.ablation.running.rungs import halving_state, rung_directory, status_of
from maep.ablation.study import prepare
from maep.ablation.tables.cells import read_cells
from maep.ablation.tables.render import markdown_table
from maep.evaluation.scoring.tasks import plan_tasks
from maep.storage.atomic import write_json
from tests.ablation.sweeps import QUICK, command, nested, write
from tests.tiny import ROOT, Problem, environment

RATES = [1e-6, 1e-3, 3e-3, 1e-2]


def four_points(base: Path, halving: dict[str, Any]) -> tuple[Sweep, list[Point]]:
    """Four points that differ in their learning rate; none has run."""
    file = write(base / "sweep.yaml", grid={"pretrain.lr": RATES}, paper=None, halving=halving)
    study = prepare(str(file), None, [f"run.cache={base / 'cache'}", "pretrain.steps=6"])
    return study.sweep, study.points


def read_at(point: Point, step: int, robust: float) -> None:
    """Put a report where the point would be judged at a rung."""
    row = {"purifier": "a", "attack": "pgd-2", "threat_model": "oblivious", "eps": 32 / 255, "robust_accuracy": robust}
    write_json(rung_directory(point, step) / "report.json", {"results": [row]})


def names(points: list[Point]) -> list[str]:
    return [point.names[0] for point in points]


@pytest.fixture
def tried(tmp_path: Path) -> tuple[Sweep, list[Point]]:
    """A rule of two rungs for four points."""
    return four_points(tmp_path, {"keep": 0.5, "at": [2, 4]})


def test_a_rung_waits_for_all(tried: tuple[Sweep, list[Point]]) -> None:
    """Nobody is stopped while one of four has not reported; then the better half goes on, and again."""
    sweep, points = tried
    for point, robust in zip(points[:3], (1.0, 4.0, 2.0), strict=True):
        read_at(point, 2, robust)
    state = halving_state(sweep, points)
    assert (state.pending_rung, state.stopped, names(state.active)) == (2, {}, names(points))
    read_at(points[3], 2, 3.0)
    state = halving_state(sweep, points)
    assert (state.pending_rung, names(state.active)) == (4, [points[1].names[0], points[3].names[0]])
    stop = state.stopped[points[2].identity]
    assert (stop.step, stop.by, stop.reading) == (2, "robust_accuracy", 2.0)
    read_at(points[1], 4, 1.0)
    read_at(points[3], 4, 2.0)
    state = halving_state(sweep, points)
    assert (state.pending_rung, names(state.active)) == (None, [points[3].names[0]])
    assert state.stopped[points[1].identity].step == 4


def test_equal_readings_keep_the_first(tried: tuple[Sweep, list[Point]]) -> None:
    """The order of the grid decides, for every worker alike."""
    sweep, points = tried
    for point in points:
        read_at(point, 2, 1.0)
    assert names(halving_state(sweep, points).active) == names(points[:2])


def test_a_rung_that_asks_for_the_worst_case_is_attacked_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who attacks a finished point attacks it at its rung; a reading of one row is evaluated for that alone."""
    monkeypatch.setattr(rungs, "newest_whole", lambda _: tmp_path / "checkpoint")
    for reading, attackers in (({"threat_model": "worst-case"}, ["oblivious", "blackbox"]), ({}, ["oblivious"])):
        words = ["evaluation.threat_models=[oblivious, blackbox]", "evaluation.adaptive_images=4", "pretrain.steps=6"]
        readings = {"": {"attack": "pgd-2", "eps": "32/255", **reading}}
        file = write(tmp_path / "sweep.yaml", paper=None, halving={"at": [2]}, readings=readings)
        study = prepare(str(file), None, words)
        evaluation = rungs.rung_settings(study.sweep, study.points[0], 2).evaluation
        assert evaluation.threat_models == attackers
        assert len(plan_tasks(evaluation, 40)) == 2 + (len(attackers) - 1)


def test_a_failed_point_is_out(tried: tuple[Sweep, list[Point]]) -> None:
    """It holds up nobody and takes nobody's place, but is waited for by a worker that tries it again."""
    sweep, points = tried
    for point in points[1:]:
        read_at(point, 2, 1.0)
    write_record(points[0], PointRecord(PointState.FAILED, "a reason"))
    state = halving_state(sweep, points)
    assert (state.pending_rung, names(state.active)) == (4, names(points[:3]))
    before = failures_of(points)
    assert halving_state(sweep, points, before).pending_rung == 2
    write_record(points[0], PointRecord(PointState.FAILED, "a reason", failures=before[points[0].identity] + 1))
    assert halving_state(sweep, points, before).pending_rung == 4


def test_a_stopped_point_is_no_result(tried: tuple[Sweep, list[Point]]) -> None:
    """Table and cells tell where it was stopped and what it read there, and have no number of it."""
    sweep, points = tried
    for index, point in enumerate(points):
        read_at(point, 2, 10.0 + index)
        write_record(point, PointRecord(PointState.PAUSED))
    state = halving_state(sweep, points)
    assert str(status_of(points[0], state.stopped)) == "stopped at step 2 (robust accuracy 10.00 there)"
    assert str(status_of(points[3], state.stopped)) == "paused"
    cells = read_cells(sweep, points)
    assert [measure.mean for cell in cells for measure in cell.measures] == [None] * 8
    assert "| 1e-06 | stopped at step 2 (robust accuracy 10.00 there) | – | – |" in markdown_table(sweep, cells)
    write_record(points[0], PointRecord(PointState.FINISHED))
    assert str(status_of(points[0], state.stopped)) == "finished"


LONG = [*QUICK, "pretrain.steps=60", "pretrain.save_every=10"]


def sweep_file(base: Path, *, halving: dict[str, Any] | None = None) -> Path:
    base.mkdir(exist_ok=True)
    changes = {"halving": halving} if halving else {}
    scales = {"cpu": {"base": "digits", "set": nested([*LONG, "compute.claim_timeout=4"])}}
    return write(base / "sweep.yaml", grid={"pretrain.lr": RATES}, paper=None, scales=scales, **changes)


def start(problem: Problem, base: Path, sweep: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(problem, sweep, base / "out", f"run.cache={base / 'cache'}"), cwd=ROOT, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_two_workers_one_of_which_is_killed(problem: Problem, tmp_path: Path) -> None:
    """Four points, rungs at 20 and 40 of 60: a worker dies in between, the other and a later one finish one point.

    It has the weights of a run that nobody paused; the stopped ones went no further than their rungs.
    """
    sweep = sweep_file(tmp_path, halving={"keep": 0.5, "at": [20, 40], "by": "psnr_adversarial"})
    shutil.copytree(problem.cache, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "points", ignore_errors=True)
    workers = [start(problem, tmp_path, sweep) for _ in range(2)]
    while not list((tmp_path / "cache" / "points").glob("*/metrics.jsonl")):
        assert workers[0].poll() is None
        time.sleep(0.05)
    workers[0].kill()
    told = [worker.communicate(timeout=400)[0] for worker in workers]
    assert workers[1].returncode == 0, told[1]
    assert -workers[0].returncode == signal.SIGKILL
    summary = json.loads((tmp_path / "out" / "ablation.json").read_text())
    states = [point["state"].split(" (")[0] for point in summary["points"]]
    assert sorted(states) == ["finished", "stopped at step 20", "stopped at step 20", "stopped at step 40"]
    steps = []
    for point in summary["points"]:
        directory = Path(point["directory"])
        steps.append(json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        assert (directory / "purifier").exists() == (point["state"] == "finished")
        assert (point["stopped"] is None) == (point["state"] == "finished")
    assert sorted(steps) == [20, 20, 40, 60]
    best = next(point for point in summary["points"] if point["state"] == "finished")
    plain = sweep_file(tmp_path / "plain")
    shutil.copytree(problem.cache, tmp_path / "plain" / "cache")
    shutil.rmtree(tmp_path / "plain" / "cache" / "points", ignore_errors=True)
    only = f"grid.pretrain.lr=[{best['names'][0]}]"
    done = subprocess.run(
        command(problem, plain, tmp_path / "plain" / "out", f"run.cache={tmp_path / 'plain' / 'cache'}", only),
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calm = json.loads((tmp_path / "plain" / "out" / "ablation.json").read_text())["points"][0]
    assert calm["identity"] == best["identity"]
    paused, whole = (
        (Path(point["directory"]) / "purifier" / "model.safetensors").read_bytes() for point in (best, calm)
    )
    assert paused == whole
