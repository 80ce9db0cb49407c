"""The record of a chunk: what classifier and purifier make of clean and adversarial images."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from maep.attacks.attack_state import AttackState, load_tensors, save_tensors
from maep.attacks.reseeding import reseeded
from maep.data.shards import to_float, to_uint8
from maep.evaluation.scoring.chunk_attack import ChunkAttack, Saved
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.metrics import directions_cosine, distances, energies, psnr, purified_distances, ssim
from maep.evaluation.scoring.plan import SAMPLES, Task, record_path
from maep.storage.atomic import digest, write_json

JUDGING = (1,)  # keys of random purifiers: other draws than the attacker's


class Judge:
    """Makes the records of one evaluation."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    def is_done(self, task: Task) -> bool:
        """Whether a task has its record and, if it is a first chunk, the report's sample images."""
        return self.evaluation.has_record(task) and (task.chunk > 0 or self._samples_exist(task))

    def judge(self, task: Task, saved: Saved) -> dict[str, Any]:
        """Write and return the record of a task, attacking where the images are not there or damaged."""
        images, labels = self.evaluation.images(task.ids)
        alone, *through = [self._attacked(attack, saved) for attack in self.evaluation.attacks_of(task)]
        alone = _first(alone, task.count)
        attacked = through[0] if through else alone
        with reseeded(self.evaluation.purifier, task.seed(self.evaluation.settings.run.seed), *JUDGING):
            record = self._record(task, images, labels, attacked, alone.images)
            write_json(record_path(self.evaluation.directory, task), record)
            if task.chunk == 0:
                self._save_samples(task, images, labels, attacked.images, record)
        return record

    def _attacked(self, attack: ChunkAttack, saved: Saved) -> AttackState:
        found = attack.load(self.evaluation.device)
        return found or attack.make(*self.evaluation.images(attack.task.ids), saved)

    def _record(
        self, task: Task, images: Tensor, labels: Tensor, attacked: AttackState, alone: Tensor
    ) -> dict[str, Any]:
        """attacked: by this task's attacker. alone: [N, 3, H, W], attacked through the classifier alone, on which
        the undefended classifier is judged. Seconds of purify and classify are those of clean and adversarial
        images together, 2N.
        """
        seconds = {"attack": attacked.seconds, "purify": 0.0, "classify": 0.0}
        clean, adversarial = (
            self._timed(seconds, "purify", self._purify, batch) for batch in (images, attacked.images)
        )
        rounded = to_float(to_uint8(attacked.images))
        answers = {
            "undefended_clean": self._classify(images),
            "undefended_adversarial": self._classify(alone),
            "defended_clean": self._timed(seconds, "classify", self._classify, clean),
            "defended_adversarial": self._timed(seconds, "classify", self._classify, adversarial),
            "defended_adversarial_8bit": self._classify(self._purify(rounded)),
        }
        record = {
            "identity": self.evaluation.record_identity(task),
            "depends_on": self.evaluation.record_facts(task),
            **asdict(task),
            "ids": list(task.ids),
            "labels": labels.tolist(),
            "predictions": {name: answer.argmax(1).tolist() for name, answer in answers.items()},
            "confidences": {name: _rounded(answer.softmax(1).amax(1), 4) for name, answer in answers.items()},
            **_distances(images, attacked.images, rounded, clean, adversarial),
            "survivors": attacked.survivors,
            "seconds": seconds,
            "warnings": attacked.warnings,
        }
        if self.evaluation.is_random:
            draws = range(self.evaluation.settings.evaluation.draws)
            record["draws"] = [self._classify(self._purify(attacked.images)).argmax(1).tolist() for _ in draws]
        return record

    def _timed(
        self, seconds: dict[str, float], what: str, function: Callable[[Tensor], Tensor], batch: Tensor
    ) -> Tensor:
        """function(batch), its time added to seconds[what], the accelerator's work included."""
        started = time.perf_counter()
        result = function(batch)
        if self.evaluation.device.type == "cuda":
            torch.cuda.synchronize(self.evaluation.device)
        seconds[what] += time.perf_counter() - started
        return result

    @torch.no_grad()
    def _purify(self, images: Tensor) -> Tensor:
        """Purified images, same shape."""
        parts = images.split(self.evaluation.settings.evaluation.batch_size)
        return torch.cat([self.evaluation.purifier(part) for part in parts])

    @torch.no_grad()
    def _classify(self, images: Tensor) -> Tensor:
        """Logits [N, C] of the classifier on `images`."""
        parts = images.split(self.evaluation.settings.evaluation.batch_size)
        return torch.cat([self.evaluation.classifier(part) for part in parts])

    # the report's images

    def _samples_identity(self, task: Task) -> str:
        count = self.evaluation.settings.evaluation.figure_images
        return digest({"record": self.evaluation.record_identity(task), "images": count})

    def _samples_exist(self, task: Task) -> bool:
        path = self.evaluation.directory / task.folder / SAMPLES
        return load_tensors(path, self._samples_identity(task)) is not None

    def _save_samples(
        self, task: Task, images: Tensor, labels: Tensor, adversarial: Tensor, record: dict[str, Any]
    ) -> None:
        """Images of the first chunk that were saved and that were lost, 8-bit, with the classifier's answers."""
        chosen = chosen_samples(record, self.evaluation.settings.evaluation.figure_images)
        index = torch.tensor(chosen, dtype=torch.int64, device=images.device)
        kinds = {"clean": images[index], "adversarial": adversarial[index]}
        kinds["purified"] = self._purify(kinds["adversarial"])
        tensors = {name: to_uint8(batch) for name, batch in kinds.items()}
        for name, batch in kinds.items():
            answers = self._classify(batch)
            tensors[f"{name}_prediction"] = answers.argmax(1)
            tensors[f"{name}_confidence"] = answers.softmax(1).amax(1)
        tensors |= {"labels": labels[index], "ids": index + task.first}
        path = self.evaluation.directory / task.folder / SAMPLES
        save_tensors(path, tensors, {}, self._samples_identity(task))


