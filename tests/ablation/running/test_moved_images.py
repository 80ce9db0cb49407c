"""A sweep on images at another place finds what it finished with them before."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from maep.ablation.running import moved_images
from maep.ablation.running.moved_images import take_over_point
from maep.ablation.running.overhead import OverheadTimer
from maep.ablation.running.point_runs import run_points
from maep.ablation.study import Study, prepare
from maep.config.schema import Settings
from maep.pipeline.execution import unfinished_stages
from maep.pipeline.stages import Launcher
from maep.training.worker import run_training
from tests.ablation.sweeps import write

WORDS = (
    "data.format=folders", "data.train_limit=40", "data.test_limit=10", "data.shard_images=40", "pretrain.lr=1e-3",
    "pretrain.steps=2", "pretrain.save_every=2", "evaluation.images=10", "evaluation.attacks=[fgsm]",
)  # fmt: skip


def write_images(root: Path, images: int = 80) -> Path:
    """Digits as PNG files, a folder a class."""
    digits = load_digits()
    for number in range(images):
        path = root / str(digits.target[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(path)
    return root


def study(base: Path, place: str) -> Study:
    """The sweep on images in base/place; all share a cache."""
    words = [f"run.dir={base / place}.out", f"run.cache={base / 'cache'}", f"data.root={base / place}", *WORDS]
    return prepare(str(base / "sweep.yaml"), None, words)


def settings_of(base: Path, place: str) -> Settings:
    """Of its only point."""
    (point,) = study(base, place).points
    return point.settings


def run(of: Study, launch: Launcher) -> None:
    """All its points."""
    with OverheadTimer(of.directory) as overhead:
        assert run_points(of.sweep, of.points, launch, overhead)


def nobody(name: str, _settings: Settings) -> None:
    """Launches nothing."""
    pytest.fail(f"{name} was launched")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's file beside its images `here`; its only point is finished."""
    base = tmp_path_factory.mktemp("moved")
    write_images(base / "here")
    reading = {"attack": "fgsm", "eps": "32/255"}
    write(base / "sweep.yaml", paper=None, grid={"objective.distance": ["l1"]}, readings={"": reading})
    run(study(base, "here"), run_training)
    return base


def results(settings: Settings) -> list[dict[str, object]]:
    """The rows of a report, without the digest of a configuration that names the images' place."""
    rows = json.loads((Path(settings.run.dir) / "report.json").read_text())["results"]
    return [{key: value for key, value in row.items() if key != "config_hash"} for row in rows]


def test_what_was_made_of_other_images_is_left(base: Path) -> None:
    """One image more: the point begins with its shards."""
    write_images(base / "other", 81)
    settings = settings_of(base, "other")
    take_over_point(settings, nobody)
    assert [path.name for path in Path(settings.run.dir).glob("stages/*")] == ["shards.json"]


def test_what_is_not_whole_is_passed_over(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A point whose records cannot be read, or that lost its weights; once it is whole, it is used."""
    shutil.copytree(base / "here", base / "same")
    before, settings = Path(settings_of(base, "here").run.dir), settings_of(base, "same")
    record, weights = before / "stages" / "pretrain.json", before / "purifier" / "model.safetensors"
    content, tensors = record.read_text(), weights.read_bytes()
    for damaged in (content[:50], content.replace('"seconds": ', '"seconds": 1')):
        record.write_text(damaged)
        take_over_point(settings, nobody)
        assert f"warning: {before} is passed over" in capsys.readouterr().out
    record.write_text(content)
    weights.unlink()
    take_over_point(settings, nobody)
    assert not (Path(settings.run.dir) / "purifier").exists()
    weights.write_bytes(tensors)
    take_over_point(settings, nobody)
    assert set(unfinished_stages(settings)) == {"report"}


def test_a_take_over_that_was_killed_is_completed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at each of its copies in turn, the next call goes on."""
    shutil.copytree(base / "here", base / "killed")
    settings, copy, left = settings_of(base, "killed"), moved_images._copy, 0

    def until_killed(source: Path, target: Path) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        copy(source, target)

    monkeypatch.setattr(moved_images, "_copy", until_killed)
    for number in (0, 1, 13, 15):
        left = number
        with pytest.raises(KeyboardInterrupt):
            take_over_point(settings, nobody)
    left = -1
    take_over_point(settings, nobody)
    assert set(unfinished_stages(settings)) == {"report"}
    assert not (Path(settings.run.dir) / ".taking").exists()


def test_the_same_images_at_another_place(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is trained or evaluated again, it is said whose results these are, and the point is one of its own."""
    shutil.copytree(base / "here", base / "there", copy_function=shutil.copyfile)  # with times of their own
    before, after = settings_of(base, "here"), settings_of(base, "there")
    run(study(base, "there"), nobody)
    text = capsys.readouterr().out
    assert f"data.root={base / 'here'}: the same images; results are taken from {before.run.dir}" in text
    for stage in ("attack", "pretrain", "evaluate"):
        assert f"{stage}: finished before" in text
    assert after.run.dir != before.run.dir
    assert results(after) == results(before)
    assert not list(Path(after.run.dir).rglob(".taking*"))
    logs = [Path(settings.run.dir) / "metrics.jsonl" for settings in (before, after)]
    assert not logs[0].samefile(logs[1]), "logs are appended to"
    assert unfinished_stages(before) == {}
    run(study(base, "there"), nobody)
    assert "results are taken from" not in capsys.readouterr().out
