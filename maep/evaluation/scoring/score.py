"""The record of a chunk: what classifier and purifier make of clean and adversarial images."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from maep.attacks.attack_state import AttackState, OnState, load_tensors, save_tensors
from maep.attacks.reseeding import reseeded
from maep.attacks.verdict import predicted
from maep.data.shards import to_float, to_uint8
from maep.evaluation.scoring.chunk_attack import ChunkAttack
from maep.evaluation.scoring.chunk_record import ChunkRecord, PerImage, is_recorded, record_path
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.metrics import directions_cosine, distances, energies, psnr, purified_distances, ssim
from maep.evaluation.scoring.plan import SAMPLES
from maep.evaluation.scoring.tasks import Task
from maep.purifiers import Purifier
from maep.runtime.device import wait_for
from maep.runtime.digests import digest

SCORING = (1,)  # keys of random purifiers when scoring: other draws than the attacker's, who cannot foresee them
# Of the draws on clean images, apart: what the others draw is what it was before there were any.
CLEAN_SCORING = (1, 1)
DETECTION = (1, 2)  # apart as well


def is_scored(evaluation: Evaluation, task: Task) -> bool:
    """Whether a task has its record and, if it is a first chunk, the report's sample images."""
    identity = evaluation.identity.record(task)
    return is_recorded(evaluation.directory, task, identity) and (task.chunk > 0 or _samples_exist(evaluation, task))


def score_chunk(evaluation: Evaluation, task: Task, on_state: OnState) -> ChunkRecord:
    """Write and return the record of a task, attacking where the images are not there or damaged.

    on_state: called with each state of such an attack. Raises RuntimeError if an attack left its budget.
    """
    images, labels = evaluation.images(task.ids)
    undefended, *defended = [_attacked(evaluation, attack, on_state) for attack in evaluation.attacks.of(task)]
    undefended = _first(undefended, task.count)
    state = defended[0] if defended else undefended
    protection, seed = evaluation.defense.protection, task.seed(evaluation.settings.run.seed)
    with reseeded(protection, seed, *SCORING):
        record = _score(evaluation, task, Chunk(images, labels, state, undefended.images))
        if task.chunk == 0:
            _save_samples(evaluation, task, record, images, state.images)
    with reseeded(protection, seed, *CLEAN_SCORING):
        record = replace(record, clean_draws=_draws(evaluation, _timed(evaluation), images))
    with reseeded(protection, seed, *DETECTION):
        record = replace(record, detected=_detected(evaluation, {"clean": images, "adversarial": state.images}))
    record.write(record_path(evaluation.directory, task))
    return record


@dataclass(frozen=True)
class Chunk:
    """What is scored. images: [N, 3, H, W] in [0,1]; labels: int64 [N]. state: of the attack by the task's attacker.
    undefended: [N, 3, H, W], attacked through the classifier alone, on which the undefended classifier is scored.
    """

    images: Tensor
    labels: Tensor
    state: AttackState
    undefended: Tensor


