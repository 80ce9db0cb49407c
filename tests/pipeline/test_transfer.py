"""A purifier from elsewhere, of smaller images, judged by another run: `stage=evaluate purifier=PATH`, by tiles."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from maep.config.load import load_settings
from maep.config.schema import PurifySettings
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_split
from maep.data.shards import to_float
from maep.models.classifiers import load_classifier
from maep.pipeline.execution import run_pipeline
from maep.purifiers import load_purifier
from maep.runtime.errors import UserError
from tests.tiny import Problem

TRAINED = ["model.image_size=16", "pretrain.steps=6", "pretrain.save_every=3", "finetune.method=none"]
JUDGED = [
    "evaluation.images=12", "evaluation.chunk_images=6", "evaluation.batch_size=6", "evaluation.adaptive_images=4",
    "evaluation.figure_images=2", "evaluation.attacks=[pgd-2]", "purify.overlap=4",
]  # fmt: skip


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
