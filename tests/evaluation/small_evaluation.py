"""A small evaluation: real digits, a small classifier, a blur for a purifier; also run as a process to be killed."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from safetensors.torch import load_file

from maep.attacks.attack_state import AttackState
from maep.config.schema import Settings
from maep.data.shards import ShardSet
from maep.evaluation.scoring.chunk_record import read_records
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import read_plan
from maep.evaluation.workers import evaluate_all
from tests.small import Blur, killed_after, train_small

IMAGES = 40


def settings_for(directory: Path, **evaluation: Any) -> Settings:
    """Settings of a quick evaluation with its run below `directory`."""
    settings = Settings()
    settings.run.name, settings.run.dir = "small", str(directory / "run")
    settings.run.cache = str(directory / "cache")
    settings.finetune.method = "none"
    quick = {"images": 20, "adaptive_images": 6, "chunk_images": 8, "batch_size": 5, "attacks": ["fgsm", "pgd-3"],
             "eps": [0.1], "figure_images": 3, "threat_models": ["oblivious", "adaptive"],
             "blackbox_attacks": ["square-20"]}  # fmt: skip
    for key, value in {**quick, **evaluation}.items():
        setattr(settings.evaluation, key, value)
    return settings


def directory_of(settings: Settings) -> Path:
    """Where the evaluation of the run's only purifier goes."""
    return Path(settings.run.dir) / "evaluation" / "pretrained"


def run(settings: Settings, test: ShardSet, *, purifier: str = "blur", classifier: str = "small") -> Path:
    """Evaluate; the identities are names."""
    defense = Defense(Blur(), train_small(), purifier, classifier)
    evaluation = Evaluation(settings, defense, test, directory_of(settings))
    assert evaluate_all([evaluation])
    return directory_of(settings)


def contents(settings: Settings, purifier: str = "pretrained") -> list[dict[str, Any]]:
    """All records, as JSON, without what differs from run to run, the time."""
    directory = directory_of(settings).with_name(purifier)
    plan = read_plan(settings, directory)
    return [
        {k: v for k, v in json.loads(json.dumps(record.to_json())).items() if k != "seconds"}
        for records in read_records(plan, directory).values()
        for record in records
    ]


def adversarial_images(directory: Path) -> dict[str, bytes]:
    """The tensors of all adversarial images below a directory, by relative path."""
    paths = sorted(path for path in directory.rglob("chunk-*.safetensors"))
    return {str(path.relative_to(directory)): load_file(path)["images"].numpy().tobytes() for path in paths}


def shorten_autoattack() -> None:
    """FAB and Square with fewer iterations and four targets, so that a test is quick."""
    original = AutoAttack._set_version

    def shortened(self: AutoAttack, version: str = "standard") -> None:
        original(self, version)
        self.fab.n_iter, self.square.n_queries = 5, 400
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 4

    AutoAttack._set_version = shortened


def killed_inside_a_chunk(attack: str) -> None:
    """SIGKILL to this process once the state of a chunk that says that `attack` is done is on disk."""

    def is_time(state: AttackState, path: Path, _: str) -> bool:
        return attack in state.survivors and path.name.endswith(".partial.safetensors")

    killed_after(AttackState, "save", is_time)


def tasks_of(settings: Settings) -> int:
    """How many tasks the plan has."""
    return len(read_plan(settings, directory_of(settings)).tasks)


AUTOATTACK_RUN: dict[str, Any] = {
    "images": 12, "chunk_images": 6, "batch_size": 4, "attacks": ["autoattack-standard"],
    "threat_models": ["oblivious", "adaptive"], "adaptive_images": 6, "eps": [0.09],
}  # fmt: skip
SHARED_RUN: dict[str, Any] = {**AUTOATTACK_RUN, "images": 20, "chunk_images": 4}


def two_purifiers(settings: Settings, test: ShardSet) -> list[Evaluation]:
    """Two evaluations of one classifier, which share the oblivious images."""
    classifier = train_small()
    return [
        Evaluation(settings, Defense(Blur(), classifier, name, "small"), test, directory_of(settings).with_name(name))
        for name in ("pretrained", "lora")
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    shorten_autoattack()
    directory, shards, *share = sys.argv[1:]
    if share[:1] == ["killed-after"]:
        killed_inside_a_chunk(share.pop())
        share.clear()
    if share:
        settings = settings_for(Path(directory), **SHARED_RUN)
        settings.compute.claim_timeout = 3.0
        finished = evaluate_all(two_purifiers(settings, ShardSet(Path(shards))), (int(share[0]), int(share[1])))
        print("finished" if finished else "others go on")
    else:
        run(settings_for(Path(directory), **AUTOATTACK_RUN), ShardSet(Path(shards)))