@dataclass
class TimedDefense:
    """A defense, asked in batches. seconds: to purify and to classify, the accelerator's work included."""

    defense: Defense
    batch_size: int
    seconds: dict[str, float] = field(default_factory=lambda: {"purify": 0.0, "classify": 0.0})

    @torch.no_grad()
    def purify(self, images: Tensor) -> Tensor:
        """Purified images, same shape as `images`, [N, 3, H, W] in [0,1]."""
        return torch.cat([self.defense.purifier(part) for part in images.split(self.batch_size)])

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Logits [N, C] of the undefended classifier on `images`, [N, 3, H, W] in [0,1]."""
        return torch.cat([self.defense.classifier(part) for part in images.split(self.batch_size)])

    @torch.no_grad()
    def classify_purified(self, images: Tensor) -> Tensor:
        """Logits [N, C] of the defense on images [N, 3, H, W] in [0,1] that `purify` gave."""
        return torch.cat([self.defense.classifier_of_purified(part) for part in images.split(self.batch_size)])

    def timed(self, what: str, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """function(batch), its time added to seconds[what]."""
        started = time.perf_counter()
        result = function(batch)
        wait_for(self.defense.device)
        self.seconds[what] += time.perf_counter() - started
        return result


def _timed(evaluation: Evaluation) -> TimedDefense:
    return TimedDefense(evaluation.defense, evaluation.settings.evaluation.batch_size)


def _attacked(evaluation: Evaluation, attack: ChunkAttack, on_state: OnState) -> AttackState:
    finished = attack.load(evaluation.defense.device)
    return finished or attack.make(*evaluation.images(attack.task.ids), on_state)


def _score(evaluation: Evaluation, task: Task, chunk: Chunk) -> ChunkRecord:
    """The record. Its seconds of purify and classify are those of clean and adversarial images together, 2N.

    The order of the calls decides what a random purifier draws for each, and so is part of the result.
    """
    model = _timed(evaluation)
    clean, adversarial = (model.timed("purify", model.purify, batch) for batch in (chunk.images, chunk.state.images))
    rounded = to_float(to_uint8(chunk.state.images))
    answers = {
        "undefended_clean": model.classify(chunk.images),
        "undefended_adversarial": model.classify(chunk.undefended),
        "defended_clean": model.timed("classify", model.classify_purified, clean),
        "defended_adversarial": model.timed("classify", model.classify_purified, adversarial),
        "defended_adversarial_8bit": model.classify_purified(model.purify(rounded)),
    }
    return ChunkRecord(
        identity=evaluation.identity.record(task),
        depends_on=evaluation.identity.record_facts(task),
        **asdict(task),
        ids=tuple(task.ids),
        labels=tuple(chunk.labels.tolist()),
        predictions={name: tuple(predicted(answer).tolist()) for name, answer in answers.items()},
        confidences={name: _rounded(answer.softmax(1).amax(1), 4) for name, answer in answers.items()},
        **_distances(chunk.images, chunk.state.images, rounded, clean, adversarial),
        survivors=chunk.state.survivors,
        seconds={"attack": chunk.state.seconds, **model.seconds},
        warnings=tuple(chunk.state.warnings),
        draws=_draws(evaluation, model, chunk.state.images),
        keys=image_keys(chunk.images),
    )


def image_keys(images: Tensor) -> tuple[str, ...]:
    """What tells images apart, whatever set they are in: 16 digits of the SHA-256 of each one's 8-bit pixels.

    images: [N, 3, H, W] in [0,1].
    """
    pixels = to_uint8(images).cpu().contiguous().numpy()
    return tuple(hashlib.sha256(repr(each.shape).encode() + each.tobytes()).hexdigest()[:16] for each in pixels)


def _draws(evaluation: Evaluation, model: TimedDefense, images: Tensor) -> tuple[tuple[int, ...], ...] | None:
    """Of a random purifier, its predictions in further draws."""
    if not evaluation.targets.is_random:
        return None
    draws = range(evaluation.settings.evaluation.draws)
    return tuple(tuple(predicted(model.classify_purified(model.purify(images))).tolist()) for _ in draws)


def _detected(evaluation: Evaluation, batches: Mapping[str, Tensor]) -> dict[str, tuple[bool, ...]] | None:
    """Of a purifier that judges which images are attacked, its verdicts on each batch."""
    purifier, size = evaluation.defense.purifier, evaluation.settings.evaluation.batch_size
    if not isinstance(purifier, Purifier) or not purifier.detects:
        return None
    return {
        name: tuple(torch.cat([purifier.detected(part) for part in images.split(size)]).tolist())
        for name, images in batches.items()
    }


# the report's images


def _samples_identity(evaluation: Evaluation, task: Task) -> str:
    count = evaluation.settings.evaluation.figure_images
    return digest({"record": evaluation.identity.record(task), "images": count})


def _samples_exist(evaluation: Evaluation, task: Task) -> bool:
    path = evaluation.directory / task.folder / SAMPLES
    return load_tensors(path, _samples_identity(evaluation, task)) is not None


def _save_samples(evaluation: Evaluation, task: Task, record: ChunkRecord, images: Tensor, adversarial: Tensor) -> None:
    """Images of the first chunk that were saved and that were lost, 8-bit, with the classifier's answers."""
    model = _timed(evaluation)
    index = torch.tensor(
        sample_positions(record, evaluation.settings.evaluation.figure_images), dtype=torch.int64, device=images.device
    )
    kinds = {"clean": images[index], "adversarial": adversarial[index]}
    kinds["purified"] = model.purify(kinds["adversarial"])
    tensors = {name: to_uint8(batch) for name, batch in kinds.items()}
    for name, batch in kinds.items():
        answers = model.classify_purified(batch) if name == "purified" else model.classify(batch)
        tensors[f"{name}_prediction"] = predicted(answers)
        tensors[f"{name}_confidence"] = answers.softmax(1).amax(1)
    tensors |= {"labels": torch.tensor(record.labels, device=images.device)[index], "ids": index + task.first}
    path = evaluation.directory / task.folder / SAMPLES
    save_tensors(path, tensors, {}, _samples_identity(evaluation, task))


def sample_positions(record: ChunkRecord, count: int) -> list[int]:
    """Positions of `count` images of a chunk, as many saved as lost where there are, in order.

    Saved: the purified image is classified rightly. Lost: wrongly, though the clean one, purified, was not.
    Where one kind lacks images the other fills up, then the others.
    """
    correct, before = record.correct("defended_adversarial"), record.correct("defended_clean")
    saved = [position for position, good in enumerate(correct) if good]
    lost = [position for position, good in enumerate(correct) if not good and before[position]]
    others = [position for position in range(record.count) if position not in {*saved, *lost}]
    half = max(count - count // 2, count - len(lost))
    return sorted([*saved[:half], *lost, *saved[half:], *others][:count])


def _rounded(values: Tensor, digits: int = 6) -> PerImage:
    """As JSON: NaN, a number that is not there, is null. Six digits are what fp32 holds."""
    return tuple(None if math.isnan(number) else round(number, digits) for number in values.tolist())


def _distances(images: Tensor, attacked: Tensor, rounded: Tensor, clean: Tensor, adversarial: Tensor) -> dict[str, Any]:
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
