"""A teacher's soft labels: made shard by shard, gone on with after a kill, read by sample, refused where they lie."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maep.attacks.attack_state import identity_of
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data.classifier_weights import further_classifiers, teacher
from maep.data.images.build import clean_split
from maep.data.shards import to_float
from maep.data.soft_labels import SoftLabels, make_soft_labels, soft_label_directory, soft_label_identity
from maep.models.classifiers import build_classifier, classifier_identity, load_classifier
from maep.pipeline.execution import run_pipeline
from maep.runtime.errors import UserError
from maep.storage.sealed import MANIFEST
from maep.storage.tensor_files import save_file
from tests.tiny import Problem

TAUGHT = ["attack.online=true", "pretrain.attacked=whole", "pretrain.mask_ratio=0", "objective.name=robust",
          "finetune.method=none", "classifier.epochs=1"]  # fmt: skip


def teacher_file(directory: Path, classes: int = 10, arch: str = "cifar_resnet8") -> Path:
    """Weights of an untrained network."""
    settings = load_settings("digits", [f"classifier.arch={arch}"]).classifier
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(build_classifier(settings, classes).network.state_dict(), directory / "teacher.safetensors")
    return directory / "teacher.safetensors"


def settings_of(problem: Problem, cache: Path, *more: str) -> Settings:
    """With a cache of its own for the labels, and the problem's shards."""
    words = problem.arguments(cache.parent / "run", *TAUGHT, f"run.cache={cache}", *more)
    return load_settings("digits", words[1:])


@pytest.fixture
def settings(problem: Problem, tmp_path: Path) -> Settings:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("shards", "classifiers"):
        (cache / name).symlink_to(problem.cache / name)
    return settings_of(problem, cache, f"robust.teacher=cifar_resnet8={teacher_file(tmp_path)}")


def test_they_are_the_teachers_answers(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Sample by sample the softmax of its logits on the stored image, in any order; made once."""
    directory, clean = make_soft_labels(settings), clean_split(settings, "train")
    assert directory == soft_label_directory(settings, clean)
    teacher = load_classifier(settings.classifier, 10, Path(settings.robust.teacher.partition("=")[2]))  # type: ignore[union-attr]
    samples = [119, 0, 31, 32, 33, 5]
    with torch.no_grad():
        wanted = teacher(to_float(clean.batch(samples)[0])).softmax(1)
    torch.testing.assert_close(SoftLabels.of(settings).rows(samples), wanted, rtol=1e-4, atol=1e-6)
    assert len(list(directory.glob("*.safetensors"))) == len(clean.manifest.shards) == 4
    assert "of 120 images right" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in directory.glob("*.*s*")}
    assert len(before) >= 5
    make_soft_labels(settings)
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*.*s*")} == before


def test_a_killed_stage_goes_on(settings: Settings) -> None:
    """Without its manifest and one shard's labels it makes those alone; labels of another teacher are made again."""
    directory = make_soft_labels(settings)
    first, second, *_ = sorted(directory.glob("*.safetensors"))
    samples = range(120)
    labels = SoftLabels.of(settings).rows(samples)
    kept = first.stat().st_mtime_ns
    (directory / MANIFEST).unlink()
    second.unlink()
    make_soft_labels(settings)
    assert second.is_file()
    assert torch.equal(SoftLabels.of(settings).rows(samples), labels)
    assert first.stat().st_mtime_ns == kept
    clean = clean_split(settings, "train")
    with pytest.raises(UserError, match="labels of another teacher"):
        SoftLabels(directory, "another")
    assert identity_of(first) == soft_label_identity(settings, clean)


def test_what_is_missing_or_altered_is_named(settings: Settings) -> None:
    """Before a training starts: no labels, and a byte that changed."""
    with pytest.raises(UserError, match="the teacher's labels are missing; run stage=classifier"):
        SoftLabels.of(settings)
    first = min(make_soft_labels(settings).glob("*.safetensors"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    with pytest.raises(UserError, match="altered .*remove it, and run stage=classifier"):
        SoftLabels.of(settings).check()


def test_a_teacher_of_other_classes(problem: Problem, settings: Settings, tmp_path: Path) -> None:
    """Refused in one line by the classifier stage, before anything is trained or written."""
    path = teacher_file(tmp_path, classes=7)
    other = settings_of(problem, Path(settings.run.cache), f"robust.teacher=cifar_resnet8={path}")
    with pytest.raises(UserError, match="must answer in the 10 classes of the images: .*do not fit") as caught:
        make_soft_labels(other)
    assert str(caught.value).startswith("robust.teacher=cifar_resnet8=")
    assert "\n" not in str(caught.value)
    assert not list(Path(settings.run.cache).rglob("*.labels.safetensors"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["robust.teacher=cifar_resnet8"], "robust.teacher=cifar_resnet8: expected ARCH=PATH"),
        (["robust.teacher=cifar_resnet9=w.pt"], "robust.teacher=cifar_resnet9: depth must be 6n [+] 2"),
        (["robust.teacher=cifar_resnet8=w.pt", "objective.name=maep"], "only objective.name=robust asks"),
        (["robust.teacher=cifar_resnet8=w.pt", "finetune.method=full", "finetune.clean_shards=a",
          "finetune.adversarial_shards=b"], "leave out finetune.clean_shards"),
        (["robust.teacher=cifar_resnet8=w.pt", "pretrain.source=digits"], "leave out pretrain.source"),
        (["robust.teacher=cifar_resnet8=w.pt", "finetune.method=full", "finetune.source=digits"],
         "leave out finetune.source"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(words: list[str], message: str) -> None:
    """One line each, before anything is read."""
    with pytest.raises(UserError, match=message):
        load_settings("robust/digits", words)


def test_the_classifier_stage_makes_them(settings: Settings) -> None:
    """Also where its own weights are given; a file that is missing is said at once; lost labels are made again."""
    directory = soft_label_directory(settings, clean_split(settings, "train"))
    weights = Path(settings.robust.teacher.partition("=")[2])  # type: ignore[union-attr]
    settings.classifier.weights = str(weights)
    for stage in ("shards", "classifier"):
        run_pipeline(settings, stage, lambda name, _: pytest.fail(f"{name} was launched"))
    assert (directory / MANIFEST).is_file()
    (directory / MANIFEST).unlink()
    run_pipeline(settings, "classifier", lambda name, _: pytest.fail(f"{name} was launched"))
    assert (directory / MANIFEST).is_file()
    assert classifier_identity(settings.classifier, weights) != SoftLabels.of(settings).manifest.identity
    settings.robust.teacher = "cifar_resnet8=nowhere.pt"
    with pytest.raises(UserError, match="robust.teacher=cifar_resnet8=nowhere.pt: no such file"):
        run_pipeline(settings, "classifier", lambda name, _: pytest.fail(f"{name} was launched"))


def test_paths_of_further_classifiers_may_begin_at_home(settings: Settings) -> None:
    """As every other path; a shell leaves the `~` behind an `=` as it is."""
    named = replace(settings, robust=replace(settings.robust, teacher="a=~/x.pt", classifiers=["b=~/y.pt", "c"]))
    taught = teacher(named)
    assert taught is not None
    weights = [taught.classifier.weights, *(each.classifier.weights for each in further_classifiers(named))]
    assert weights == [str(Path.home() / "x.pt"), str(Path.home() / "y.pt"), None]
