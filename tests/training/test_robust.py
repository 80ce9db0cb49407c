"""Training against the whole: what is attacked, by which attack, and how a training that overfits goes back."""

import shutil
import signal
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.config.data_settings import AttackSettings
from maep.config.load import load_settings
from maep.config.training_settings import ModelSettings, RobustSettings
from maep.data.pairs import PairBatch, PairDataset
from maep.launch.monitor.stage_progress import progress_of
from maep.models.masked_autoencoder import MaskedAutoencoder, visible_index
from maep.pipeline.execution import run_pipeline
from maep.pipeline.superseded import steps_of
from maep.runtime.errors import Paused, UserError
from maep.storage.manifests import CheckpointManifest, Retreat, RobustProgress
from maep.storage.sealed import MANIFEST
from maep.training.checkpointing.directory import (
    Retention,
    checkpoint_path,
    checkpoints,
    manifests_in,
    most_robust,
    newest_checked,
    prune,
)
from maep.training.inputs import adversary, own_pairs
from maep.training.loop import Trainer, TrainingJob
from maep.training.pretrain import seeded_purifier
from maep.training.robust import MOST_RETREATS, AgainstWhole, RobustTraining, accuracies, attack_at, describe
from tests.small import digits, train_small, write_shards
from tests.tiny import Problem
from tests.training.test_loop import metrics, stop_at, weights

BASE = AttackSpec("nfgsm", "Linf", eps=0.1, step=0.1, steps=1, random_start=True, targeted=False)
SMALL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=32,
    decoder_depth=1, decoder_heads=2,
)  # fmt: skip
# Held-out images are many enough to rise and fall; whatever they lose by is too much.
WHOLE = [
    "attack.online=true", "attack.steps=2", "pretrain.attacked=whole", "objective.name=robust",
    "pretrain.mask_ratio=0", "pretrain.steps=20", "pretrain.save_every=4", "robust.check_every=5",
    "robust.check_images=40", "robust.eps_ramp=0.3", "robust.overfit_drop=100",
]  # fmt: skip


@pytest.mark.parametrize(
    ("progress", "retreats", "expected"),
    [
        (0.1, 0, ("nfgsm", 0.0, 0, 0.0)),
        (0.3, 0, ("nfgsm", 0.05, 1, 0.05)),
        (0.6, 0, ("nfgsm", 0.1, 1, 0.1)),
        (0.9, 0, ("pgd", 0.1, 2, 0.0625)),
        (0.6, 2, ("pgd", 0.1, 3, 0.125 / 3)),
        (0.9, 1, ("pgd", 0.1, 3, 0.125 / 3)),
        (0.9, 3, ("pgd", 0.1, 5, 0.125 / 5)),
    ],
)
def test_the_attack_follows_its_schedule(
    progress: float, retreats: int, expected: tuple[str, float, int, float]
) -> None:
    """None, then a budget that grows, then PGD at the end; longer by one step for every retreat."""
    settings = RobustSettings(clean_until=0.2, eps_ramp=0.2, late_steps=2, late_from=0.8)
    spec = attack_at(BASE, settings, progress, retreats)
    assert (spec.method, spec.steps) == (expected[0], expected[2])
    assert (spec.eps, spec.step) == pytest.approx((expected[1], expected[3]))


@pytest.mark.parametrize("late", [0, 2, 3, 7])
@pytest.mark.parametrize("base", [BASE, replace(BASE, method="pgd", step=0.03, steps=5)])
def test_every_retreat_makes_the_attack_of_every_step_longer(base: AttackSpec, late: int) -> None:
    """By one step, late in the training too: under the same attack the same would be lost again, to the bit."""
    settings = RobustSettings(clean_until=0.2, late_steps=late, late_from=0.8)
    for progress in (0.3, 0.9, 1.0):
        steps = [attack_at(base, settings, progress, retreats).steps for retreats in range(MOST_RETREATS + 1)]
        assert all(after >= before + 1 for before, after in pairwise(steps)), (progress, steps)


