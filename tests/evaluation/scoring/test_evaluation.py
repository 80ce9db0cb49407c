"""Evaluations are the same however they were cut, killed or resumed, and never reuse what is not theirs."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from maep.attacks.attack_state import AttackState
from maep.attacks.catalog import NamedAttack, gradient_spec
from maep.attacks.reseeding import is_random
from maep.attacks.threat_models import AdaptiveEot, Expectation, Twin, threat_model
from maep.config.load import load_settings
from maep.data.shards import ShardSet
from maep.evaluation.answers import Autocast, Handling, JudgedDefense
from maep.evaluation.audit.gradient_masking import MaskingCheck
from maep.evaluation.reporting.report import read_results
from maep.evaluation.scoring.defense import Defense, Targets
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.metrics import distances
from maep.evaluation.scoring.tasks import plan_tasks
from maep.evaluation.workers import ProgressNote, evaluate_all
from maep.models.defended import DefendedClassifier
from maep.purifiers import MAEPurifier
from maep.purifiers.denoising import DenoiserPurifier
from maep.purifiers.registry import purifier_class
from maep.purifiers.resize_pad import ResizePadPurifier, ResizePadSettings
from maep.runtime.errors import UserError
from maep.storage import documents
from tests.attacks.test_threat_models import random_purifier
from tests.evaluation.small_evaluation import (
    AUTOATTACK_RUN,
    IMAGES,
    adversarial_images,
    contents,
    directory_of,
    run,
    settings_for,
    tasks_of,
)
from tests.purifiers.test_registry import words_of
from tests.small import Blur, digits, train_small, write_shards

REPOSITORY = Path(__file__).resolve().parents[3]
TEN_STEPS = ["diffpure.steps=10"]


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", IMAGES)


@pytest.fixture
def attacks_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the attacks that were really run, in order."""
    names: list[str] = []
    original = NamedAttack.run

    def counted(self: NamedAttack, *arguments: Any, **options: Any) -> Any:
        names.append(self.name)
        return original(self, *arguments, **options)

    monkeypatch.setattr(NamedAttack, "run", counted)
    return names


def test_records_say_what_happened(tmp_path: Path, test_set: ShardSet) -> None:
    """Predictions, distances and likeness in the records are those of the modules, attacked directly."""
    settings = settings_for(tmp_path)
    run(settings, test_set)
    records = {(r["threat_model"], r["attack"], r["chunk"]): r for r in contents(settings)}
    assert len(records) == 2 * 3 + 2 * 1
    (images, labels), classifier, purifier = digits(), train_small(), Blur().requires_grad_(False)
    ids = range(8, 16)
    record = records["oblivious", "fgsm", 1]
    spec = gradient_spec("fgsm", "Linf", 0.1)
    assert spec is not None
    chunk, truth = images[ids.start : ids.stop], labels[ids.start : ids.stop]
    adversarial = _signed(classifier, chunk, truth, 0.1)
    assert record["ids"] == list(ids)
    assert record["labels"] == truth.tolist()
    assert record["predictions"] == {
        "undefended_clean": classifier(chunk).argmax(1).tolist(),
        "undefended_adversarial": classifier(adversarial).argmax(1).tolist(),
        "defended_clean": classifier(purifier(chunk)).argmax(1).tolist(),
        "defended_adversarial": classifier(purifier(adversarial)).argmax(1).tolist(),
        "defended_adversarial_8bit": classifier(purifier((adversarial * 255).round() / 255)).argmax(1).tolist(),
    }
    sure = classifier(purifier(adversarial)).softmax(1).amax(1).tolist()
    assert record["confidences"]["defended_adversarial"] == pytest.approx(sure, abs=1e-4)
    assert record["linf"] == pytest.approx(distances(adversarial, chunk)[0].tolist(), abs=1e-5)
    assert len(record["psnr_clean"]) == len(record["ssim_adversarial"]) == 8
    adaptive = records["adaptive", "fgsm", 0]
    purified_classifier = nn.Sequential(purifier, classifier)
    adversarial = _signed(purified_classifier, images[:6], labels[:6], 0.1)
    assert adaptive["predictions"]["defended_adversarial"] == purified_classifier(adversarial).argmax(1).tolist()
    undefended = records["oblivious", "fgsm", 0]["predictions"]["undefended_adversarial"]
    assert adaptive["predictions"]["undefended_adversarial"] == undefended[:6]


