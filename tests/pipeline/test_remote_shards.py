"""Training from shards at an HTTP address: the same weights as from a directory, and one line when a byte differs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.data.adversarial_set import adversarial_path
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_shards_path, clean_split
from maep.models.classifiers import classifier_identity
from maep.pipeline.execution import run_pipeline
from tests.storage.http_server import Server, serving
from tests.tiny import Problem

MORE = ["pretrain.steps=6", "data.workers=1"]


@pytest.fixture
def server(problem: Problem) -> Iterator[Server]:
    with serving(problem.cache) as server:
        yield server


@pytest.fixture
def remote(problem: Problem, server: Server, tmp_path: Path) -> list[str]:
    """Arguments that name the tiny problem's shards by their addresses; the stages before training are finished."""
    settings = load_settings("digits", problem.arguments(problem.prepared)[1:])
    clean, weights = clean_split(settings, "train"), classifier_weights(settings)
    made = adversarial_path(settings, clean, classifier_identity(settings.classifier, weights))
    places = {"data.shards": clean_shards_path(settings), "attack.shards": made}
    words = [f"{key}={server.address}/{place.relative_to(problem.cache)}" for key, place in places.items()]  # type: ignore[union-attr]
    words += [*MORE, f"classifier.weights={weights}", f"data.cache_dir={tmp_path / 'blocks'}", "data.read_backoff=0"]
    settings = load_settings("digits", problem.arguments(tmp_path / "remote", *words)[1:])
    for stage in ("shards", "classifier", "attack"):
        run_pipeline(settings, stage, lambda name, _: pytest.fail(f"{name} was launched"))
    return words


def test_training_over_http_gives_the_same_weights(
    problem: Problem, remote: list[str], server: Server, run_dir: Path, tmp_path: Path
) -> None:
    """The purifier is the local run's to the bit; an altered byte ends a run with one line that names the sample."""
    for run, words in ((run_dir, MORE), (tmp_path / "remote", remote)):
        done = problem.run("pretrain", run, *words)
        assert done.returncode == 0, done.stderr
    local, other = (run / "purifier" / "model.safetensors" for run in (run_dir, tmp_path / "remote"))
    assert other.read_bytes() == local.read_bytes()
    assert any(name == "shard-00000.tar" for name, _ in server.sent)
    for tar in (problem.cache / "shards").rglob("train/shard-0000?.tar"):
        server.altered[tar.name] = bytes(tar.stat().st_size)
    done = problem.run("pretrain", tmp_path / "remote", *remote, "pretrain.lr=0.1", f"data.cache_dir={tmp_path / 'b'}")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith(f"error: {server.address}/")
    assert "is altered" in line