def whole_training(compiled: bool = False) -> tuple[RobustTraining, MaskedAutoencoder, nn.Module]:
    """A random purifier before a trained classifier of the digits."""
    torch.manual_seed(0)
    model, classifier = MaskedAutoencoder(SMALL), train_small()
    against = AgainstWhole((classifier,), AttackSettings(eps=0.2, step=0.05, steps=5), RobustSettings(), 0)
    return RobustTraining(against, model, torch.device("cpu"), torch.float32, compiled=compiled), model, classifier


def losses(model: nn.Module, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(classifier(model(images).clamp(0, 1)), labels, reduction="none")


def test_the_attack_sees_the_purifier_as_it_is_now() -> None:
    """It raises the loss of the whole, in budget; after the weights changed in place, that of the changed whole.

    No parameter gets a gradient, and images fare the same alone as in a batch.
    """
    robust, model, classifier = whole_training()
    images, labels = (part[:16] for part in digits())
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    before = robust.attack(parameters, images, labels, None, robust.at(1.0), range(16))
    assert (before - images).abs().max() <= 0.2 + 1e-6
    assert (losses(model, classifier, before, labels) > losses(model, classifier, images, labels)).float().mean() > 0.9
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    after = robust.attack(parameters, images, labels, None, robust.at(1.0), range(16))
    assert losses(model, classifier, after, labels).mean() > losses(model, classifier, before, labels).mean()
    alone = robust.attack(parameters, images[3:4], labels[3:4], None, robust.at(1.0), [3])
    assert (alone - after[3:4]).abs().max() < 1e-4
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_an_index_that_is_known_changes_nothing() -> None:
    """With half of the patches hidden: the same adversarial images whether the model finds the visible ones or not."""
    robust, model, _ = whole_training()
    images, labels = (part[:4] for part in digits())
    visible = torch.rand(4, model.num_patches).argsort(1) < model.num_patches // 2
    args = (dict(model.named_parameters()), images, labels, visible, robust.at(1.0), range(4))
    assert torch.equal(robust.attack(*args, visible_index(visible)), robust.attack(*args))


def test_a_compiled_attack_is_the_attack() -> None:
    """Through torch.compile the adversarial images are the same but for a few signs of vanishing gradients."""
    (plain, model, _), (compiled, *_) = whole_training(), whole_training(compiled=True)
    images, labels = (part[:4] for part in digits())
    args = (dict(model.named_parameters()), images, labels, None, plain.at(1.0), range(4))
    difference = (plain.attack(*args) - compiled.attack(*args)).abs()
    assert (difference > 1e-5).float().mean() < 0.02


def test_an_attack_that_cannot_be_compiled_is_followed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine without a compiler it is the attack that it would have been, which is said."""

    def fails(graph: object, inputs: object) -> NoReturn:
        raise RuntimeError("g++ was not found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    (plain, model, _), (compiled, *_) = whole_training(), whole_training(compiled=True)
    images, labels = (part[:2] for part in digits())
    args = (dict(model.named_parameters()), images, labels, None, plain.at(1.0), range(2))
    assert torch.equal(plain.attack(*args), compiled.attack(*args))
    assert compiled.compiled is not None
    assert compiled.compiled.has_failed
    assert "compute.compile=true: torch.compile failed" in capsys.readouterr().out


def test_each_step_draws_a_classifier_and_attacks_that_one() -> None:
    """Of two about as often, by the step alone; attacked is the one that was drawn: its loss rises more than by an
    attack on the other.
    """
    torch.manual_seed(0)
    model, both = MaskedAutoencoder(SMALL), (train_small(), train_small(kind="perceptron"))
    against = AgainstWhole(both, AttackSettings(eps=0.2, step=0.05, steps=5), RobustSettings(), 0)
    robust = RobustTraining(against, model, torch.device("cpu"), torch.float32, compiled=False)
    drawn = [robust.drawn(step) for step in range(200)]
    assert 70 < sum(drawn) < 130
    assert drawn == [robust.drawn(step) for step in range(200)]
    assert not any(whole_training()[0].drawn(step) for step in range(20))
    images, labels = (part[:32] for part in digits())
    args = (dict(model.named_parameters()), images, labels, None, robust.at(1.0), range(32))
    attacked = [robust.attack(*args, which=which) for which in (0, 1)]
    for which, classifier in enumerate(both):
        own, other = (losses(model, classifier, attacked[each], labels).mean() for each in (which, 1 - which))
        assert own > other + 0.1


def test_a_drop_between_checks_is_a_collapse_and_lengthens_the_attack() -> None:
    """Only a fall beyond robust.overfit_drop, and under an attack: where none is made yet, none is overfitted to, and
    none could be longer; the fifth ends the training with a line.
    """
    robust, *_ = whole_training()
    assert not robust.has_collapsed(RobustProgress(accuracy=10.0), BASE)
    robust.progress = RobustProgress(accuracy=50.0, checked=True)
    assert not robust.has_collapsed(RobustProgress(accuracy=30.0), BASE)
    assert robust.has_collapsed(RobustProgress(accuracy=29.0), BASE)
    assert not robust.has_collapsed(RobustProgress(accuracy=29.0), attack_at(BASE, RobustSettings(clean_until=1), 1, 2))
    retreat = Retreat(40, 20, 29.0)
    for count in range(1, MOST_RETREATS + 1):
        robust.progress = RobustProgress(retreats=robust.with_retreat(retreat))
        assert robust.progress.retreats == (retreat,) * count
        assert (robust.at(1.0).method, robust.at(1.0).steps) == ("pgd", 5 + count)
    with pytest.raises(UserError, match="lower the learning rate"):
        robust.with_retreat(retreat)


class Scaled(nn.Module):
    """A purifier of one number: images [N, 3, H, W] → the same, times `scale`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        return images * self.scale


class Plane(nn.Module):
    """Two classes on either side of a plane: images → logits [N, 2], of which the first is 0."""

    def __init__(self, normal: Tensor, offset: float) -> None:
        super().__init__()
        self.normal, self.offset = normal, offset

    def forward(self, images: Tensor) -> Tensor:
        side = (images * self.normal).flatten(1).sum(1) - self.offset
        return torch.stack([torch.zeros_like(side), side], 1)


def test_held_out_accuracies_are_those_of_a_plane(tmp_path: Path) -> None:
    """Before a plane the worst image within eps is its corner: what stands there is counted, of every held-out image,
    the last few too, for the trained weights and for the averaged ones, within all of eps though the training's attack
    has none of it yet.
    """
    images, labels = digits(2)
    normal = images[labels == 1].mean(0) - images[labels == 0].mean(0)
    offset = float((images * normal).flatten(1).sum(1).mean())
    eps = 0.15

    def right(scale: float, budget: float) -> float:
        side = torch.where(labels == 1, -1.0, 1.0)[:, None, None, None] * normal.sign()
        worst = (images + budget * side).clamp(0, 1)
        return 100 * float(((Plane(normal, offset)(scale * worst).argmax(1) == labels)[pairs.held]).double().mean())

    train = load_settings("digits", []).pretrain
    pairs = PairDataset(write_shards(tmp_path / "train", 120, 2), None, train, 16, 4, 0, held_out=40)
    against = AgainstWhole((Plane(normal, offset),), AttackSettings("nfgsm", eps=eps), RobustSettings(clean_until=1), 0)
    robust = RobustTraining(against, Scaled(), torch.device("cpu"), torch.float32, compiled=False)
    assert robust.at(1.0).eps == 0
    parts: list[int] = []
    weights, averaged = {"scale": torch.tensor(0.9)}, {"scale": torch.tensor(0.7)}
    now = robust.check(pairs, weights, averaged, 16, lambda: parts.append(1))
    wanted = RobustProgress(
        right(0.9, eps), True, averaged=right(0.7, eps), clean=right(0.7, 0.0), fgsm=right(0.9, eps)
    )
    assert now == wanted
    assert len(parts) == 2 * 3, "of 16, 16 and 8 images"
    assert len({wanted.accuracy, wanted.averaged, wanted.clean}) == 3, "accuracies that tell nothing"
    assert robust.check(pairs, weights, weights, 40, lambda: None).averaged == wanted.accuracy


def test_a_check_tells_the_accuracy_under_one_step(tmp_path: Path) -> None:
    """That of the trained weights under FGSM, beside PGD's, which fools more: in the line and in the log too; a check
    of a version that had none tells none.
    """
    model, against = Scaled(), AgainstWhole((train_small(),), AttackSettings(eps=0.12), RobustSettings(), 0)
    robust = RobustTraining(against, model, torch.device("cpu"), torch.float32, compiled=False)
    train = load_settings("digits", []).pretrain
    pairs = PairDataset(write_shards(tmp_path / "train", 60), None, train, 16, 4, 0, held_out=40)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    now = robust.check(pairs, parameters, parameters, 40, lambda: None)
    images, labels = (part[pairs.held] for part in digits())
    whole = robust.exact
    fgsm = attack(whole, images, labels, AttackSpec("fgsm", "Linf", 0.12, 0.12, 1, False, False), pairs.held, 0)
    assert now.fgsm == 100 * float((whole(fgsm).argmax(1) == labels).double().mean())
    assert now.accuracy is not None
    assert now.accuracy < now.fgsm
    assert accuracies(now)["fgsm"] == now.fgsm
    assert f", FGSM {now.fgsm:.1f} %, " in describe(now)
    assert "FGSM" not in describe(replace(now, fgsm=None))


def test_checkpoints_keep_the_most_robust(tmp_path: Path) -> None:
    """Pruning leaves the newest checked one and the best, of equal ones the newest, beside the last two."""
    scores = {1: 30.0, 2: 60.0, 3: 60.0, 4: None, 5: 40.0, 6: None, 7: None}
    for step, score in scores.items():
        directory = checkpoint_path(tmp_path, step)
        directory.mkdir()
        progress = RobustProgress(
            score or 5.0, checked=score is not None, averaged=score, retreats=(Retreat(9, 1, 2.0),)
        )
        CheckpointManifest(step=step, robust=progress).write(directory / MANIFEST)
    assert most_robust(manifests_in(tmp_path)) == checkpoint_path(tmp_path, 3)
    assert newest_checked(manifests_in(tmp_path)) == checkpoint_path(tmp_path, 5)
    prune(tmp_path, Retention(2))
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (3, 5, 6, 7)]


