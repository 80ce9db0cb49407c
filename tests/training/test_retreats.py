"""A training against the whole that loses robustness goes back with all of its state, killed meanwhile or not."""

import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from maep.config.data_settings import AttackSettings
from maep.config.load import load_settings
from maep.config.schema import ComputeSettings
from maep.config.training_settings import RobustSettings, TrainSettings
from maep.data.pairs import PairDataset
from maep.data.shards import ShardSet
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.runtime.errors import UserError
from maep.storage.manifests import CheckpointManifest
from maep.training import loop
from maep.training.checkpointing import directory as checkpoint_directory
from maep.training.checkpointing.directory import checkpoint_path, checkpoints, manifests_in
from maep.training.distributed.accelerator import make_accelerator
from maep.training.loop import Trainer, TrainingJob
from maep.training.robust import Adversary, AgainstWhole
from tests.small import train_small, write_shards
from tests.training.test_loop import metrics
from tests.training.test_robust import SMALL

PRETRAIN = {
    "attacked": "whole", "mask_ratio": 0.0, "steps": 8, "batch_size": 8, "save_every": 1, "log_every": 1, "ema": 0.9,
    "lr": 1e-5,
}  # fmt: skip
TIMED = ("images_per_second", "data_seconds", "step_seconds", "save_blocked_seconds", "save_seconds")
CHECKED = 3  # as are 6, from where trainings go back to it, and 8


class Killed(Exception):
    """What ends a training in a test, wherever it is."""


@pytest.fixture(scope="module", autouse=True)
def _scaled() -> Iterator[None]:
    """Trainings have a gradient scaler, as under fp16: a real one, for a CPU, that doubles every second step. Gradients
    are clipped before it undoes its scale, so weights follow from it.
    """

    def scaled(compute: ComputeSettings, train: TrainSettings, trained: Collection[str]) -> Accelerator:
        accelerator = make_accelerator(compute, train, trained)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        return accelerator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_accelerator", scaled)
        yield


def spoilt_twice(run: Path, then: Callable[[Trainer], object] = lambda trainer: None) -> Trainer:
    """A real training of a purifier that starts as the identity, before a classifier that knows its digits; its weights
    are spoilt in a step until it has gone back twice. then: called after that.
    """
    settings, classifier = load_settings("digits", ["compute.compile=false", "compute.threads=1"]), train_small()
    chosen, shards = replace(settings.pretrain, **PRETRAIN), run.parent / "shards"
    clean = ShardSet(shards) if shards.exists() else write_shards(shards, 80)
    robust = RobustSettings(check_every=CHECKED, check_images=16, overfit_drop=10)
    attack = AttackSettings("pgd", eps=1 / 255, step=1 / 255, steps=2)
    model = replace(SMALL, prediction="residual", patch_size=8)
    torch.manual_seed(0)
    job = TrainingJob(
        "pretrain", MaskedAutoencoder(model),
        PairDataset(clean, None, chosen, model.image_size, model.patch_size, 0, robust.check_images), chosen,
        replace(settings.objective, name="robust"), settings.compute, run / "checkpoints", run / "metrics.jsonl",
        run / "samples", CheckpointManifest(step=0),
        adversary=Adversary(against=AgainstWhole((classifier,), attack, robust, 0), classifiers=(classifier,)),
    )  # fmt: skip
    trainer = Trainer(job)
    update = trainer._update

    def spoil() -> None:
        update()
        if trainer.step == CHECKED + 1 and trainer.robust and len(trainer.robust.progress.retreats) < 2:
            with torch.no_grad():
                for parameter in trainer.parameters.values():
                    parameter.add_(1)
            then(trainer)

    trainer._update = spoil  # type: ignore[method-assign]
    return trainer


Outcome = tuple[list[dict[str, Any]], list[dict[str, float]]]


def outcome(trainer: Trainer) -> Outcome:
    """What a training has left: the manifests of its checkpoints, with the SHA-256 of all tensors, and its log."""
    lines = [
        {name: value for name, value in line.items() if name not in TIMED}
        for line in metrics(trainer.job.metrics.parent)
    ]
    return [manifest.to_json() for manifest in manifests_in(trainer.job.directory).values()], lines


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What such a training leaves that nobody stopped."""
    trainer = spoilt_twice(tmp_path_factory.mktemp("undisturbed") / "run")
    trainer.run()
    return outcome(trainer)


def test_going_back_takes_all_of_the_state(undisturbed: Outcome) -> None:
    """Steps after it have a longer attack and what they would have had in a training without it: the scaler of fp16 as
    the steps up to its own make it, and each step once in the log.
    """
    saved, lines = undisturbed
    assert [manifest["step"] for manifest in saved] == [6, 7, 8]
    for manifest in saved:
        assert [(each["step"], each["back_to"]) for each in manifest["robust"]["retreats"]] == [(6, 3), (6, 3)]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["attack_steps"] for line in lines] == [2] * 3 + [4] * 5
    scalers = [(manifest["scaler"]["scale"], manifest["scaler"]["_growth_tracker"]) for manifest in saved]
    assert scalers == [(2.0 ** (10 + step // 2), step % 2) for step in (6, 7, 8)]


def nth(call: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """It, but killed at its n-th call by the training itself; the thread that saves is let go on."""
    calls = []

    def counted(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            calls.append(1)
            if len(calls) == call:
                raise Killed
        return original(*args, **options)

    return counted


@pytest.mark.parametrize(
    ("where", "name", "call"),
    [
        pytest.param(loop, "last_robust_whole", 2, id="noticed"),
        pytest.param(Trainer, "_restore", 2, id="chosen"),
        pytest.param(loop, "remove_after", 2, id="state taken"),
        pytest.param(checkpoint_directory, "_remove", 4, id="one removed"),
        pytest.param(shutil, "rmtree", 4, id="one removed, the next half"),
        pytest.param(loop, "MetricsLog", 3, id="all removed"),
        pytest.param(Trainer, "_step", 13, id="log cut"),
        pytest.param(Trainer, "_step", 14, id="saved a step of the way"),
    ],
)
def test_killed_while_it_goes_back_it_ends_with_the_same_bits(
    where: object, name: str, call: int, tmp_path: Path, undisturbed: Outcome
) -> None:
    """The second time that it does: the next start leaves the same tensors, scaler, losses, retreats and log."""
    first = spoilt_twice(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, nth(call, getattr(where, name)))
        with pytest.raises(Killed):
            first.run()
    first.saver.finish()
    again = spoilt_twice(tmp_path / "run")
    again.run()
    assert outcome(again) == undisturbed


def test_without_a_checked_checkpoint_nothing_is_removed(tmp_path: Path, undisturbed: Outcome) -> None:
    """The one of the last check is gone: the training ends with a line that names the folder and what to
    do, at every start. With that one in its place again it goes on to the same end.
    """
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    directory = run / "checkpoints"
    wanted = checkpoint_path(directory, CHECKED)

    def take_away(trainer: Trainer) -> None:
        trainer.saver.finish()
        if wanted.exists():
            wanted.rename(elsewhere)

    for trainer in (spoilt_twice(run, take_away), spoilt_twice(run)):
        with pytest.raises(UserError, match="step 6: .* put that one back") as raised:
            trainer.run()
        assert str(raised.value).startswith(f"{directory}: ")
        assert checkpoints(directory) == [checkpoint_path(directory, step) for step in (2, 4, 5)]
    elsewhere.rename(wanted)
    trainer = spoilt_twice(run)
    trainer.run()
    assert outcome(trainer) == undisturbed
