"""A purifier from elsewhere, of smaller images, judged by another run: `stage=evaluate purifier=PATH`, by tiles."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings, to_yaml
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_split
from maep.data.shards import to_float
from maep.evaluation import evaluate
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.stage import check_twin, require_classes, with_twin
from maep.models.classifiers import load_classifier
from maep.pipeline.execution import run_pipeline
from maep.purifiers import load_purifier, save_purifier
from maep.purifiers.frequency_prompts import FrequencyPromptsPurifier
from maep.purifiers.given import given_identity
from maep.purifiers.registry import purifier_class
from maep.runtime.errors import UserError
from tests.small import digits, train_small
from tests.tiny import TINY, Problem

TRAINED = ["model.image_size=16", "pretrain.steps=6", "pretrain.save_every=3", "finetune.method=none"]
QUICK = [
    "evaluation.images=12", "evaluation.chunk_images=6", "evaluation.batch_size=6", "evaluation.adaptive_images=4",
    "evaluation.figure_images=2", "evaluation.attacks=[pgd-2]",
]  # fmt: skip
JUDGED = [*QUICK, "purify.overlap=4"]


@pytest.fixture(scope="module")
def purifier(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose purifier of 16x16 images was trained by two processes."""
    run = Path(shutil.copytree(problem.prepared, tmp_path_factory.mktemp("elsewhere") / "trained"))
    done = problem.run("pretrain", run, *TRAINED, nproc=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((run / "checkpoints" / "step-000006").glob("rank-*.safetensors"))) == 2
    return run


