"""The record of a chunk: what classifier and purifier make of clean and adversarial images."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from maep.attacks.state import AttackState, load_tensors, save_tensors
from maep.data.shards import to_uint8
from maep.evaluation.adversarial import ChunkAttack, Saved
from maep.evaluation.metrics import distances, psnr, ssim
from maep.evaluation.records import SAMPLES, Task, record_path
from maep.evaluation.subject import Evaluation
from maep.files import digest, write_json


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
        record = self._record(task, images, labels, attacked, alone.images)
        write_json(record_path(self.evaluation.directory, task), record)
        if task.chunk == 0:
            self._save_samples(task, images, labels, attacked.images)
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
            "identity": self.evaluation.record_identity(task),
            "depends_on": self.evaluation.record_facts(task),
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
        """Predicted classes [N] of the classifier on `images`."""
        parts = images.split(self.evaluation.settings.evaluation.batch_size)
        return torch.cat([self.evaluation.classifier(part).argmax(1) for part in parts])

    # the report's images

    def _samples_identity(self, task: Task) -> str:
        count = self.evaluation.settings.evaluation.figure_images
        return digest({"record": self.evaluation.record_identity(task), "images": count})

    def _samples_exist(self, task: Task) -> bool:
        path = self.evaluation.directory / task.folder / SAMPLES
        return load_tensors(path, self._samples_identity(task)) is not None

    def _save_samples(self, task: Task, images: Tensor, labels: Tensor, adversarial: Tensor) -> None:
        """A few images of the first chunk, 8-bit, with the classifier's answer to each."""
        part = slice(0, self.evaluation.settings.evaluation.figure_images)
        purified = self._purify(adversarial[part])
        kinds = {"clean": images[part], "adversarial": adversarial[part], "purified": purified}
        tensors = {name: to_uint8(batch) for name, batch in kinds.items()}
        tensors |= {f"{name}_prediction": self._classify(batch) for name, batch in kinds.items()}
        path = self.evaluation.directory / task.folder / SAMPLES
        save_tensors(path, {**tensors, "labels": labels[part]}, {}, self._samples_identity(task))


def _first(state: AttackState, count: int) -> AttackState:
    """The first `count` images of an attack."""
    part = slice(0, count)
    return AttackState(state.images[part], state.predictions[part], state.robust[part],
                       state.survivors, state.seconds, state.warnings)  # fmt: skip