def _signed(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    images = images.clone().requires_grad_()
    gradient = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels, reduction="sum"), images)[0]
    return (images + eps * gradient.sign()).clamp(0, 1).detach()


def test_done_is_not_done_again(tmp_path: Path, test_set: ShardSet, attacks_run: list[str]) -> None:
    """A second run attacks nothing and leaves every record as it was; a removed record is made again, equal."""
    settings = settings_for(tmp_path)
    run(settings, test_set)
    before, first = contents(settings), list(attacks_run)
    assert len(first) == tasks_of(settings)
    run(settings, test_set)
    assert attacks_run == first
    (directory_of(settings) / "oblivious" / "pgd-3-Linf-0.1" / "chunk-0002.json").unlink()
    run(settings, test_set)
    assert attacks_run == first, "the adversarial images were in the cache"
    assert contents(settings) == before


def test_runs_that_need_different_images_keep_theirs(
    tmp_path: Path, test_set: ShardSet, attacks_run: list[str]
) -> None:
    """Of Square on the classifier alone one run needs 3 images, another 6: each has its own, and finds them again."""
    runs = {3: settings_for(tmp_path / "a"), 6: settings_for(tmp_path / "b")}
    for number, settings in runs.items():
        settings.evaluation.threat_models, settings.evaluation.adaptive_images = ["blackbox"], number
        settings.run.cache = str(tmp_path / "cache")
        run(settings, test_set)
    made = [len(load_file(path)["images"]) for path in (tmp_path / "cache").rglob("chunk-0000.safetensors")]
    assert sorted(made) == [3, 6]
    attacks_run.clear()
    for settings in runs.values():
        shutil.rmtree(directory_of(settings))
        run(settings, test_set)
    assert attacks_run == ["square-20"] * 2, "through the purifiers alone"


def test_another_purifier_uses_the_same_images(tmp_path: Path, test_set: ShardSet, attacks_run: list[str]) -> None:
    """Oblivious images are made once for all purifiers; adaptive ones and all records are the purifier's own."""
    settings = settings_for(tmp_path)
    run(settings, test_set)
    first = contents(settings)
    attacks_run.clear()
    run(settings, test_set, purifier="another")
    assert attacks_run == ["fgsm", "pgd-3"], "only the adaptive chunk of each attack"
    second = contents(settings)
    assert [record["identity"] for record in first] != [record["identity"] for record in second]
    assert {record["depends_on"]["purifier"] for record in second} == {"another"}


@pytest.mark.parametrize("change", ["classifier", "seed", "batch_size", "chunk_images", "images of the set"])
def test_made_for_something_else(tmp_path: Path, test_set: ShardSet, attacks_run: list[str], change: str) -> None:
    """A changed classifier, seed, batch size, chunk or image set makes everything anew."""
    settings = settings_for(tmp_path, threat_models=["oblivious"])
    run(settings, test_set)
    done = len(attacks_run)
    classifier = "another" if change == "classifier" else "small"
    settings.run.seed = 1 if change == "seed" else 0
    settings.evaluation.batch_size = 4 if change == "batch_size" else 5
    settings.evaluation.chunk_images = 10 if change == "chunk_images" else 8
    other = write_shards(tmp_path / "other", IMAGES - 5) if change == "images of the set" else test_set
    run(settings, other, classifier=classifier)
    assert len(attacks_run) == done + tasks_of(settings)


def test_more_images_keep_whole_chunks(tmp_path: Path, test_set: ShardSet, attacks_run: list[str]) -> None:
    """Going from 20 to 24 images, chunks of 8, attacks the third chunk only; the first two stay as they are."""
    settings = settings_for(tmp_path, threat_models=["oblivious"], attacks=["fgsm"])
    run(settings, test_set)
    before = contents(settings)
    attacks_run.clear()
    settings.evaluation.images = 24
    run(settings, test_set)
    assert attacks_run == ["fgsm"]
    assert contents(settings)[:2] == before[:2]


