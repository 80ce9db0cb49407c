"""The evaluation stage: every chunk of images, attacked, purified, classified, and written down as a record.

A finished chunk is not done again; one made for another classifier, purifier, attack, seed or image set is.
What a record holds depends on its own chunk alone, so it is the same however the work was cut or interrupted.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from maep.attacks.autoattack import check_model
from maep.attacks.state import AttackState, load_tensors, save_tensors
from maep.attacks.threat_models import threat_model
from maep.data.shards import ShardSet, to_float, to_uint8
from maep.evaluation.metrics import count_right, distances, psnr, ssim
from maep.evaluation.records import (
    PLAN,
    SAMPLES,
    VERSION,
    Task,
    chunk_size,
    plan_digest,
    plan_tasks,
    read_record,
    record_path,
)
from maep.files import digest, read_json, remove_temporaries, write_json
from maep.progress import progress_bar, say
from maep.settings import Settings


def evaluate(
    settings: Settings,
    purifier: nn.Module,
    classifier: nn.Module,
    classifier_identity: str,
    purifier_identity: str,
    test: ShardSet,
    directory: Path,
) -> None:
    """Measure clean and robust accuracy in every threat model, attack and budget of `settings.evaluation`.

    purifier, classifier: modules on the device to compute on; they are frozen and set to eval mode.
    The identities are digests of all that the modules' outputs depend on. test: clean test shards.
    directory: where records go. Raises UserError when the settings, the model and the test set do not fit.
    """
    evaluation = Evaluation(settings, _freeze(purifier), _freeze(classifier), classifier_identity,
                            purifier_identity, test, directory)  # fmt: skip
    tasks = plan_tasks(settings.evaluation, len(test))
    if "adaptive" in settings.evaluation.threat_models and not settings.evaluation.adaptive_images:
        say("adaptive threat model left out: evaluation.adaptive_images=0")
    pending = [task for task in tasks if not evaluation.is_done(task)]
    warnings = evaluation.check(tasks)
    write_json(directory / PLAN, evaluation.plan(tasks, warnings))
    if len(tasks) > len(pending):
        say(f"evaluation: {len(tasks) - len(pending)} of {len(tasks)} chunks were done before")
    with progress_bar() as bar:
        note = ProgressNote(bar, bar.add_task("evaluate", total=sum(t.count for t in pending), note=""))
        for task in pending:
            evaluation.run(task, note)


def _freeze(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


class ProgressNote:
    """The evaluation's progress bar: images done, and robust-so-far of the combination at work."""

    def __init__(self, bar: Progress, bar_task: TaskID) -> None:
        self.bar = bar
        self.bar_task = bar_task
        self.combination: Path | None = None
        self.robust = self.count = 0

    def attacking(self, task: Task, state: AttackState) -> None:
        """An attack of a chunk has ended."""
        last, left = list(state.survivors.items())[-1]
        done = f"chunk {task.chunk}, after {last}: {left}/{task.count} robust"
        self.bar.update(self.bar_task, note=f"{task} · {done}{self._so_far()}")

    def finished(self, task: Task, robust: int, seconds: float) -> None:
        """A chunk has its record."""
        if task.folder != self.combination:
            self.combination, self.robust, self.count = task.folder, 0, 0
        self.robust, self.count = self.robust + robust, self.count + task.count
        self.bar.update(self.bar_task, advance=task.count, note=f"{task}{self._so_far()}")
        say(f"{task}: chunk {task.chunk}: {robust} of {task.count} robust ({seconds:.1f} s)")

    def _so_far(self) -> str:
        return f" · so far {100 * self.robust / self.count:.1f} %" if self.count else ""


