"""The classifier stage: learns, and killed anywhere it ends with the same weights, bit for bit."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from maep.config.identity import decisive_fields
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data import labelled_batches
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import build_shards
from maep.data.shards import ShardSet
from maep.models.classifiers import load_classifier
from maep.runtime.errors import NonFiniteLoss, Stopped, UserError
from maep.storage.atomic import read_json
from maep.training import classifier as stage
from maep.training.classifier import augment, learning_rate, train_classifier
from tests.tiny import ROOT, environment

SMALL = [
    "data.image_size=16", "data.train_limit=150", "data.test_limit=50", "data.workers=0", "model.image_size=16",
    "compute.threads=1", "classifier.batch_size=32", "classifier.epochs=6", "classifier.arch=cifar_resnet8",
    "classifier.save_every=1",
]  # fmt: skip
DROPOUT = ["classifier.arch=test_vit", "classifier.timm_args={img_size: 16, drop_rate: 0.3, proj_drop_rate: 0.3}"]
TRAIN = """
import sys
from maep.config.load import load_settings
from maep.runtime.errors import exit_code
from tests.training.test_classifier import train
sys.exit(exit_code(lambda: [train(load_settings("digits", sys.argv[1:]))] and 0))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean shards of some digits at 16 × 16 pixels."""
    cache = tmp_path_factory.mktemp("clean")
    return build_shards(load_settings("digits", [*SMALL, f"run.cache={cache}"]))


def settings_of(shards: Path, cache: Path, *more: str) -> Settings:
    return load_settings("digits", [*SMALL, f"data.shards={shards}", f"run.cache={cache}", *more])


def train(settings: Settings) -> Path:
    shards = Path(str(settings.data.shards))
    return train_classifier(settings, ShardSet(shards / "train"), ShardSet(shards / "test"))


def start(shards: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    words = [*SMALL, f"data.shards={shards}", f"run.cache={cache}", *more]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *words], cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_checkpoint(cache: Path, step: int) -> None:
    """Until a checkpoint of that step or a later one is committed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(int(p.name.split("-")[1]) >= step for p in cache.glob("classifiers/*.training/step-*")):
            return
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint of step {step}")


@pytest.mark.parametrize(("arch", "step"), [([], 14), (DROPOUT, 5)], ids=["resnet", "timm-dropout"])
def test_killed_training_ends_with_the_same_weights(arch: list[str], step: int, shards: Path, tmp_path: Path) -> None:
    """A process SIGKILLed after some step and started again ends with the weights of one never stopped."""
    whole = train(settings_of(shards, tmp_path / "whole", *arch))
    process = start(shards, tmp_path / "killed", *arch)
    wait_for_checkpoint(tmp_path / "killed", step)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    resumed = train(settings_of(shards, tmp_path / "killed", *arch))
    assert resumed.parent.name == whole.parent.name
    assert resumed.read_bytes() == whole.read_bytes()
    assert not list((tmp_path / "killed" / "classifiers").glob("*.training"))


def test_signal_saves_between_steps(shards: Path, tmp_path: Path) -> None:
    """SIGTERM: a checkpoint of the step at hand, one line, exit code 143; the rest then gives the same weights."""
    long = "classifier.epochs=12"
    whole = train(settings_of(shards, tmp_path / "whole", long))
    process = start(shards, tmp_path / "stopped", long)
    wait_for_checkpoint(tmp_path / "stopped", 5)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    step = re.fullmatch(r"stopped by SIGTERM after step (\d+); the same command goes on from there\n", errors)
    assert step is not None
    assert list(tmp_path.glob(f"stopped/classifiers/*.training/step-{int(step[1]):06d}/state.safetensors"))
    assert train(settings_of(shards, tmp_path / "stopped", long)).read_bytes() == whole.read_bytes()


def test_it_begins_with_the_weights_that_are_named(shards: Path, tmp_path: Path) -> None:
    """A rate of next to nothing leaves them as they were, but for batch norms' statistics of what they saw since."""
    first = train(settings_of(shards, tmp_path, "classifier.epochs=1"))
    words = ["classifier.epochs=1", "classifier.lr=1e-30", "classifier.weight_decay=0", f"classifier.initial={first}"]
    before, after = load_file(first), load_file(train(settings_of(shards, tmp_path, *words)))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("running_" in name or "num_batches" in name for name in moved)


