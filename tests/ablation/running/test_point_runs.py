"""A real sweep on digits: shared work is done once, failures stay alone, finished points are not run again."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from maep.__main__ import run as main
from maep.ablation.grid.sweep import read_sweep
from maep.ablation.running.point_records import PointRecord, PointState, is_finished
from maep.ablation.study import prepare
from maep.ablation.tables.summary import write_summary
from maep.config.load import sweep_names
from maep.launch.sweeps.sweep_worker import show_sweep
from tests.ablation.sweeps import QUICK, run, write
from tests.tiny import Problem


def states(summary: dict[str, Any]) -> list[str]:
    return [point["state"] for point in summary["points"]]


@pytest.fixture(scope="module")
def swept(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Good points around one whose learning rate ends in NaN, the last with another set's pairs; and ablation.json."""
    base = tmp_path_factory.mktemp("sweep")
    other = ["data.train_limit=60", "data.test_limit=20", "data.shard_images=30", "data.workers=0"]
    sweep = write(
        base / "sweep.yaml", grid={}, paper={"good": [92.30, 88.73]},
        names={"zip": ["good", "diverges", "also good", "transferred"]},
        zip={
            "objective.distance": ["l1", "mse", "mse", "l1"], "pretrain.lr": [1e-3, 1e30, 1e-3, 1e-3],
            "pretrain.source": [None, None, None, "digits"],
            "pretrain.source_set": [[], [], [], [*other, "classifier.epochs=1", "attack.steps=1"]],
        },
    )  # fmt: skip
    done = run(problem, sweep, base / "out")
    assert done.returncode == 1, done.stderr
    return base, json.loads((base / "out" / "ablation.json").read_text())


def test_a_failed_point_does_not_stop_the_others(swept: tuple[Path, dict[str, Any]]) -> None:
    """The reason is recorded, and the points after it are finished."""
    summary = swept[1]
    assert states(summary) == ["finished", "failed", "finished", "finished"]
    assert "loss is not finite" in summary["points"][1]["reason"]
    record = PointRecord.read(Path(summary["points"][1]["directory"]) / "point.json")
    assert (record.state, record.failures) == (PointState.FAILED, 1)


def test_the_attack_runs_once_for_all_points(swept: tuple[Path, dict[str, Any]]) -> None:
    """40 test images in 2 chunks, once for four points; 60 training images of the other set in 2 shards.

    The training shards of their own set were there before.
    """
    attacked = swept[1]["attacked"]
    assert attacked["test"] == {"attacks": 2, "pieces": 2, "sets": 1}
    assert attacked["training"] == {"attacks": 2, "pieces": 2, "sets": 1}


def test_the_sweeps_own_time_is_told(swept: tuple[Path, dict[str, Any]]) -> None:
    """All of it, the part that its points' stages took, and the rest beside the trainings; one worker's file."""
    seconds = swept[1]["seconds"]
    assert seconds["workers"] == 1
    assert 0 < seconds["trainings"] == seconds["stages"]["pretrain"] + seconds["stages"]["finetune"]
    assert seconds["overhead"] == pytest.approx(seconds["sweep"] - sum(seconds["stages"].values()))
    assert 0 < seconds["overhead"] < seconds["sweep"]
    assert seconds["overhead_percent"] == pytest.approx(100 * seconds["overhead"] / seconds["trainings"])
    done = [point["seconds"] for point in swept[1]["points"] if point["state"] == "finished"]
    assert sum(seconds["stages"].values()) == pytest.approx(seconds["points"], rel=0.2)
    assert all(0 < one < seconds["sweep"] for one in done)