def chosen_samples(record: dict[str, Any], count: int) -> list[int]:
    """Places of `count` images of a chunk, as many saved as lost where there are, in order.

    Saved: the purified image is classified rightly. Lost: wrongly, though the clean one, purified, was not.
    Where one kind lacks images the other fills up, then the rest.
    """
    labels, predictions = record["labels"], record["predictions"]
    right, before = (
        [p == label for p, label in zip(predictions[name], labels, strict=True)]
        for name in ("defended_adversarial", "defended_clean")
    )
    saved = [place for place, good in enumerate(right) if good]
    lost = [place for place, good in enumerate(right) if not good and before[place]]
    rest = [place for place in range(len(labels)) if place not in {*saved, *lost}]
    half = max(count - count // 2, count - len(lost))
    return sorted([*saved[:half], *lost, *saved[half:], *rest][:count])


def _rounded(values: Tensor, digits: int = 6) -> list[float | None]:
    """As JSON: NaN, a number that is not there, is null."""
    return [None if math.isnan(number) else round(number, digits) for number in values.tolist()]


def _distances(
    images: Tensor, attacked: Tensor, rounded: Tensor, clean: Tensor, adversarial: Tensor
) -> dict[str, list[float | None]]:
    """Per image: how far the attack went, also after rounding to 8 bits, and what the purifier made of it.

    clean, adversarial: `images` and `attacked`, purified.
    """
    linf, l2 = distances(attacked, images)
    linf_8bit, l2_8bit = distances(rounded, images)
    removed, added = energies(adversarial, attacked, images)
    distance_clean, distance_adversarial = purified_distances(clean, adversarial, images)
    values = {
        "linf": linf,
        "l2": l2,
        "linf_8bit": linf_8bit,
        "l2_8bit": l2_8bit,
        "psnr_clean": psnr(clean, images),
        "psnr_adversarial": psnr(adversarial, images),
        "ssim_clean": ssim(clean, images),
        "ssim_adversarial": ssim(adversarial, images),
        "distance_clean": distance_clean,
        "distance_adversarial": distance_adversarial,
        "direction_cosine": directions_cosine(clean, adversarial, images, attacked),
        "energy_removed": removed,
        "energy_added": added,
    }
    return {name: _rounded(value) for name, value in values.items()}


def _first(state: AttackState, count: int) -> AttackState:
    """The first `count` images of an attack."""
    part = slice(0, count)
    return AttackState(state.images[part], state.predictions[part], state.robust[part],
                       state.survivors, state.seconds, state.warnings)  # fmt: skip