def interrupt(monkeypatch: pytest.MonkeyPatch, settings: Settings, steps: int) -> None:
    """Train until the process fails after that many steps."""
    original = stage._Training._one_step

    def failing(self: stage._Training, *batch: torch.Tensor) -> float:
        if self.step == steps:
            raise MemoryError
        return original(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(stage._Training, "_one_step", failing)
        with pytest.raises(MemoryError):
            train(settings)


def test_damaged_checkpoint_is_passed_over(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the newest checkpoint truncated, training goes on from the one before and ends the same."""
    whole = train(settings_of(shards, tmp_path / "whole"))
    settings = settings_of(shards, tmp_path / "damaged")
    interrupt(monkeypatch, settings, 17)
    saved = sorted(tmp_path.glob("damaged/classifiers/*.training/step-*"))
    assert [path.name for path in saved] == ["step-000010", "step-000015"]
    os.truncate(saved[-1] / "state.safetensors", 1000)
    assert train(settings).read_bytes() == whole.read_bytes()


def test_a_signal_in_the_last_step_is_not_lost(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training stops with its last step saved, where it would end and the command go on to its next stage."""
    settings = settings_of(shards, tmp_path, "classifier.epochs=1", "classifier.save_every=100")
    step = stage._Training._one_step

    def signalled(training: stage._Training, images: Tensor, labels: Tensor) -> float:
        loss = step(training, images, labels)
        if training.step == training.steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(stage._Training, "_one_step", signalled)
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 5"):
        train(settings)
    monkeypatch.setattr(stage._Training, "_one_step", None)
    assert train(settings).is_file()


def test_reading_by_workers_gives_the_same_weights(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that do not fit into memory are read by loader workers, and the weights are the same."""
    whole = train(settings_of(shards, tmp_path / "whole", "classifier.epochs=2"))
    monkeypatch.setattr(labelled_batches, "IN_MEMORY", 0)
    read = train(settings_of(shards, tmp_path / "read", "classifier.epochs=2", "data.workers=1"))
    assert read.read_bytes() == whole.read_bytes()


def test_digits_are_learnt(tmp_path: Path) -> None:
    """All digits at half the size: over 95 % of the test images right within seconds, as the manifest says."""
    words = [*SMALL, "data.train_limit=null", "data.test_limit=null", f"run.cache={tmp_path}", "run.seed=1"]
    settings = load_settings("digits", [*words, "classifier.epochs=8", "classifier.warmup=0.1", "classifier.lr=0.05"])
    shards = build_shards(settings)
    test = ShardSet(shards / "test")
    weights = train_classifier(settings, ShardSet(shards / "train"), test)
    facts = read_json(weights.parent / "manifest.json")
    model = load_classifier(settings.classifier, 10, weights)
    assert facts["clean_accuracy"] > 95
    assert facts["clean_accuracy"] == pytest.approx(stage.accuracy(model, test, torch.device("cpu")), abs=0.01)
    assert facts["test_images"] == len(test)


def test_finished_training_is_not_repeated(shards: Path, tmp_path: Path) -> None:
    """Finished weights are left alone; altered ones are trained again, to the same bytes."""
    settings = settings_of(shards, tmp_path, "classifier.epochs=1")
    weights = train(settings)
    content, when = weights.read_bytes(), weights.stat().st_mtime_ns
    assert train(settings) == weights
    assert weights.stat().st_mtime_ns == when
    os.truncate(weights, 1000)
    assert train(settings).read_bytes() == content


def test_weights_are_for_settings_and_images(shards: Path, tmp_path: Path) -> None:
    """The weights' place depends on seed, schedule, arithmetic and images, not on how often they are saved."""
    (tmp_path / "w.safetensors").touch()
    place = classifier_weights(settings_of(shards, tmp_path))
    others = ["run.seed=3", "classifier.lr=0.01", "classifier.epochs=9", "compute.precision=bf16"]
    assert len({place, *(classifier_weights(settings_of(shards, tmp_path, other)) for other in others)}) == 5
    assert classifier_weights(settings_of(shards, tmp_path, "classifier.save_every=5")) == place
    swapped = tmp_path / "swapped"
    shutil.copytree(shards / "test", swapped / "train")
    assert classifier_weights(settings_of(swapped, tmp_path)) != place
    given = settings_of(shards, tmp_path, f"classifier.weights={tmp_path / 'w.safetensors'}")
    assert classifier_weights(given) == tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"classifier\.weights=nowhere: no such file"):
        classifier_weights(settings_of(shards, tmp_path, "classifier.weights=nowhere"))
    with pytest.raises(UserError, match=r"no clean train shards; run shards/build\.py"):
        classifier_weights(settings_of(tmp_path / "none", tmp_path))


def test_loss_that_is_not_finite_stops(shards: Path, tmp_path: Path) -> None:
    """A diverging training stops, naming the step, the samples and the last good checkpoint."""
    settings = settings_of(shards, tmp_path, "classifier.lr=1e30", "classifier.save_every=1")
    with pytest.raises(
        NonFiniteLoss, match=r"loss is (nan|inf) at step \d+; samples \d{9} \(epoch 0\).*checkpoint: none"
    ):
        train(settings)
    assert not classifier_weights(settings).exists()


def test_arithmetic_without_a_device_is_refused(shards: Path, tmp_path: Path) -> None:
    """fp16 on a CPU is refused before anything is trained."""
    with pytest.raises(UserError, match=r"compute\.precision=fp16: needs a CUDA device"):
        train(settings_of(shards, tmp_path, "compute.precision=fp16", "compute.device=cpu"))


def test_weights_have_the_networks_own_keys(shards: Path, tmp_path: Path) -> None:
    """The file holds the bare keys that other loaders of the architecture expect, and no mean or deviation."""
    keys = set(load_file(train(settings_of(shards, tmp_path, "classifier.epochs=1"))))
    assert {"conv1.weight", "layer1.0.bn1.running_mean", "linear.bias"} <= keys
    assert not {key for key in keys if "mean" in key and "running" not in key}


# --- averaged weights ---

SHORT = ["classifier.batch_size=8", "classifier.epochs=3"]  # 57 steps of 150 images, of which two lie in two epochs
EPOCH_ENDS = (19, 38, 57)


def followed(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> list[dict[str, Tensor]]:
    """Weights and buffers after each step of a training that averages nothing."""
    states, original = [], stage._Training._one_step

    def watched(self: stage._Training, *batch: Tensor) -> float:
        loss = original(self, *batch)
        states.append({name: value.double().clone() for name, value in self.network.network.state_dict().items()})
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(stage._Training, "_one_step", watched)
        train(settings)
    return states


def check_averaged(found: dict[str, Tensor], expected: dict[str, Tensor], last: dict[str, Tensor]) -> None:
    """Parameters are the average; batch norms' statistics, and nothing else, those after the last step."""
    assert found.keys() == last.keys()
    for name, value in found.items():
        is_statistic = "running" in name or "num_batches" in name
        torch.testing.assert_close(value.double(), (last if is_statistic else expected)[name], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found["linear.weight"].double(), last["linear.weight"], rtol=0.01)


def test_the_average_over_epochs_is_its_formula(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights at the first epoch's end, and τ of that and 1 - τ of those at each further end, the last included."""
    states = followed(monkeypatch, settings_of(shards, tmp_path, *SHORT))
    words = ["classifier.averaging=epochs", "classifier.averaging_decay=0.7"]
    found = load_file(train(settings_of(shards, tmp_path, *SHORT, *words)))
    assert len(states) == EPOCH_ENDS[-1]
    first, *rest = (states[step - 1] for step in EPOCH_ENDS)
    expected = first
    for state in rest:
        expected = {name: 0.7 * expected[name] + 0.3 * state[name] for name in state}
    check_averaged(found, expected, states[-1])


def test_the_average_over_steps_is_its_formula(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights themselves for 2.5 % of the steps; then of t steps more min(τ, (1 + t) / (10 + t)) is kept."""
    states = followed(monkeypatch, settings_of(shards, tmp_path, *SHORT))
    words = ["classifier.averaging=steps", "classifier.averaging_decay=0.8"]
    found = load_file(train(settings_of(shards, tmp_path, *SHORT, *words)))
    expected = states[0]
    for done, state in enumerate(states[1:], 2):
        t = done - 0.025 * 57
        keep = min(0.8, (1 + t) / (10 + t)) if t >= 0 else 0.0
        expected = {name: keep * expected[name] + (1 - keep) * state[name] for name in state}
    check_averaged(found, expected, states[-1])


def test_averaging_warms_up_for_a_fortieth(shards: Path, tmp_path: Path) -> None:
    """Of 200 steps the average is the very weights after the first four, and no longer after the fifth and sixth."""
    words = ["classifier.batch_size=3", "classifier.epochs=4", "classifier.averaging=steps"]
    settings = settings_of(shards, tmp_path, *words)
    training = stage._Training(settings, ShardSet(shards / "train"), tmp_path / "training")
    assert training.steps == 200
    assert training.average is not None
    weight, part = training.network.network.linear.weight, training.average.parts["linear.weight"]
    for step in range(1, 7):
        with torch.no_grad():
            weight.add_(1.0)
        training.step = step
        training._take_in(training.average)
        assert torch.equal(part, weight) == (step < 5)


def test_the_accuracy_is_that_of_the_average(shards: Path, tmp_path: Path) -> None:
    """The manifest's, of the very weights in the file, and another than the last weights'."""
    last, averaged = (
        train(settings_of(shards, tmp_path, *SHORT, f"classifier.averaging={each}")) for each in ("none", "steps")
    )
    settings = settings_of(shards, tmp_path).classifier
    said = [read_json(weights.parent / "manifest.json")["clean_accuracy"] for weights in (last, averaged)]
    model = load_classifier(settings, 10, averaged)
    assert said[1] == pytest.approx(stage.accuracy(model, ShardSet(shards / "test"), torch.device("cpu")))
    assert said[0] != said[1]


@pytest.mark.parametrize(("averaging", "step"), [("epochs", 17), ("steps", 17), ("epochs", 28)])
def test_an_interrupted_average_goes_on(
    averaging: str, step: int, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the checkpoints: the bits of a training that nobody stopped; also after its last step but one."""
    words = [f"classifier.averaging={averaging}", "classifier.averaging_decay=0.8"]
    whole = train(settings_of(shards, tmp_path / "whole", *words))
    settings = settings_of(shards, tmp_path / "again", *words)
    interrupt(monkeypatch, settings, step)
    assert train(settings).read_bytes() == whole.read_bytes()


def test_without_an_average_nothing_is_kept(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in checkpoints nor in an identity that was given before there were averages."""
    settings = settings_of(shards, tmp_path)
    interrupt(monkeypatch, settings, 7)
    (state,) = tmp_path.glob("classifiers/*.training/step-*/state.safetensors")
    assert not [name for name in load_file(state) if name.startswith("average")]
    names = {"averaging", "averaging_decay"}
    assert names.isdisjoint(decisive_fields(settings.classifier, "classifier"))
    assert classifier_weights(settings) != classifier_weights(
        settings_of(shards, tmp_path, "classifier.averaging=epochs")
    )


# --- augmentation and schedule ---


def test_augmentation_crops_and_mirrors() -> None:
    """A draw says which crop of the padded image is taken and whether it is mirrored; the middle one is the image."""
    images = torch.arange(2 * 3 * 5 * 5, dtype=torch.uint8).view(2, 3, 5, 5)
    middle = torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.5, 0.1]])
    kept = augment(images, middle, padding=2, flip=True)
    assert torch.equal(kept[0], images[0])
    assert torch.equal(kept[1], images[1].flip(2))
    assert torch.equal(augment(images, middle, padding=2, flip=False), images)
    corner = augment(images, torch.tensor([[0.0, 0.999, 0.9]]).expand(2, 3), padding=2, flip=True)
    assert torch.equal(corner[:, :, 2:, :3], images[:, :, :3, 2:])
    assert not bool(corner[:, :, :2].any())
    assert not bool(corner[:, :, :, 3:].any())


def test_augmentation_is_the_samples_own() -> None:
    """An image's view does not depend on the others in its batch; every offset occurs."""
    images = torch.randint(1, 256, (200, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = torch.from_numpy(stage._draws(0, 3, 200))
    whole = augment(images, draws, padding=2, flip=True)
    assert torch.equal(augment(images[50:53], draws[50:53], padding=2, flip=True), whole[50:53])
    assert len({tuple(row) for row in (draws[:, :2] * 5).long().tolist()}) == 25
    assert not torch.equal(draws, torch.from_numpy(stage._draws(0, 4, 200)))


def test_schedule_warms_up_and_ends_at_zero() -> None:
    """A linear rise to the peak over the warm-up, then a falling cosine that ends near 0."""
    settings = load_settings(None, ["classifier.lr=0.2", "classifier.warmup=0.1"]).classifier
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


@pytest.mark.parametrize(
    ("cfg", "starts"), [("trades/cifar10", {74: 0.01}), ("trades/cifar10_awp", {100: 0.01, 150: 0.001}),
                        ("soap/cifar10_joint", {100: 0.01})],
)  # fmt: skip
def test_at_its_milestones_the_rate_falls_to_a_tenth(cfg: str, starts: dict[int, float]) -> None:
    """At the first step of an epoch of 391, as published for these configurations; constant between them."""
    settings = load_settings(cfg, ["data.root=PATH"]).classifier
    steps, rate = settings.epochs * 391, 0.1
    for epoch in range(settings.epochs):
        rate = starts.get(epoch, rate)
        for step in (391 * epoch, 391 * epoch + 390):
            assert learning_rate(step, steps, settings) == pytest.approx(rate)


def test_a_long_training_begins_at_once(shards: Path, tmp_path: Path) -> None:
    """The order of three million samples is not written down before the first of them is seen."""
    training = stage._Training(
        settings_of(shards, tmp_path, "classifier.epochs=20000"), ShardSet(shards / "train"), tmp_path / "training"
    )
    tracemalloc.start()
    next(training._batches())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20
