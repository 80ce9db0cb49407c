"""Results of other settings: a longer training goes on, a setting put back finds its result, nothing is mixed up."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from maep.config.identity import decisive_settings
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.pipeline.execution import run_stage
from maep.pipeline.stage_records import StageRecord, read_stage_record, record_path
from maep.pipeline.stages import STAGES, Launcher
from maep.pipeline.superseded import copy_aside, earlier_result, set_aside, steps_of
from tests.tiny import Problem


def record_of(settings: Settings, *, finished: bool = True) -> StageRecord:
    """As a pretraining with no stage before it would leave it."""
    inputs = {"shards": "", "attack": ""}
    return StageRecord(decisive_settings(settings, "pretrain"), inputs, finished, "x", 1.0)


def run_with(tmp_path: Path, *words: str) -> Settings:
    """Settings of a run in tmp_path."""
    return load_settings("digits", [f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}", *words])


def write_outputs(run: Path, content: str) -> None:
    """What a pretraining leaves, as short texts."""
    for name in ("checkpoints/step-000012/weights", "purifier/model.safetensors", "metrics.jsonl", "samples/a.jsonl"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)


def trainer(content: str) -> tuple[Launcher, list[str]]:
    """A launcher that writes `content`, and the list of what it launched."""
    launched: list[str] = []

    def launch(name: str, settings: Settings) -> None:
        launched.append(name)
        write_outputs(Path(settings.run.dir), content)

    return launch, launched


@pytest.fixture
def without_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretraining without its images: only the books of its stage are of interest here."""
    monkeypatch.setattr("maep.pipeline.stages._make_source", lambda *_: None)
    monkeypatch.setattr("maep.training.inputs.own_pairs", lambda *_: None)
    monkeypatch.setattr("maep.training.inputs.verify_pairs", lambda *_: None)


@pytest.mark.usefixtures("without_pairs")
@pytest.mark.parametrize(
    "word", ["pretrain.lr=0.5", "pretrain.batch_size=32", "pretrain.steps=7", "model.encoder_depth=2", "run.seed=3"]
)
def test_a_setting_put_back_finds_its_result(tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """There and back twice: each result is trained once, and is then found again with its own bytes."""
    stage, (launch, launched) = STAGES["pretrain"], trainer("first")
    here, there = run_with(tmp_path), run_with(tmp_path, word)
    weights = Path(here.run.dir) / "purifier" / "model.safetensors"
    run_stage(stage, here, launch)
    other, launched_there = trainer("second")
    run_stage(stage, there, other)
    assert (launched, launched_there) == (["pretrain"], ["pretrain"])
    for settings, content in ((here, "first"), (there, "second"), (here, "first")):
        capsys.readouterr()
        run_stage(stage, settings, launch)
        text = capsys.readouterr().out
        assert weights.read_text() == content
        assert "put back from" in text
        assert "finished before" in text
        record = read_stage_record(Path(here.run.dir), "pretrain")
        assert record is not None
        assert record.finished
    assert (launched, launched_there) == (["pretrain"], ["pretrain"])


@pytest.mark.usefixtures("without_pairs")
def test_a_damaged_earlier_result_is_made_again(tmp_path: Path) -> None:
    """What lies in superseded/ is believed only as far as its record goes."""
    stage, (launch, launched) = STAGES["pretrain"], trainer("first")
    here, there = run_with(tmp_path), run_with(tmp_path, "pretrain.lr=0.5")
    run_stage(stage, here, launch)
    run_stage(stage, there, trainer("second")[0])
    next(Path(here.run.dir).glob("superseded/*/purifier/model.safetensors")).write_text("damaged")
    run_stage(stage, here, launch)
    assert launched == ["pretrain", "pretrain"]


def test_two_results_of_the_same_settings_both_stay(tmp_path: Path) -> None:
    """A second one is never left in the run's way, where a training would take it for its own."""
    stage, settings, run = STAGES["pretrain"], run_with(tmp_path), tmp_path / "run"
    for content in ("one", "two"):
        write_outputs(run, content)
        set_aside(stage, run, record_of(settings))
        assert not (run / "checkpoints").exists()
    texts = {path.read_text() for path in run.glob("superseded/*/metrics.jsonl")}
    assert texts == {"one", "two"}


def test_a_copy_shares_no_log_with_the_run(tmp_path: Path) -> None:
    """Logs are appended to, so theirs are copies; a second start after a kill copies nothing again."""
    stage, settings, run = STAGES["pretrain"], run_with(tmp_path), tmp_path / "run"
    write_outputs(run, "one")
    for _ in range(2):
        copy_aside(stage, run, record_of(settings))
    (folder,) = run.glob("superseded/*")
    for name in ("metrics.jsonl", "samples/a.jsonl"):
        with (run / name).open("a") as file:
            file.write("more")
        assert (folder / name).read_text() == "one"
    assert (folder / "checkpoints/step-000012/weights").read_text() == "one"
    assert earlier_result(stage, settings, record_of(settings, finished=False)) == folder


def test_a_folder_without_a_record_is_known_by_its_name(tmp_path: Path) -> None:
    """Such as older versions left."""
    stage, settings, run = STAGES["pretrain"], run_with(tmp_path), tmp_path / "run"
    write_outputs(run, "one")
    set_aside(stage, run, record_of(settings))
    (folder,) = run.glob("superseded/*")
    (folder / "stage.json").unlink()
    assert earlier_result(stage, settings, record_of(settings, finished=False)) == folder
    assert earlier_result(stage, settings, record_of(run_with(tmp_path, "pretrain.lr=0.5"))) is None


@pytest.mark.parametrize(("word", "steps"), [("pretrain.steps=50", 50), ("pretrain.epochs=9", 200)])
def test_steps_win_over_epochs(tmp_path: Path, word: str, steps: int) -> None:
    """digits sets pretrain.steps=200."""
    assert steps_of("pretrain", run_with(tmp_path, word)) == steps


def test_a_longer_training_goes_on(problem: Problem, tmp_path: Path) -> None:
    """From step 12 on, and says so; shorter again, the result of 12 steps is there with its own bytes."""
    run = Path(shutil.copytree(problem.prepared, tmp_path / "run"))
    assert problem.run("pretrain", run, "pretrain.steps=12").returncode == 0
    short = (run / "purifier" / "model.safetensors").read_bytes()
    done = problem.run("pretrain", run, "pretrain.steps=20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pretrain.steps changed from 12 to 20: continues from step 12 with a schedule of 20 steps" in done.stdout
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))
    record = read_stage_record(run, "pretrain")
    assert record is not None
    assert record.continued == [12]
    assert json.loads(record_path(run, "pretrain").read_text())["continued"] == [12]
    long = (run / "purifier" / "model.safetensors").read_bytes()
    assert long != short
    done = problem.run("pretrain", run, "pretrain.steps=12")
    assert "finished before" in done.stdout
    assert (run / "purifier" / "model.safetensors").read_bytes() == short
    done = problem.run("pretrain", run, "pretrain.steps=20")
    assert "put back from" in done.stdout
    assert (run / "purifier" / "model.safetensors").read_bytes() == long