def test_image_set_smaller_than_asked(tmp_path: Path, test_set: ShardSet) -> None:
    """More images than there are: all of them."""
    settings = settings_for(tmp_path, images=1000, chunk_images=250, attacks=["fgsm"], threat_models=["oblivious"])
    run(settings, test_set)
    assert sum(record["count"] for record in contents(settings)) == IMAGES


def test_without_adaptive(tmp_path: Path, test_set: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    """adaptive_images=0 leaves the adaptive attacker out and says so."""
    settings = settings_for(tmp_path, adaptive_images=0, attacks=["fgsm"])
    run(settings, test_set)
    assert "adaptive threat model left out: evaluation.adaptive_images=0" in capsys.readouterr().out
    assert {record["threat_model"] for record in contents(settings)} == {"oblivious"}


def test_modules_are_frozen(tmp_path: Path, test_set: ShardSet) -> None:
    """Purifier and classifier are set to eval mode without parameter gradients, whatever they came as."""
    purifier, classifier = Blur().train(), train_small().train().requires_grad_(True)
    settings = settings_for(tmp_path, attacks=["pgd-3"])
    evaluate_all(
        [Evaluation(settings, Defense(purifier, classifier, "blur", "small"), test_set, directory_of(settings))]
    )
    for module in (purifier, classifier):
        assert not module.training
        assert all(not p.requires_grad and p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"attacks": ["pgd"]}, "pgd: unknown attack"), ({"attacks": ["fgsm"], "images": 1}, "")],
)
def test_bad_settings(tmp_path: Path, test_set: ShardSet, change: dict[str, Any], message: str) -> None:
    """An unknown attack is refused before anything is written; a single image is no problem."""
    settings = settings_for(tmp_path, **change)
    if not message:
        run(settings, test_set)
        return
    with pytest.raises(UserError, match=message):
        run(settings, test_set)
    assert not Path(settings.run.dir).exists()


def test_wrong_number_of_classes(tmp_path: Path, test_set: ShardSet) -> None:
    """A classifier for other classes is refused before anything is written."""
    settings = settings_for(tmp_path)
    with pytest.raises(UserError, match="gives 4 logits, the test set has 10 classes"):
        four = train_small(4, steps=1)
        evaluate_all([Evaluation(settings, Defense(Blur(), four, "blur", "four"), test_set, directory_of(settings))])
    assert not Path(settings.run.dir).exists()


