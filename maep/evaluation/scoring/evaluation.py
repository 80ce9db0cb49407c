"""Who is judged, on what, under which settings; and the identities of everything that is made of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from maep.attacks.autoattack import check_model
from maep.attacks.reseeding import is_random
from maep.attacks.threat_models import (
    Adaptive,
    AdaptiveEot,
    BlackBox,
    Oblivious,
    ThreatModel,
    ZeroGradient,
    threat_model,
)
from maep.config.schema import Settings
from maep.data.shards import to_float
from maep.evaluation.scoring.chunk_attack import ChunkAttack
from maep.evaluation.scoring.plan import (
    PLAN,
    RECORD_VERSION,
    VERSION,
    Task,
    chunk_size,
    plan_digest,
    plan_tasks,
    read_record,
)
from maep.evaluation.scoring.reduced_model import Speed
from maep.runtime.console import say
from maep.storage.atomic import digest, read_json, write_json


class Images(Protocol):
    """Images to judge on: a shard set, or the like in memory."""

    @property
    def identity(self) -> str:
        """64 hex digits that name the samples."""
        ...

    @property
    def classes(self) -> list[str]:
        """Class names, by label."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W], uint8 or float in [0, 1], and labels int64 [N] of some samples."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """A purifier before a classifier, to be judged on a test set; they are frozen and set to eval mode.

    purifier, classifier: modules on the device to compute on. The identities are digests of all that the modules'
    outputs depend on. test: clean test shards, or images like them. directory: where records go.
    """

    settings: Settings
    purifier: nn.Module
    classifier: nn.Module
    classifier_identity: str
    purifier_identity: str
    test: Images
    directory: Path

    def __post_init__(self) -> None:
        for module in (self.purifier, self.classifier):
            module.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the classifier is, and so where everything is computed."""
        return next((p.device for p in self.classifier.parameters()), torch.device("cpu"))

    @cached_property
    def whole(self) -> nn.Module:
        """The purified classifier f∘P: [N, 3, H, W] in [0,1] → logits."""
        return nn.Sequential(self.purifier, self.classifier).eval()

    @cached_property
    def is_random(self) -> bool:
        """Whether the purified classifier draws random numbers."""
        images, _ = self.images(range(min(2, len(self.test))))
        return is_random(self.whole, images)

    @cached_property
    def has_gradient(self) -> bool:
        """Whether the purified classifier's logits depend on the image as far as autograd can tell."""
        images, _ = self.images(range(1))
        with torch.enable_grad():
            return bool(self.whole(images.requires_grad_()).requires_grad)

    def followed(self, model: nn.Module) -> nn.Module:
        """`model`, with a gradient of zeros where the defence gives none, so that gradient attacks can be run on it."""
        return model if self.has_gradient else ZeroGradient(model).eval()

    @cached_property
    def _fast_parts(self) -> tuple[nn.Module, nn.Module]:
        """Purifier and classifier as attacks follow them."""
        return self._speed.parts(self.purifier, self.classifier)

    @property
    def _speed(self) -> Speed:
        return Speed.of(self.settings.evaluation)

    def _seen_by(self, attacker: ThreatModel) -> tuple[nn.Module, nn.Module | None]:
        """The model that an attacker attacks, and the fast double that is followed instead, if one is."""
        draws = self.settings.evaluation.draws
        model = self.followed(attacker.target(self.purifier, self.classifier, draws))
        if self._speed.is_exact:
            return model, None
        return model, self._speed.whole(self.followed(attacker.target(*self._fast_parts, draws)))

    def images(self, ids: range) -> tuple[Tensor, Tensor]:
        """Test images [N, 3, H, W] in [0,1] and labels [N], on the device."""
        images, labels = self.test.batch(ids)
        images = images if images.is_floating_point() else to_float(images)
        return images.to(self.device), labels.to(self.device)

    # the plan

    def prepare(self) -> list[Task]:
        """The tasks, after asking the model AutoAttack's questions and writing plan.json; any worker may.

        Raises UserError when the settings, the model and the test set do not fit.
        """
        tasks = plan_tasks(self.settings.evaluation, len(self.test))
        plan = self.plan(tasks, self._check(tasks))
        if self._known_plan() != plan:
            write_json(self.directory / PLAN, plan)
        return tasks

    def plan(self, tasks: list[Task], warnings: list[str]) -> dict[str, Any]:
        """plan.json: what belongs to this evaluation, so that a report can tell a part from the whole."""
        return {
            "settings": plan_digest(self.settings),
            "classifier": self.classifier_identity,
            "purifier": self.purifier_identity,
            "images": self.test.identity,
            "seed": self.settings.run.seed,
            "classes": list(self.test.classes),
            "device": str(self.device),
            "warnings": warnings,
            "tasks": [{"task": asdict(task), "identity": self.record_identity(task)} for task in tasks],
        }

    def _known_plan(self) -> dict[str, Any]:
        path = self.directory / PLAN
        return read_json(path) if path.is_file() else {}

    def _check(self, tasks: list[Task]) -> list[str]:
        """Questions to the model before it is attacked; asked once, the answers kept in plan.json."""
        subject = [self.classifier_identity, self.purifier_identity, self.test.identity]
        known = self._known_plan()
        if [known.get(key) for key in ("classifier", "purifier", "images")] == subject:
            return known["warnings"]
        count = min(tasks[0].count, self.settings.evaluation.batch_size)
        images, labels = self.images(range(count))
        warnings = check_model(self.whole, images, labels, len(self.test.classes))
        for warning in warnings:
            say(f"warning: {warning}")
        return warnings

    # identities

    def attacked_facts(self, task: Task) -> dict[str, Any]:
        """All that a chunk's adversarial images depend on, except which chunk it is."""
        settings = self.settings
        facts: dict[str, Any] = {
            "version": VERSION,
            "classifier": self.classifier_identity,
            "attack": task.named_attack.facts(),
            "seed": settings.run.seed,
            "batch_size": settings.evaluation.batch_size,
            "chunk_images": chunk_size(settings.evaluation, len(self.test)),
            "images": self.test.identity,
        }
        if threat_model(task.threat_model).uses_purifier:
            facts |= {"threat_model": task.threat_model, "purifier": self.purifier_identity}
        if task.threat_model == AdaptiveEot.name:
            facts["draws"] = settings.evaluation.draws
        return facts | self._speed.facts()

    def record_facts(self, task: Task) -> dict[str, Any]:
        """All that a record depends on."""
        own = {"record": RECORD_VERSION, "purifier": self.purifier_identity, "task": asdict(task)}
        draws = {"draws": self.settings.evaluation.draws} if self.is_random else {}
        return self.attacked_facts(self._attacked_as(task)) | draws | own

    def record_identity(self, task: Task) -> str:
        """Digest of `record_facts`."""
        return digest(self.record_facts(task))

    def has_record(self, task: Task) -> bool:
        """Whether a task has its record."""
        return read_record(self.directory, task, self.record_identity(task)) is not None

    # attacks

    def _attacked_as(self, task: Task) -> Task:
        """The task whose adversarial images a task uses: without randomness, EOT's are the adaptive ones; without a
        purifier, what attacks the whole attacks the classifier alone.
        """
        threat = task.threat_model
        if threat == AdaptiveEot.name and not self.is_random:
            threat = Adaptive.name
        if threat in (Adaptive.name, BlackBox.name) and isinstance(self.purifier, nn.Identity):
            threat = Oblivious.name
        return replace(task, threat_model=threat)

    def attack_alone(self, task: Task) -> ChunkAttack:
        """The attack on a task's whole chunk through the classifier alone: once for all purifiers, in the cache.

        A threat model that takes fewer images than the oblivious one uses the first of them.
        """
        total = min(self.settings.evaluation.images, len(self.test))
        size = chunk_size(self.settings.evaluation, len(self.test))
        whole = replace(task, threat_model=Oblivious.name, count=min(size, total - task.first))
        facts = self.attacked_facts(whole)
        folder = Path(self.settings.run.cache) / "attacked" / digest(facts)[:16]
        return ChunkAttack(self.settings, whole, *self._seen_by(Oblivious()), folder, facts)

    def attack_through(self, task: Task) -> ChunkAttack:
        """The attack on what the threat model's attacker sees of purifier and classifier; kept in its folder."""
        task = self._attacked_as(task)
        seen = self._seen_by(threat_model(task.threat_model))
        return ChunkAttack(self.settings, task, *seen, self.directory / task.folder, self.attacked_facts(task))

    def attacks_of(self, task: Task) -> list[ChunkAttack]:
        """The attacks that a task's record is made of: the one on the classifier alone first, its own last."""
        own = threat_model(self._attacked_as(task).threat_model)
        return [self.attack_alone(task), *([self.attack_through(task)] if own.uses_purifier else [])]
