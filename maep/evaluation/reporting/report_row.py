"""A row of report.json: what came out for one purifier under one threat model, attack and budget."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from maep.runtime.errors import fail
from maep.storage.documents import Document, read_fields

Interval = tuple[float, float]
# Entries that only the rows of random purifiers have, and those that the first reports did not have.
OF_DRAWS = (
    "clean_average",
    "clean_worst",
    "clean_majority",
    "robust_average",
    "robust_worst",
    "robust_majority",
    "draws",
)
LATER = ("detected_clean", "detected_adversarial", "kind", "deterministic", "parameters", "alarms", "continued")


@dataclass(frozen=True)
class ClassRow(Document):
    """Accuracies in percent on the n images of one class, undefended and defended, clean and attacked.

    In JSON `name` is called `class`, which Python keeps for itself.
    """

    name: str
    n: int
    undefended_clean: float
    undefended_adversarial: float
    defended_clean: float
    defended_adversarial: float

    @classmethod
    def from_json(cls, value: object, source: str | Path) -> Self:
        """Checked. Raises UserError, naming source and entry."""
        if not isinstance(value, dict) or "class" not in value:
            fail(f"{source}: lacks the entry 'class'")
        return read_fields(cls, {**value, "name": value["class"]}, str(source))

    def to_json(self) -> dict[str, Any]:
        """As an entry of a row, without a version of its own."""
        entries = asdict(self)
        return {"class": entries.pop("name"), **entries}


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """The entries of a row, in their order; the first 22 are the contract, which later versions only add to.

    Accuracies and intervals (Wilson, 95 %) are in percent, eps and eps_used in [0,1] pixels in the attack's norm,
    similarities means over images (PSNR in dB), seconds per image. n: images. image_set: the first 16 digits of the
    image set's identity. records: folder of the records below run.dir/evaluation. energy_*: medians; distance_*,
    direction_cosine: means (`maep.evaluation.scoring.metrics`); None where no image has one. kind, parameters: of the
    purifier (`maep.evaluation.scoring.subject`). deterministic: whether it draws nothing. alarms: names of the checks
    that speak against the numbers of this purifier, empty for none; None in reports that did not say. continued: by
    training, the steps at which a longer schedule took over; None where none did.

    detected_clean, detected_adversarial: percent of the images that the purifier took for attacked; None of one that
    judges none.

    Of a random purifier clean_accuracy and robust_accuracy are those of one draw. *_average, *_worst and *_majority are
    of `draws` further ones: their mean, the images that are right in every draw, and those whose commonest answer is
    right. The first reports had none of clean images.
    """

    dataset: str
    classifier: str
    purifier: str
    threat_model: str
    attack: str
    norm: str
    eps: float
    n: int
    clean_accuracy: float
    robust_accuracy: float
    clean_ci95: Interval
    robust_ci95: Interval
    average_accuracy: float
    undefended_clean_accuracy: float
    undefended_robust_accuracy: float
    psnr_clean: float
    psnr_adversarial: float
    ssim_clean: float
    ssim_adversarial: float
    seconds_per_image: float
    seed: int
    config_hash: str
    robust_accuracy_8bit: float
    eps_used: float
    eps_used_8bit: float
    energy_removed: float | None
    energy_added: float | None
    distance_clean: float | None = None  # the first reports had no distances
    distance_adversarial: float | None = None
    direction_cosine: float | None = None
    clean_average: float | None = None
    clean_worst: float | None = None
    clean_majority: float | None = None
    robust_average: float | None = None
    robust_worst: float | None = None
    robust_majority: float | None = None
    draws: int | None = None
    detected_clean: float | None = None
    detected_adversarial: float | None = None
    seconds_attack: float
    seconds_purify: float
    seconds_classify: float
    image_set: str
    records: str
    per_class: tuple[ClassRow, ...]
    kind: str | None = None
    deterministic: bool | None = None
    parameters: int | None = None
    alarms: tuple[str, ...] | None = None
    continued: Mapping[str, tuple[int, ...]] | None = None

    def to_json(self) -> dict[str, Any]:
        """As in report.json."""
        entries = asdict(self) | {"per_class": [line.to_json() for line in self.per_class]}
        return {key: value for key, value in entries.items() if key not in (*OF_DRAWS, *LATER) or value is not None}
