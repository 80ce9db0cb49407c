"""The plan of an evaluation: every image of every combination once, in chunks that are independent of each other."""

from dataclasses import asdict

import pytest

from maep.config.evaluation_settings import EvaluationSettings, PurifySettings
from maep.config.identity import decisive_fields
from maep.evaluation.scoring.tasks import Task, plan_tasks, undefended_task
from maep.runtime.errors import UserError


def _settings(**values: object) -> EvaluationSettings:
    threats = ["oblivious", "adaptive"]
    quick = {"images": 25, "adaptive_images": 12, "chunk_images": 10, "threat_models": threats}
    return EvaluationSettings(**{**quick, **values})  # type: ignore[arg-type]


def test_every_image_once() -> None:
    """Each combination covers its first images, each once; adaptive ones fewer, in chunks that start alike."""
    tasks = plan_tasks(_settings(attacks=["fgsm", "pgd-2"], eps=[0.1, 0.2]), 100)
    folders = {task.folder for task in tasks}
    assert len(folders) == 2 * 2 * 2
    for folder in folders:
        own = [task for task in tasks if task.folder == folder]
        assert [index for task in own for index in task.ids] == list(
            range(12 if own[0].threat_model == "adaptive" else 25)
        )
        assert [task.first for task in own] == [10 * number for number in range(len(own))]


def test_the_classifier_alone_is_attacked_where_it_is_needed() -> None:
    """On all images of a chunk for the oblivious attacker's attacks, else on those of who takes most."""
    settings = _settings(
        attacks=["fgsm"], adaptive_attacks=["pgd-2"], threat_models=["oblivious", "adaptive", "blackbox"]
    )
    tasks = plan_tasks(settings, 24)
    alone = [undefended_task(task, settings, 24) for task in tasks]
    assert {task.threat_model for task in alone} == {"oblivious"}
    for attack, counts in {"fgsm": [10, 10, 4], "pgd-2": [10, 2], settings.blackbox_attacks[0]: [10, 2]}.items():
        assert [task.count for task in alone if task.attack == attack] == counts
    same = _settings(attacks=["fgsm"], threat_models=["oblivious", "adaptive"])
    assert [undefended_task(task, same, 24).count for task in plan_tasks(same, 24)] == [10, 10, 4, 10, 10]


def test_chunk_larger_than_images() -> None:
    """Fewer images than a chunk holds, or than were asked for: one chunk of those there are."""
    (task,) = plan_tasks(_settings(chunk_images=250, threat_models=["oblivious"], attacks=["fgsm"]), 7)
    assert (task.first, task.count) == (0, 7)


def test_asked_for_twice() -> None:
    """An attack or budget named twice is done once."""
    once = plan_tasks(_settings(attacks=["fgsm"], eps=[0.1]), 50)
    assert plan_tasks(_settings(attacks=["fgsm", "fgsm"], eps=[0.1, 0.1]), 50) == once


def test_seeds() -> None:
    """A chunk's seed depends on the run's seed and the chunk, and on nothing else."""
    task = Task("oblivious", "fgsm", "Linf", 0.1, 0, 0, 10)
    other = Task(**{**asdict(task), "attack": "pgd-2", "threat_model": "adaptive", "count": 5})
    assert task.seed(0) == other.seed(0)
    seeds = {Task(**{**asdict(task), "chunk": chunk}).seed(seed) for chunk in range(20) for seed in range(5)}
    assert len(seeds) == 100


def test_attackers_of_the_purifier_may_have_attacks_of_their_own() -> None:
    """What takes long through a purifier is left to the oblivious; Square stays the black box's. Names are checked."""
    threats = [
        "oblivious",
        "twin",
        "bpda",
        "bpda-intermediate",
        "auxiliary-aware",
        "surrogate",
        "adaptive",
        "adaptive-eot",
        "blackbox",
    ]
    how = {"attacks": ["autoattack-standard"], "adaptive_attacks": ["pgd-2"], "threat_models": threats}
    tasks = plan_tasks(_settings(**how), 10)
    attacks = {task.threat_model: task.attack for task in tasks}
    alone = {"oblivious": "autoattack-standard", "blackbox": "square"}
    assert attacks == dict.fromkeys(threats, "pgd-2") | alone
    with pytest.raises(UserError, match="bmi-3: unknown attack"):
        plan_tasks(_settings(adaptive_attacks=["bmi-3"]), 10)


def test_empty_test_set() -> None:
    """No test images: one line that says what to do."""
    with pytest.raises(UserError, match="the test set is empty: set data.test_fraction"):
        plan_tasks(_settings(), 0)


def test_unknown_attack() -> None:
    """An unknown attack is refused when planning."""
    with pytest.raises(UserError, match="pgd: unknown attack; choose from fgsm"):
        plan_tasks(_settings(attacks=["fgsm", "pgd"]), 10)


def test_every_threat_model_by_default() -> None:
    """The default plan has all five threat models; the one without gradients has Square alone, also as an attack."""
    tasks = plan_tasks(EvaluationSettings(), 10)
    assert {task.threat_model for task in tasks} == {"oblivious", "bpda", "adaptive", "adaptive-eot", "blackbox"}
    assert {task.attack for task in tasks if task.threat_model == "blackbox"} == {"square"}
    assert {task.attack for task in tasks if task.threat_model == "bpda"} == set(EvaluationSettings().attacks)
    with pytest.raises(UserError, match="evaluation.blackbox_attacks: pgd-20: needs gradients; choose square"):
        plan_tasks(_settings(blackbox_attacks=["pgd-20"]), 10)


def test_folders_are_different() -> None:
    """Every combination has a folder of its own, with a name that any file system takes."""
    attacks = ["square", "square-100", "autoattack-custom:apgd-ce+square", "autoattack-custom:square+apgd-ce"]
    tasks = plan_tasks(_settings(attacks=attacks, eps=[0.1, 0.2]), 10)
    assert len({task.folder for task in tasks}) == 2 * 4 * 2
    assert not any(":" in str(task.folder) for task in tasks)


def test_new_settings_keep_old_identities() -> None:
    """A setting of the purifier that is not used is not part of what its outputs depend on."""
    assert decisive_fields(PurifySettings(batch_tiles=3), "records") == {"overlap": 0, "passes": 1}
    assert decisive_fields(PurifySettings(noise=0.1), "records") == {"overlap": 0, "passes": 1, "noise": 0.1}