@pytest.fixture(scope="module")
def judged(problem: Problem, purifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run directory, new, in which it was judged by the launcher on 32x32 images."""
    run = tmp_path_factory.mktemp("judge") / "run"
    done = problem.run("evaluate", run, *JUDGED, f"purifier={purifier}")
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def predictions(run: Path, name: str) -> dict[str, Any]:
    """What the records of a purifier hold, by file."""
    folder = run / "evaluation" / name
    records = {path: json.loads(path.read_text()) for path in sorted(folder.rglob("chunk-*.json"))}
    return {str(path.relative_to(folder)): record["predictions"] for path, record in records.items()}


def test_a_run_is_judged_by_another(problem: Problem, purifier: Path, judged: Path) -> None:
    """Nothing is trained; the report's name and numbers are those of this purifier, used by overlapping tiles."""
    assert not any((judged / name).exists() for name in ("checkpoints", "purifier", "metrics.jsonl"))
    rows = json.loads((judged / "report.json").read_text())["results"]
    assert [(row["threat_model"], row["purifier"], row["n"]) for row in rows] == [
        ("oblivious", "trained", 12),
        ("adaptive", "trained", 4),
    ]
    grids = json.loads((judged / "report.json").read_text())["purifying"]["trained"]["grids"]
    assert {grid["grid"]: grid["used"] for grid in grids} == {
        "plain": False,
        "overlapping, blended": True,
        "shifted, averaged": False,
    }
    assert "overlapping, blended (used here)" in (judged / "report.html").read_text()
    settings = load_settings("digits", problem.arguments(judged, *JUDGED)[1:])
    test = clean_split(settings, "test")
    classifier = load_classifier(settings.classifier, 10, classifier_weights(settings)).eval()
    images, labels = test.batch(range(12))
    with torch.no_grad():
        purified = load_purifier(purifier, settings=settings.purify)(to_float(images))
        expected = classifier(purified).argmax(1)
    found = predictions(judged, "trained")
    chunks = [found[f"oblivious/pgd-2-Linf-0.12549/chunk-000{number}.json"]["defended_clean"] for number in (0, 1)]
    assert chunks[0] + chunks[1] == expected.tolist()
    assert rows[0]["clean_accuracy"] == pytest.approx(100 * float((expected == labels).float().mean()), abs=1e-3)


@pytest.mark.parametrize(
    ("place", "name"), [("purifier", "trained"), ("checkpoints/step-000006", "trained-step-000006")]
)
def test_other_places_of_the_same_weights(
    problem: Problem, purifier: Path, judged: Path, tmp_path: Path, place: str, name: str
) -> None:
    """Its purifier/ and its last checkpoint, written by two processes, give the same predictions as the run."""
    settings = load_settings("digits", problem.arguments(tmp_path, *JUDGED, f"purifier={purifier / place}")[1:])
    run_pipeline(settings, "evaluate", lambda stage, _: pytest.fail(f"{stage} was launched"))
    assert predictions(tmp_path, name) == predictions(judged, "trained")
    earlier = load_purifier(purifier / "checkpoints" / "step-000003").state_dict()
    assert any(not torch.equal(tensor, earlier[key]) for key, tensor in load_purifier(purifier).state_dict().items())


def test_a_purifier_that_cannot_be_used(problem: Problem, purifier: Path, tmp_path: Path) -> None:
    """No purifier there, an overlap as wide as its tiles, a stage that judging does not need: refused, unwritten."""
    run = tmp_path / "run"
    done = problem.run("evaluate", run, *JUDGED, f"purifier={tmp_path}")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path}: no purifier; expected a run directory, its purifier/, or a checkpoint step-…\n"
    )
    assert not run.exists()
    done = problem.run("pretrain", run, *JUDGED, f"purifier={purifier}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "stage=pretrain: judging a given purifier needs none" in done.stderr
    assert not run.exists()
    with pytest.raises(UserError, match="purify.overlap=16: must be below the side of the tiles of .*trained, 16"):
        load_purifier(purifier, settings=PurifySettings(overlap=16))


def judge_with_twin(problem: Problem, run: Path, judged: Path, twin: Path) -> None:
    """Judge a purifier before whom an attacker follows a twin, in this process."""
    words = ("evaluation.threat_models=[oblivious,twin]", f"purifier={judged}", f"evaluation.twin={twin}")
    settings = load_settings("digits", problem.arguments(run, *QUICK, *words)[1:])
    run_pipeline(settings, "evaluate", lambda stage, _: pytest.fail(f"{stage} was launched"))


def test_an_attacker_follows_a_twin(problem: Problem, purifier: Path, tmp_path: Path) -> None:
    """Of other weights: a row of its own, a note that names the twin, and its weights are an input of the stage."""
    twin, run = purifier / "checkpoints/step-000003", tmp_path / "run"
    judge_with_twin(problem, run, purifier, twin)
    report = json.loads((run / "report.json").read_text())
    assert [(row["threat_model"], row["n"]) for row in report["results"]] == [("oblivious", 12), ("twin", 4)]
    assert "follows another purifier of the same kind, trained-step-000003" in (run / "report.html").read_text()
    assert report["honesty"]["trained"]["worst_case"][0]["n"] == 4
    inputs = json.loads((run / "stages/evaluate.json").read_text())["inputs"]
    assert inputs["evaluation.twin"] == given_identity(str(twin))
    assert inputs["evaluation.twin"] != inputs["evaluation.purifier"] == given_identity(str(purifier))


def saved(directory: Path, *words: str) -> Path:
    """An untrained purifier of some settings."""
    settings = load_settings("digits", [*TINY, *words])
    save_purifier(purifier_class(settings.purifier.kind).from_settings(settings), directory)
    return directory


def test_what_is_no_twin_is_refused(problem: Problem, purifier: Path, tmp_path: Path) -> None:
    """In one line, before anything is written: nothing there, another size or kind, no weights, the same ones."""
    tiles, median = saved(tmp_path / "tiles", "model.image_size=32"), saved(tmp_path / "m", "purifier.kind=median")
    cases = [
        (purifier, tmp_path / "none", r"none: no purifier; expected a run directory"),
        (purifier, tiles, r"evaluation\.twin=.*tiles: is of images of 32 pixels, and the judged one of 16$"),
        (purifier, median, r"evaluation\.twin=.*m: is of kind median, and maep is judged; name one of that kind$"),
        (median, median, r"evaluation\.twin=.*m: median has no weights of its own, and so no twin; leave it out$"),
        (purifier, purifier / "purifier", r"has the weights of the judged purifier; name one of another run\.seed$"),
    ]
    for judged, twin, message in cases:
        with pytest.raises(UserError, match=message):
            judge_with_twin(problem, tmp_path / "run", judged, twin)
    assert not (tmp_path / "run").exists()
    for word, message in (
        ("evaluation.threat_models=[twin]", r"evaluation\.threat_models: twin: set evaluation\.twin"),
        (f"evaluation.twin={purifier}", r"evaluation\.twin=.*: nobody follows it; add twin to evaluation\.threat_m"),
    ):
        with pytest.raises(UserError, match=message):
            load_settings("digits", [word])
    with pytest.raises(UserError, match=r"evaluation\.twin=x: is of a run's purifier; judge that by stage=evaluate"):
        evaluate(train_small(), digits(), run_dir=tmp_path / "model", twin="x", threat_models=["adaptive", "twin"])


def test_a_twin_of_other_classes_is_refused(
    problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it was trained by what a classifier says of it, and its images are there to tell; else nobody knows."""
    for name, words in (
        ("robust", ["objective.name=robust"]),
        ("plain", []),
        ("gone", ["objective.name=robust", f"run.cache={tmp_path}/none", "data.root=nowhere"]),
    ):
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text(to_yaml(load_settings("digits", problem.arguments(run, *words)[1:])))
    require_classes(str(tmp_path / "robust" / "purifier"), 10)
    with pytest.raises(
        UserError, match=r"evaluation\.twin=.*robust: was trained to tell 10 classes apart, and these ar"
    ):
        require_classes(str(tmp_path / "robust"), 7)
    require_classes(str(tmp_path / "plain"), 7)
    assert "is not known" not in "".join(capsys.readouterr())
    require_classes(str(tmp_path / "gone"), 7)
    assert "whether it was trained for 7 classes is not known (" in " ".join("".join(capsys.readouterr()).split())


def test_a_twin_of_other_classes_is_refused_before_anything_is_made(problem: Problem, tmp_path: Path) -> None:
    """Of images of which there are no shards yet: the classes are those that are found in their source."""
    run, root = tmp_path / "robust", tmp_path / "images"
    run.mkdir()
    words = ["objective.name=robust", "model.image_size=16"]
    (run / "config.yaml").write_text(to_yaml(load_settings("digits", problem.arguments(run, *words)[1:])))
    saved(run / "purifier", "run.seed=1")
    for label in "abc":
        (root / label).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(root / label / f"{number}.png")
    words = [*TINY, f"run.cache={tmp_path}/cache", f"run.dir={tmp_path}/own", f"data.root={root}", "data.format=auto"]
    words += [f"evaluation.twin={run}", "evaluation.threat_models=[twin]"]
    with pytest.raises(UserError, match="was trained to tell 10 classes apart, and these are 3; name another"):
        check_twin(load_settings("digits", words))
    assert not (tmp_path / "cache").exists()


def test_a_twin_that_cannot_stand_before_the_classifier_is_refused(problem: Problem, tmp_path: Path) -> None:
    """Before any attack: its clusters are of features that this classifier has not."""
    words = [
        "purifier.kind=frequency_prompts", "objective.name=robust", "pretrain.mask_ratio=0", "finetune.method=none",
        "frequency_prompts.clusters=2", "frequency_prompts.calibration_images=8",
    ]  # fmt: skip
    settings = load_settings("digits", problem.arguments(tmp_path / "run", *words)[1:])
    classifier = load_classifier(settings.classifier, 10, classifier_weights(settings))
    settings.evaluation.twin = str(tmp_path / "twin")
    test = clean_split(settings, "test")
    images = to_float(test.batch(range(8))[0])
    judged, twin = (FrequencyPromptsPurifier.from_settings(settings) for _ in range(2))
    judged.prepare(lambda count: images[:count], [classifier])
    twin.prepare(lambda count: images[:count], [classifier])
    torch.nn.init.ones_(twin.model.prompts)
    save_purifier(twin, tmp_path / "twin")
    defense = Defense.of(judged, classifier, "judged", "classifier")
    assert with_twin(defense, judged, settings, test).twin is not None
    twin.model.prototypes = twin.model.prototypes[:, :3]
    save_purifier(twin, tmp_path / "other")
    settings.evaluation.twin = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"evaluation\.twin=.*other: .*its clusters are of 3 features"):
        with_twin(defense, judged, settings, test)