def test_cells_stand_beside_the_papers(swept: tuple[Path, dict[str, Any]]) -> None:
    """Ours with its interval, the paper's, the difference; the cell of the failed point is visibly empty."""
    base, summary = swept
    good, failed, unpublished, _ = summary["cells"]
    clean = good["measures"][0]
    assert (clean["paper"], clean["seeds"]) == (92.30, 1)
    assert clean["difference"] == pytest.approx(clean["mean"] - 92.30)
    assert clean["interval"][0] <= clean["mean"] <= clean["interval"][1]
    assert (failed["state"], failed["measures"][0]["mean"]) == ("failed", None)
    assert unpublished["measures"][0]["paper"] is None
    text = (base / "out" / "table.md").read_text()
    assert "| diverges | failed | – | – |" in text
    assert "92.30 / 88.73" in text
    assert "\\toprule" in (base / "out" / "table.tex").read_text()
    assert (base / "out" / "figures" / "clean_accuracy.png").stat().st_size > 1000


def test_one_page_over_all_tables(swept: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """What was run stands with scale, difference and command; every table of the paper that was not is there, empty."""
    page = tmp_path / "page.html"
    assert main(["paper", str(swept[0]), "--out", str(page)]) == 0
    text = page.read_text()
    clean = swept[1]["cells"][0]["measures"][0]
    assert f"{clean['difference']:+.2f}" in text
    assert "(cpu)" in text
    assert "launch/local.py" in text
    tables = [sweep.table for sweep in map(read_sweep, sweep_names()) if sweep.table]
    assert len(tables) > 10
    assert all(f"<h2>{table}. " in text for table in tables)
    assert text.count('class="n empty"') > 50


def test_pairs_come_from_the_source(problem: Problem, swept: tuple[Path, dict[str, Any]]) -> None:
    """The transferred purifier was trained on other images: an epoch is 60 long, and its weights differ."""
    good, _failed, _also, transferred = (Path(point["directory"]) for point in swept[1]["points"])
    lines = [json.loads(line) for line in (transferred / "metrics.jsonl").read_text().splitlines()]
    assert (lines[-1]["samples"], lines[-1]["epoch"]) == (64, 1)
    weights = [(run / "purifier" / "model.safetensors").read_bytes() for run in (good, transferred)]
    assert weights[0] != weights[1]
    record = json.loads((transferred / "stages" / "pretrain.json").read_text())
    assert record["settings"]["pretrain.source"].startswith("digits ")


def test_only_new_points_run(problem: Problem, swept: tuple[Path, dict[str, Any]]) -> None:
    """Another sweep finds what was run: of its two points, by other names, only one trains."""
    base = swept[0]
    sweep = write(base / "other.yaml", paper=None, grid={"objective.distance": ["l1", "smooth_l1"]})
    before = {path: path.stat().st_mtime_ns for path in (problem.cache / "points").glob("*/purifier/*")}
    done = run(problem, sweep, base / "other", "pretrain.lr=1e-3")
    assert done.returncode == 0, done.stderr
    summary = json.loads((base / "other" / "ablation.json").read_text())
    assert states(summary) == ["finished", "finished"]
    assert summary["points"][0]["identity"] == swept[1]["points"][0]["identity"]
    after = {path: path.stat().st_mtime_ns for path in (problem.cache / "points").glob("*/purifier/*")}
    assert {path: after[path] for path in before} == before
    assert len({path.parts[-3] for path in after.keys() - before.keys()}) == 1
    assert summary["attacked"]["test"] == {"attacks": 2, "pieces": 2, "sets": 1}


def test_a_training_on_anothers_pairs_is_theirs(problem: Problem, swept: tuple[Path, dict[str, Any]]) -> None:
    """A point on other images that takes its pairs from where a finished one has its own copies that one's purifier."""
    base = swept[0]
    source = [word for word in QUICK if word.startswith(("data.", "classifier.", "attack."))]
    sweep = write(
        base / "back.yaml", grid={}, paper=None, names={"zip": ["own", "transferred"]},
        zip={
            "data.train_limit": [120, 60], "pretrain.source": [None, "digits"], "pretrain.source_set": [[], source],
        },
    )  # fmt: skip
    done = run(problem, sweep, base / "back", "pretrain.lr=1e-3")
    assert done.returncode == 0, done.stderr
    summary = json.loads((base / "back" / "ablation.json").read_text())
    assert summary["points"][0]["identity"] == swept[1]["points"][0]["identity"]
    assert summary["pretrainings"] == {"points": 2, "trained": 1}
    own, transferred = (Path(point["directory"]) for point in summary["points"])
    assert json.loads((transferred / "pretrained_by.json").read_text())["point"] == own.name
    weights = [(run / "purifier" / "model.safetensors").read_bytes() for run in (own, transferred)]
    assert weights[0] == weights[1]
    assert json.loads((transferred / "report.json").read_text())["results"]


def test_dry_run_tells_what_is_finished(
    problem: Problem, swept: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three points those that other sweeps have finished are; nothing is written."""
    base = swept[0]
    sweep = write(base / "more.yaml", paper=None, grid={"objective.distance": ["l1", "mse", "smooth_l1"]})
    words = [f"run.dir={base / 'more'}", f"run.cache={problem.cache}", "pretrain.lr=1e-3"]
    assert show_sweep(Namespace(cfg=str(sweep), scale=None, only=""), words) == 0
    told = capsys.readouterr().out
    finished = sum(is_finished(point) for point in prepare(str(sweep), None, words).points)
    assert finished >= 2
    assert f"3 points, {finished} finished, {3 - finished} to run" in told
    assert told.count("finished") == finished + 1
    assert not (base / "more").exists()


def test_figures_of_purification(problem: Problem, swept: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A table that reads the distances of Sec. 4.2 of finished points shows them, and the page carries the figures."""
    values = ["distance_clean", "distance_adversarial", "direction_cosine", "robust_accuracy"]
    sweep = write(tmp_path / "sweep.yaml", paper=None, grid={"objective.distance": ["l1"]}, values=values)
    study = prepare(str(sweep), None, [f"run.dir={tmp_path / 'out'}", f"run.cache={problem.cache}", "pretrain.lr=1e-3"])
    summary = write_summary(study.sweep, study.points, study.directory, ["python"])
    clean, adversarial, cosine, _ = (measure.mean for measure in summary.cells[0].measures)
    assert 0 < clean < 0.5
    assert 0 < adversarial < 0.5
    assert -1 <= cosine <= 1
    for name in ("purified", "directions"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 5000
    assert not (swept[0] / "out" / "figures" / "purified.png").exists()
    assert main(["paper", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/png;base64,") == 6
    assert '<img alt="directions"' in text


def test_one_pretraining_for_two_finetunings(problem: Problem, tmp_path: Path) -> None:
    """Only one of two points trains; both have the same purifier, its log, and its minutes in the table."""
    values = ["pretrain_minutes", "finetune_minutes"]
    grid = {"finetune.method": ["lora", "full"]}
    sweep = write(tmp_path / "sweep.yaml", paper=None, grid=grid, values=values)
    done = run(problem, sweep, tmp_path / "out", "pretrain.lr=2e-3", "purify.overlap=0")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert summary["pretrainings"] == {"points": 2, "trained": 1}
    first, second = (Path(point["directory"]) for point in summary["points"])
    for name in ("purifier/model.safetensors", "purifier/config.json", "metrics.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "checkpoints").exists()
    assert not (second / "checkpoints").exists()
    trained, taken = ([measure["mean"] for measure in cell["measures"]] for cell in summary["cells"])
    assert trained[0] == taken[0] > 0
    assert trained[1] != taken[1] > 0


def test_another_table_in_the_directory_is_refused(problem: Problem, swept: tuple[Path, dict[str, Any]]) -> None:
    """Scales and sweeps do not mix: one line, exit code 2, and the table stays."""
    base = swept[0]
    known = (base / "out" / "ablation.json").read_text()
    other = write(base / "sweep2.yaml")
    done = run(problem, other, base / "out")
    assert done.returncode == 2
    assert "holds the table of name sweep" in done.stderr
    assert (base / "out" / "ablation.json").read_text() == known