@dataclass(frozen=True)
class Evaluation:
    """Who is evaluated, on what, and where the results go."""

    settings: Settings
    purifier: nn.Module
    classifier: nn.Module
    classifier_identity: str
    purifier_identity: str
    test: ShardSet
    directory: Path

    @property
    def device(self) -> torch.device:
        """Where the classifier is, and so where everything is computed."""
        return next((p.device for p in self.classifier.parameters()), torch.device("cpu"))

    def plan(self, tasks: list[Task], warnings: list[str]) -> dict[str, Any]:
        """plan.json: what belongs to this evaluation, so that a report can tell a part from the whole."""
        return {
            "settings": plan_digest(self.settings),
            "classifier": self.classifier_identity,
            "purifier": self.purifier_identity,
            "images": self.test.identity,
            "classes": list(self.test.classes),
            "device": str(self.device),
            "warnings": warnings,
            "tasks": [{"task": asdict(task), "identity": self.record_identity(task)} for task in tasks],
        }

    def check(self, tasks: list[Task]) -> list[str]:
        """Questions to the model before it is attacked; asked once, the answers kept in plan.json."""
        subject = [self.classifier_identity, self.purifier_identity, self.test.identity]
        path = self.directory / PLAN
        known = read_json(path) if path.is_file() else {}
        if [known.get(key) for key in ("classifier", "purifier", "images")] == subject:
            return known["warnings"]
        count = min(tasks[0].count, self.settings.evaluation.batch_size)
        images, labels = self.images(range(count))
        model = nn.Sequential(self.purifier, self.classifier).eval()
        warnings = check_model(model, images, labels, len(self.test.classes))
        for warning in warnings:
            say(f"warning: {warning}")
        return warnings

    def images(self, ids: range) -> tuple[Tensor, Tensor]:
        """Test images [N, 3, H, W] in [0,1] and labels [N], on the device."""
        images, labels = self.test.batch(ids)
        return to_float(images).to(self.device), labels.to(self.device)

    # identities

    def attacked_facts(self, task: Task, *, knows_purifier: bool) -> dict[str, Any]:
        """All that a chunk's adversarial images depend on, except which chunk it is."""
        settings = self.settings
        facts = {
            "version": VERSION,
            "classifier": self.classifier_identity,
            "attack": task.named_attack.facts(),
            "seed": settings.run.seed,
            "batch_size": settings.evaluation.batch_size,
            "chunk_images": chunk_size(settings.evaluation, len(self.test)),
            "images": self.test.identity,
        }
        if knows_purifier:
            facts |= {"threat_model": task.threat_model, "purifier": self.purifier_identity}
        return facts

    def record_facts(self, task: Task) -> dict[str, Any]:
        """All that a record depends on."""
        facts = self.attacked_facts(task, knows_purifier=threat_model(task.threat_model).knows_purifier)
        return facts | {"purifier": self.purifier_identity, "task": asdict(task)}

    def record_identity(self, task: Task) -> str:
        """Digest of `record_facts`."""
        return digest(self.record_facts(task))

    # work

    def is_done(self, task: Task) -> bool:
        """Whether a task has its record and, if it is a first chunk, the report's sample images."""
        has_record = read_record(self.directory, task, self.record_identity(task)) is not None
        return has_record and (task.chunk > 0 or self._samples_exist(task))

    def run(self, task: Task, note: ProgressNote) -> None:
        """Attack one chunk and write its record."""
        started = time.perf_counter()
        remove_temporaries(self.directory / task.folder)
        images, labels = self.images(task.ids)
        alone = self.attacked_alone(task, note)
        threat = threat_model(task.threat_model)
        attacked = self.attacked_through(task, images, labels, note) if threat.knows_purifier else alone
        record = self.judge(task, images, labels, attacked, alone.images)
        write_json(record_path(self.directory, task), record)
        if task.chunk == 0:
            self._save_samples(task, images, labels, attacked.images)
        robust = count_right(record["predictions"]["defended_adversarial"], record["labels"])
        note.finished(task, robust, time.perf_counter() - started)

    def attacked_alone(self, task: Task, note: ProgressNote) -> AttackState:
        """The chunk attacked through the classifier alone: made once for all purifiers, kept in the cache.

        A threat model that takes fewer images than the oblivious one gets the first of its whole chunk.
        """
        total = min(self.settings.evaluation.images, len(self.test))
        size = chunk_size(self.settings.evaluation, len(self.test))
        whole = Task(**{**asdict(task), "count": min(size, total - task.first)})
        facts = self.attacked_facts(whole, knows_purifier=False)
        folder = Path(self.settings.run.cache) / "attacked" / digest(facts)[:16]
        images, labels = self.images(whole.ids)
        state = self._attacked(whole, self.classifier, images, labels, folder, facts, note)
        part = slice(0, task.count)
        return AttackState(state.images[part], state.predictions[part], state.robust[part],
                           state.survivors, state.seconds, state.warnings)  # fmt: skip

    def attacked_through(self, task: Task, images: Tensor, labels: Tensor, note: ProgressNote) -> AttackState:
        """The chunk attacked by one who knows the purifier; kept beside its record."""
        model = threat_model(task.threat_model).target(self.purifier, self.classifier)
        facts = self.attacked_facts(task, knows_purifier=True)
        return self._attacked(task, model, images, labels, self.directory / task.folder, facts, note)

    def _attacked(
        self,
        task: Task,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        folder: Path,
        facts: dict[str, Any],
        note: ProgressNote,
    ) -> AttackState:
        """Load a chunk's adversarial images, or make them, going on from the state a killed run left."""
        identity = digest({**facts, "first": task.first, "count": task.count})
        path, partial = folder / f"{task.stem}.safetensors", folder / f"{task.stem}.partial.safetensors"
        finished = AttackState.load(path, identity, self.device)
        if finished is not None:
            return finished

        def saved(state: AttackState) -> None:
            state.save(partial, identity)
            note.attacking(task, state)

        remove_temporaries(folder)
        state = task.named_attack.run(
            model,
            images,
            labels,
            keys=task.ids,
            seed=task.seed(self.settings.run.seed),
            batch_size=self.settings.evaluation.batch_size,
            state=AttackState.load(partial, identity, self.device),
            saved=saved,
        )
        _check_budget(task, state.images, images)
        state.save(path, identity)
        partial.unlink(missing_ok=True)
        return state

    def judge(self, task: Task, images: Tensor, labels: Tensor, attacked: AttackState, alone: Tensor) -> dict[str, Any]:
        """The record of a chunk: what classifier and purifier make of clean and adversarial images.

        attacked: by this task's attacker. alone: [N, 3, H, W], attacked through the classifier alone, on which
        the undefended classifier is judged. Seconds of purify and classify are those of clean and adversarial
        images together, 2N.
        """
        seconds = {"attack": attacked.seconds, "purify": 0.0, "classify": 0.0}
        clean, adversarial = (
            self._timed(seconds, "purify", self._purify, batch) for batch in (images, attacked.images)
        )
        predictions = {
            "undefended_clean": self._classify(images),
            "undefended_adversarial": self._classify(alone),
            "defended_clean": self._timed(seconds, "classify", self._classify, clean),
            "defended_adversarial": self._timed(seconds, "classify", self._classify, adversarial),
        }
        linf, l2 = distances(attacked.images, images)
        values = {
            "linf": linf,
            "l2": l2,
            "psnr_clean": psnr(clean, images),
            "psnr_adversarial": psnr(adversarial, images),
            "ssim_clean": ssim(clean, images),
            "ssim_adversarial": ssim(adversarial, images),
        }
        return {
            "identity": self.record_identity(task),
            "depends_on": self.record_facts(task),
            **asdict(task),
            "ids": list(task.ids),
            "labels": labels.tolist(),
            "predictions": {name: answer.tolist() for name, answer in predictions.items()},
            **{name: [round(number, 6) for number in value.tolist()] for name, value in values.items()},
            "survivors": attacked.survivors,
            "seconds": seconds,
            "warnings": attacked.warnings,
        }

    def _timed(
        self, seconds: dict[str, float], what: str, function: Callable[[Tensor], Tensor], batch: Tensor
    ) -> Tensor:
        """function(batch), its time added to seconds[what], the accelerator's work included."""
        started = time.perf_counter()
        result = function(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds[what] += time.perf_counter() - started
        return result

    @torch.no_grad()
    def _purify(self, images: Tensor) -> Tensor:
        """Purified images, same shape."""
        parts = images.split(self.settings.evaluation.batch_size)
        return torch.cat([self.purifier(part) for part in parts])

    @torch.no_grad()
    def _classify(self, images: Tensor) -> Tensor:
        """Predicted classes [N] of the classifier on `images`."""
        parts = images.split(self.settings.evaluation.batch_size)
        return torch.cat([self.classifier(part).argmax(1) for part in parts])

    # the report's images

    def _samples_identity(self, task: Task) -> str:
        return digest({"record": self.record_identity(task), "images": self.settings.evaluation.figure_images})

    def _samples_exist(self, task: Task) -> bool:
        path = self.directory / task.folder / SAMPLES
        return load_tensors(path, self._samples_identity(task)) is not None

    def _save_samples(self, task: Task, images: Tensor, labels: Tensor, adversarial: Tensor) -> None:
        """A few images of the first chunk, 8-bit, with the classifier's answer to each."""
        part = slice(0, self.settings.evaluation.figure_images)
        purified = self._purify(adversarial[part])
        kinds = {"clean": images[part], "adversarial": adversarial[part], "purified": purified}
        tensors = {name: to_uint8(batch) for name, batch in kinds.items()}
        tensors |= {f"{name}_prediction": self._classify(batch) for name, batch in kinds.items()}
        path = self.directory / task.folder / SAMPLES
        save_tensors(path, {**tensors, "labels": labels[part]}, {}, self._samples_identity(task))


def _check_budget(task: Task, adversarial: Tensor, images: Tensor) -> None:
    """Raises RuntimeError if an attack left its budget or the range of pixels: its result would be worthless."""
    linf, l2 = distances(adversarial, images)
    used = float((linf if task.norm == "Linf" else l2).max())
    low, high = float(adversarial.min()), float(adversarial.max())
    if not (used <= task.eps * (1 + 1e-4) + 1e-6 and low >= 0 and high <= 1):
        raise RuntimeError(f"{task}: the attack used {used} of {task.eps}, pixels in [{low}, {high}]")