@pytest.mark.parametrize(("trainings", "expected"), [({"pretrain": [12]}, {"pretrain": (12,)}), ({}, {})])
def test_the_report_is_told_where_a_training_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: dict[str, list[int]], expected: dict[str, tuple[int]]
) -> None:
    """By the records of the training stages."""
    settings, told = run_with(tmp_path), []
    for name in ("pretrain", "finetune"):
        record = replace(record_of(settings), continued=trainings.get(name, []))
        record.write(record_path(Path(settings.run.dir), name))
    monkeypatch.setattr("maep.evaluation.reporting.report.build_report", lambda *_, continued: told.append(continued))
    STAGES["report"].run(settings, lambda *_: None)
    assert told == [expected]


@pytest.mark.parametrize(("word", "anew"), [("classifier.epochs=3", True), ("classifier.lr=0.2", False)])
def test_a_longer_classifier_training_begins_anew_and_says_why(
    tmp_path: Path, word: str, anew: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are shared by their settings: they must not depend on which lengths were trained before."""
    run_words = ("classifier.epochs=1", "data.train_limit=40", "data.test_limit=20", "compute.threads=1")
    for words in (run_words, (*run_words, word)):
        settings = run_with(tmp_path, *words)
        for name in ("shards", "classifier"):
            run_stage(STAGES[name], settings, lambda *_: None)
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("40 images in") == 1
    assert f"classifier: runs again: {word.partition('=')[0]} changed from" in text
    assert ("classifier: a training of another length begins anew: its learning rate falls over all" in text) == anew


def test_a_shorter_training_begins_again(problem: Problem, tmp_path: Path) -> None:
    """There is no way back along a schedule: the checkpoints of the longer one are moved aside."""
    run = Path(shutil.copytree(problem.prepared, tmp_path / "run"))
    assert problem.run("pretrain", run, "pretrain.steps=12").returncode == 0
    done = problem.run("pretrain", run, "pretrain.steps=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continues" not in done.stdout
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000005", "step-000006"]