def test_an_attack_that_leaves_its_budget(tmp_path: Path, test_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that leaves its ball stops the evaluation: no record is made of it."""
    original = NamedAttack.run

    def too_far(self: NamedAttack, *arguments: Any, **options: Any) -> Any:
        state = original(self, *arguments, **options)
        state.images[0, 0, 0, 0] = 1 - state.images[0, 0, 0, 0].round()
        return state

    monkeypatch.setattr(NamedAttack, "run", too_far)
    settings = settings_for(tmp_path)
    with pytest.raises(RuntimeError, match="the attack used"):
        run(settings, test_set)
    assert not list(directory_of(settings).rglob("chunk-*"))


def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, test_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a record cannot be written, it is an error of one line and no record; the next run completes."""
    settings = settings_for(tmp_path, attacks=["fgsm"], threat_models=["oblivious"])

    def full(path: Path, value: Any, *, compact: bool) -> None:
        if path.name.startswith("chunk-0001"):
            raise UserError(f"{path}: cannot be written: No space left on device")
        original(path, value, compact=compact)

    original = documents.write_json
    monkeypatch.setattr(documents, "write_json", full)
    with pytest.raises(UserError, match="No space left"):
        run(settings, test_set)
    assert sorted(path.name for path in directory_of(settings).rglob("chunk-*.json")) == ["chunk-0000.json"]
    monkeypatch.undo()
    run(settings, test_set)
    assert len(contents(settings)) == 3


def test_goes_on_inside_a_chunk(tmp_path: Path, test_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption the attacks that were done are not run again: the saved state is handed on."""
    settings = settings_for(tmp_path, attacks=["autoattack-standard"], images=4, threat_models=["oblivious"], eps=[0.2])
    states: list[AttackState | None] = []
    original_run = NamedAttack.run

    def watched(self: NamedAttack, *arguments: Any, **options: Any) -> Any:
        states.append(options["state"] and copy.deepcopy(options["state"]))
        return original_run(self, *arguments, **options)

    def interrupted(state: AttackState) -> None:
        if "apgd-ce" in state.survivors:
            raise KeyboardInterrupt

    monkeypatch.setattr(NamedAttack, "run", watched)
    with monkeypatch.context() as patch:
        patch.setattr(ProgressNote, "attacking", lambda self, name, task: interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(settings, test_set)
    run(settings, test_set)
    assert states[0] is None
    assert states[1] is not None
    assert list(states[1].survivors) == ["clean", "apgd-ce"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, test_set: ShardSet) -> Path:
    """An AutoAttack evaluation, oblivious and adaptive, that was left alone."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    # In a process of its own, as those that are killed: what this one computed before may decide a last bit.
    assert _start(directory, test_set).wait(300) == 0
    return directory


def test_killed_and_resumed(tmp_path: Path, test_set: ShardSet, uninterrupted: Path) -> None:
    """Killed with SIGKILL twice, after different attacks inside a chunk, then run again: equal image by image."""
    for last in ("apgd-ce", "fab-t"):
        assert _start(tmp_path, test_set, "killed-after", last).wait(300) == -signal.SIGKILL
        states = list(tmp_path.rglob("*.partial.safetensors"))
        assert [last in _survivors(path) for path in states] == [True], "it was killed inside a chunk"
    assert _start(tmp_path, test_set).wait(300) == 0
    expected, resumed = (settings_for(path, **AUTOATTACK_RUN) for path in (uninterrupted, tmp_path))
    assert contents(resumed) == contents(expected)
    images = adversarial_images(tmp_path)
    assert images == adversarial_images(uninterrupted)
    assert len(images) == 3
    assert not list(tmp_path.rglob("*.partial.safetensors"))
    assert not list(tmp_path.rglob(".tmp-*"))


def _start(directory: Path, test: ShardSet, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.evaluation.small_evaluation", str(directory), str(test.path), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)


def _survivors(path: Path) -> dict[str, int]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["facts"])["survivors"]


@pytest.mark.parametrize("at_once", [1, 4])
def test_draws_at_once_are_part_of_the_identity_of_who_averages(
    tmp_path: Path, test_set: ShardSet, at_once: int
) -> None:
    """One at a time is what was always done. Attacks follow so many at once, and so do the checks, whose identity it is
    then, too.
    """
    settings = settings_for(tmp_path, draws=6, draws_at_once=at_once, threat_models=["adaptive", "adaptive-eot"])
    defense = Defense(random_purifier(noise=0.1), train_small(), "noise", "small")
    evaluation = Evaluation(settings, defense, test_set, directory_of(settings))
    facts = {
        task.threat_model: evaluation.identity.attack_facts(evaluation.identity.attack_task(task))
        for task in plan_tasks(settings.evaluation, len(test_set))
    }
    assert "draws_at_once" not in facts["adaptive"]
    assert facts["adaptive-eot"].get("draws_at_once", 1) == at_once
    asked, checked = (evaluation.targets.exact(AdaptiveEot(), draws) for draws in (None, 6))
    assert isinstance(asked, Expectation)
    assert isinstance(checked, Expectation)
    assert asked.at_once == checked.at_once == at_once
    alone = settings_for(tmp_path, draws=6, threat_models=["adaptive", "adaptive-eot"])
    by_one = MaskingCheck(Evaluation(alone, defense, test_set, directory_of(alone)))
    assert (MaskingCheck(evaluation).identity == by_one.identity) == (at_once == 1)


def test_the_surrogate_attacker_follows_fewer_steps(tmp_path: Path, test_set: ShardSet) -> None:
    """A fifth of ten, with the same weights, and what fools that is purified by all; it is part of what attacks are. Of
    a purifier without steps, and of one with too few, the attacks are the adaptive ones.
    """
    settings = settings_for(tmp_path, threat_models=["surrogate"])
    iterated = purifier_class("diffpure").from_settings(load_settings(None, [*words_of("diffpure"), *TEN_STEPS]))
    assert isinstance(iterated, DenoiserPurifier)
    found = {}
    for name, purifier in (("ten", iterated), ("one", iterated.shortened(0.1)), ("blur", Blur())):
        evaluation = Evaluation(settings, Defense(purifier, train_small(), name, "small"), test_set, tmp_path)
        task = evaluation.identity.attack_task(plan_tasks(settings.evaluation, len(test_set))[0])
        target = evaluation.targets.exact(threat_model("surrogate"))
        assert isinstance(target, nn.Sequential)
        followed = getattr(getattr(target[0], "network", None), "steps", None)
        found[name] = followed, task.threat_model, evaluation.identity.attack_facts(task).get("surrogate_share")
    assert found == {"ten": (2, "surrogate", 0.2), "one": (1, "adaptive", None), "blur": (None, "adaptive", None)}
    assert iterated.network.steps == 10
    assert iterated.shortened(0.2).model is iterated.model


def another_purifier() -> MAEPurifier:
    """Of the same kind and sizes as `random_purifier`'s, with other weights."""
    twin, generator = random_purifier(), torch.Generator().manual_seed(2)
    for weights in twin.model.parameters():
        weights.data += 0.1 * torch.randn(weights.shape, generator=generator)
    return twin


def test_the_twin_attacker_follows_another_purifier(tmp_path: Path, test_set: ShardSet, attacks_run: list[str]) -> None:
    """What fools the classifier behind the twin is judged behind the purifier; a bf16 surrogate is the twin's as well.
    Another twin is attacked again, nothing else is; without gradients of its own it is the identity backward.
    """
    settings = settings_for(tmp_path, threat_models=["twin", "adaptive"], attacks=["pgd-3"])
    judged, twin, classifier = random_purifier(), another_purifier(), train_small()

    def evaluated(identity: str) -> list[dict[str, Any]]:
        defense = Defense(judged, classifier, "it", "small", twin=twin, twin_identity=identity)
        assert evaluate_all([Evaluation(settings, defense, test_set, directory_of(settings))])
        return [record for record in contents(settings) if record["threat_model"] == "twin"]

    (record,) = evaluated("other")
    images, labels = (part[:6] for part in digits())
    seed = plan_tasks(settings.evaluation, len(test_set))[0].seed(settings.run.seed)
    direct = NamedAttack("pgd-3", "Linf", 0.1).run(
        nn.Sequential(twin, classifier).eval(), images, labels, keys=range(6), seed=seed, batch_size=5
    )
    assert record["predictions"]["defended_adversarial"] == classifier(judged(direct.images)).argmax(1).tolist()
    stored = load_file(directory_of(settings) / "twin/pgd-3-Linf-0.1/chunk-0000.safetensors")
    assert torch.equal(stored["images"], direct.images)
    (result,) = read_results(settings, directory_of(settings).parent)
    assert "twin" in {finding.check for finding in result.findings}
    attacks_run.clear()
    assert evaluated("other") == [record]
    assert attacks_run == []
    (again,) = evaluated("third")
    assert attacks_run == ["pgd-3"]
    assert (again["predictions"], again["identity"] == record["identity"]) == (record["predictions"], False)
    reduced = settings_for(tmp_path, precision="bf16").evaluation
    followed = Targets(Defense(judged, classifier, "", "", twin=twin), reduced, images[:1]).surrogate(Twin())
    assert isinstance(followed, nn.Module)
    torch.testing.assert_close(followed(images), classifier(twin(images)), rtol=0, atol=0.1)
    hidden = purifier_class("bit_depth").from_settings(load_settings(None, ["purifier.kind=bit_depth"]))
    target = Targets(Defense(hidden, classifier, "", "", twin=hidden), reduced, images[:1]).exact(Twin())
    moved = images.clone().requires_grad_()
    assert torch.autograd.grad(target(moved).logsumexp(1).sum(), moved)[0].flatten(1).any(1).all()


@pytest.mark.parametrize("is_defended", [True, False])
def test_who_asks_without_gradients_may_average_over_draws(
    tmp_path: Path, test_set: ShardSet, is_defended: bool
) -> None:
    """Square's answers are then mean logits of so many draws, and its images others than those of one draw, which is
    what was always asked; also of a random model without a purifier. Of what draws nothing there is one answer.
    """
    answers = {}
    for draws in (1, 4):
        settings = settings_for(tmp_path, threat_models=["blackbox"], blackbox_draws=draws)
        noise = random_purifier(noise=0.1)
        behind = nn.Sequential(noise, train_small()).eval()
        random = Defense(noise, train_small(), "it", "small") if is_defended else Defense(
            nn.Identity(), behind, "it", "small"
        )  # fmt: skip
        for name, defense in (("random", random), ("fixed", Defense(Blur(), train_small(), "blur", "small"))):
            evaluation = Evaluation(settings, defense, test_set, directory_of(settings))
            task = evaluation.identity.attack_task(plan_tasks(settings.evaluation, len(test_set))[0])
            facts, target = evaluation.identity.attack_facts(task), evaluation.targets.exact(threat_model("blackbox"))
            answers[name, draws] = facts.get("draws", 1), getattr(target, "draws", 1), task.threat_model
    alone = "blackbox" if is_defended else "oblivious"
    assert answers["random", 1] == (1, 1, alone)
    assert answers["random", 4] == (4, 4, "blackbox")
    assert answers["fixed", 1] == answers["fixed", 4] == (1, 1, "blackbox")


@pytest.mark.parametrize("is_defended", [True, False])
def test_several_draws_decide_of_what_draws(tmp_path: Path, test_set: ShardSet, is_defended: bool) -> None:
    """The setting reaches the attack and its identity where the attacked model is random, there alone; one draw is what
    it always was.
    """
    noise = random_purifier(noise=0.1)
    undefended = Defense(nn.Identity(), nn.Sequential(noise, train_small()).eval(), "it", "small")
    random = Defense(noise, train_small(), "it", "small") if is_defended else undefended
    fixed = Defense(Blur(), train_small(), "blur", "small")
    seen = {}
    for draws in (1, 5):
        settings = settings_for(tmp_path, threat_models=["oblivious", "adaptive"], decision_draws=draws)
        for name, defense in (("random", random), ("fixed", fixed)):
            evaluation = Evaluation(settings, defense, test_set, directory_of(settings))
            for task in plan_tasks(settings.evaluation, len(test_set)):
                attack = evaluation.attacks.of(task)[-1]
                assert attack.facts.get("decision_draws", 1) == attack.decision_draws
                seen[name, draws, task.threat_model] = attack.decision_draws
    assert {key: count for key, count in seen.items() if count > 1} == {
        ("random", 5, name): 5 for name in ("oblivious", "adaptive") if name == "adaptive" or not is_defended
    }


class Seldom(DefendedClassifier):
    """Draws for images that two examples need not be among."""

    is_random = True

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images)


def test_what_says_that_it_draws_is_random() -> None:
    """Also where its answers to the examples are the same twice, as of a purifier that repairs few clean images."""
    classifier, (images, _), settings = train_small(), digits(), load_settings("digits").evaluation
    seldom = ResizePadPurifier(ResizePadSettings(probability=1e-9))
    drawing = Seldom(classifier)
    judged = JudgedDefense(drawing, Handling(Autocast({})))
    for defense in (
        Defense(seldom, classifier, "", ""),
        Defense(nn.Identity(), classifier, "", "", drawing),
        Defense(nn.Identity(), classifier, "", "", judged),
    ):
        assert not is_random(defense.purified_classifier, images[:2])
        assert Targets(defense, settings, images[:2]).is_random
    for certain in (Blur(), nn.Identity()):
        assert not Targets(Defense(certain, classifier, "", ""), settings, images[:2]).is_random