@pytest.fixture(scope="module")
def undisturbed(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training against the whole that nobody stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(problem.prepared, run)
    done = problem.run("pretrain", run, *WHOLE)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def test_killed_and_stopped_it_ends_with_the_same_bits(problem: Problem, run_dir: Path, undisturbed: Path) -> None:
    """SIGKILL, then SIGTERM, then to the end: the same weights, losses and held-out accuracies."""
    stop_at(problem, run_dir, 7, signal.SIGKILL, *WHOLE)
    assert stop_at(problem, run_dir, 12, signal.SIGTERM, *WHOLE) == 128 + signal.SIGTERM
    done = problem.run("pretrain", run_dir, *WHOLE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(run_dir) == weights(undisturbed)
    for name in ("loss", "held_out_accuracy", "held_out_averaged", "attack_eps"):
        ours, theirs = ([line.get(name) for line in metrics(run)] for run in (run_dir, undisturbed))
        assert ours == theirs, name
    checked = [line["step"] for line in metrics(run_dir) if "held_out_accuracy" in line]
    assert checked == [5, 10, 15, 20]


def test_two_processes_attack_and_check_as_one_does(problem: Problem, run_dir: Path, undisturbed: Path) -> None:
    """Real processes: the losses agree, and so do the accuracies on held-out images, which they share out.

    The first loss to rounding; later ones to what the signs of vanishing gradients make of rounding.
    """
    done = problem.run("pretrain", run_dir, *WHOLE, nproc=2)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = metrics(run_dir), metrics(undisturbed)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=2e-3)
    for name in ("held_out_accuracy", "held_out_averaged", "held_out_clean"):
        pairs = [(line[name], other[name]) for line, other in zip(ours, theirs, strict=True) if name in line]
        assert len(pairs) == 4
        assert all(one == pytest.approx(two, abs=2.6) for one, two in pairs)  # one of forty images at most


def damaged_once(problem: Problem, run: Path, *more: str, step: int = 7) -> Trainer:
    """A training whose purifier starts as the identity, before a classifier that knows its digits, and whose weights
    are spoilt in a step, once.
    """
    words = [
        *WHOLE, "model.prediction=residual", "attack.eps=1/255", "attack.step=1/255", "pretrain.lr=1e-5",
        "robust.eps_ramp=0", "robust.overfit_drop=10", "pretrain.ema=0", "classifier.epochs=25", *more,
    ]  # fmt: skip
    trainer, remaining = trainer_of(problem, run, *words), [None]
    update = trainer._update

    def spoil() -> None:
        update()
        if trainer.step == step - 1 and trainer.robust and not trainer.robust.progress.retreats and remaining:
            remaining.pop()
            with torch.no_grad():
                for parameter in trainer.parameters.values():
                    parameter.add_(torch.ones_like(parameter))

    trainer._update = spoil  # type: ignore[method-assign]
    return trainer


def trainer_of(problem: Problem, run: Path, *words: str) -> Trainer:
    """The trainer of the pretraining in this process, its classifiers trained by their stage."""
    settings = load_settings("digits", problem.arguments(run, *words)[1:])
    run_pipeline(settings, "classifier", lambda name, _: pytest.fail(f"{name} was launched"))
    job = TrainingJob(
        "pretrain", seeded_purifier(settings).model, own_pairs(settings, settings.pretrain), settings.pretrain,
        settings.objective, settings.compute, run / "checkpoints", run / "metrics.jsonl", run / "samples",
        CheckpointManifest(step=0), adversary=adversary(settings, settings.pretrain, 10),
    )  # fmt: skip
    return Trainer(job)


def test_lost_robustness_is_noticed_and_taken_back(
    problem: Problem, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights spoilt between two checks: the training goes back to the check before, and on to its end with a longer
    attack; logs and checkpoints have every step once. Paused and resumed after it, it ends with the same bits.
    """
    trainer = damaged_once(problem, run_dir)
    trainer.run()
    assert "step 10: robust accuracy on held-out images fell to" in capsys.readouterr().out
    saved = manifests_in(run_dir / "checkpoints")[checkpoint_path(run_dir / "checkpoints", 20)]
    assert saved.robust is not None
    assert [(each.step, each.back_to) for each in saved.robust.retreats] == [(10, 5)]
    assert saved.robust.retreats[0].accuracy < (saved.robust.accuracy or 0) - 10
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["attack_steps"] for line in lines] == [2] * 5 + [3] * 15
    other = tmp_path / "other"
    shutil.copytree(problem.prepared, other)
    with pytest.raises(Paused):
        damaged_once(problem, other, "pretrain.pause_at=12").run()
    again = damaged_once(problem, other)
    again.run()
    theirs, ours = trainer.averaged(), again.averaged()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_the_weights_that_did_best_are_kept(
    problem: Problem, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spoilt before the last check, and told not to go back: the purifier is that of a check before, not the last."""
    trainer = damaged_once(problem, run_dir, "robust.overfit_drop=100", step=17)
    trainer.run()
    last = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    best = most_robust(manifests_in(run_dir / "checkpoints"))
    kept = trainer.averaged()
    assert best is not None
    assert best < checkpoint_path(run_dir / "checkpoints", 20)
    assert f"the weights of step {int(best.name[5:])} are kept" in capsys.readouterr().out
    assert all((last[name] - kept[name]).mean() > 0.9 for name in kept)


def test_several_classifiers_are_trained_and_met(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """The classifier stage trains the further one too. Each step attacks and asks the one it drew, and says which;
    paused and resumed the training ends with the same bits, which are others than those against one alone.
    """
    words = [*WHOLE, "robust.classifiers=[cifar_resnet14]", "pretrain.steps=6"]
    trainer, calls = trainer_of(problem, run_dir, *words), []
    trainer.module.frozen[1].register_forward_hook(lambda *_: calls.append(1))
    trainer.run()
    kinds = [type(each.network.layer1).__name__ + str(len(each.network.layer1)) for each in trainer.module.frozen]
    assert kinds == ["Sequential1", "Sequential2"]
    assert trainer.robust is not None
    drawn = [trainer.robust.drawn(step) for step in range(6)]
    assert [line["classifier"] for line in metrics(run_dir)] == drawn
    assert set(drawn) == {0, 1}
    assert len(calls) == 3 * sum(drawn), "two steps of the attack and the loss, where it was drawn, and no check"
    ends = [trainer.averaged()]
    for name, more in {"paused": ["pretrain.pause_at=3"], "alone": ["robust.classifiers=[]"]}.items():
        run = tmp_path / name
        shutil.copytree(problem.prepared, run)
        if name == "paused":
            with pytest.raises(Paused):
                trainer_of(problem, run, *words, *more).run()
            more = []
        again = trainer_of(problem, run, *words, *more)
        again.run()
        ends.append(again.averaged())
    whole, paused, alone = ends
    assert all(torch.equal(whole[name], paused[name]) for name in whole)
    assert not all(torch.equal(whole[name], alone[name]) for name in whole)


def test_a_teachers_labels_are_learnt_from(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """A real training: its loss asks for the teacher's answers to the very samples of each batch, flips or not; paused
    and resumed it ends with the same bits, which are others than those of the labels, or of half of each.
    """
    weights_of_teacher = next((problem.cache / "classifiers").glob("*/model.safetensors"))
    words = [*WHOLE, f"robust.teacher=cifar_resnet8={weights_of_teacher}", "pretrain.steps=6", "pretrain.flip=true"]
    trainer, asked = trainer_of(problem, run_dir, *words), []
    soft = trainer.job.adversary.soft
    assert soft is not None
    inputs, losses_of = trainer._inputs, trainer.module.losses
    given: list[tuple[list[int], Tensor | None]] = []

    def recorded_inputs(batch: PairBatch, *rest: object) -> object:
        made = inputs(batch, *rest)  # type: ignore[arg-type]
        given.append((batch.indices.tolist(), made[-1]))
        return made

    def recorded_losses(*args: object) -> object:
        asked.append(args[-1].soft)  # type: ignore[attr-defined]
        return losses_of(*args)

    trainer._inputs, trainer.module.losses = recorded_inputs, recorded_losses  # type: ignore[method-assign,assignment]
    trainer.run()
    assert len(asked) == len(given) == 6
    for (samples, taught), labels in zip(given, asked, strict=True):
        assert taught is labels
        assert torch.equal(labels, soft.rows(samples))
    assert len({tuple(samples) for samples, _ in given}) == 6
    ends = [trainer.averaged()]
    for name, more in {"paused": ["pretrain.pause_at=3"], "half": ["objective.soft_weight=0.5"],
                       "labels": ["objective.soft_weight=0"], "none": ["robust.teacher=null"]}.items():  # fmt: skip
        run = tmp_path / name
        shutil.copytree(problem.prepared, run)
        if name == "paused":
            with pytest.raises(Paused):
                trainer_of(problem, run, *words, *more).run()
            more = []
        again = trainer_of(problem, run, *words, *more)
        again.run()
        ends.append(again.averaged())

    def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[name], two[name]) for name in one)

    whole, paused, half, _, none = ends
    assert equal(whole, paused)
    assert not equal(whole, none)
    assert not equal(whole, half)
    first = {name: metrics(tmp_path / name)[0]["loss"] for name in ("half", "labels", "none")}
    assert first["labels"] == pytest.approx(first["none"], rel=1e-5)
    assert first["half"] == pytest.approx((first["none"] + metrics(run_dir)[0]["loss"]) / 2, rel=1e-5)


def test_what_is_held_out_is_no_part_of_an_epoch(problem: Problem, run_dir: Path) -> None:
    """Where it is asked how long a training is, whether it goes on from a shorter one or how far it is: 40 of 120."""
    words = [*WHOLE, "pretrain.steps=null", "pretrain.epochs=2", "pretrain.batch_size=16"]
    settings = load_settings("digits", problem.arguments(run_dir, *words)[1:])
    progress = progress_of("pretrain", settings)
    assert progress is not None
    assert steps_of("pretrain", settings) == progress.total == 10
