"""From the records of one combination (threat model, attack, budget) to one row of the report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from maep.attacks.autoattack import square_warning
from maep.attacks.named import AUTOATTACK
from maep.attacks.state import load_tensors
from maep.evaluation.metrics import count_right, wilson_interval
from maep.evaluation.records import SAMPLES
from maep.files import digest
from maep.settings import Settings


@dataclass(frozen=True)
class Samples:
    """A few images for the eye.

    tensors: `clean`, `adversarial`, `purified` uint8 [K, 3, H, W]; `labels` and the classifier's answer to each,
    `clean_prediction`, `adversarial_prediction`, `purified_prediction`, int64 [K]. classes: names.
    """

    tensors: dict[str, Tensor]
    classes: list[str]


@dataclass(frozen=True)
class Combination:
    """One row of a report: a threat model, an attack and a budget, over all its chunks.

    result: the fields of report.json. undefended_ci95: Wilson intervals in percent of the classifier alone,
    (clean, robust). seconds: (attack, purify, classify) per image. robust_after: share of images, in percent,
    that the attacked model still classified rightly after each attack. warnings: what the attacks warned of.
    """

    result: dict[str, Any]
    undefended_ci95: tuple[list[float], list[float]]
    seconds: tuple[float, float, float]
    robust_after: dict[str, float]
    warnings: list[str]
    samples: Samples | None


def config_hash(settings: Settings) -> str:
    """Identity of a configuration, wherever its files are."""
    values = asdict(settings)
    values["run"] = {key: value for key, value in values["run"].items() if key not in ("dir", "cache")}
    values["data"].pop("cache_dir")
    return digest(values)[:16]


def _joined(records: Sequence[dict[str, Any]], *path: str) -> list[Any]:
    """A per-image field of all chunks, in order."""
    values: list[Any] = []
    for record in records:
        found: Any = record
        for name in path:
            found = found[name]
        values += found
    return values


def _percent(right: int, n: int) -> tuple[float, list[float]]:
    """Accuracy and its Wilson 95 % interval, in percent."""
    low, high = wilson_interval(right, n)
    return round(100 * right / n, 4), [round(100 * low, 4), round(100 * high, 4)]


def combine(
    settings: Settings, purifier: str, classes: list[str], folder: Path, records: list[dict[str, Any]]
) -> Combination:
    """One row of the report, of all chunks of a combination.

    purifier: its name in reports. classes: names. folder: where the combination's records and samples are.
    """
    labels = _joined(records, "labels")
    n, first = len(labels), records[0]
    accuracies = {
        name: _percent(count_right(_joined(records, "predictions", name), labels), n) for name in first["predictions"]
    }
    clean, robust = accuracies["defended_clean"], accuracies["defended_adversarial"]
    alone_clean, alone_robust = accuracies["undefended_clean"], accuracies["undefended_adversarial"]
    attack, purify, classify = (sum(record["seconds"][what] for record in records) / n
                                for what in ("attack", "purify", "classify"))  # fmt: skip
    similarity = {
        name: round(fmean(_joined(records, name)), 4)
        for name in ("psnr_clean", "psnr_adversarial", "ssim_clean", "ssim_adversarial")
    }
    result = {
        "dataset": settings.data.name,
        "classifier": settings.classifier.arch,
        "purifier": purifier,
        "threat_model": first["threat_model"],
        "attack": first["attack"],
        "norm": first["norm"],
        "eps": first["eps"],
        "n": n,
        "clean_accuracy": clean[0],
        "robust_accuracy": robust[0],
        "clean_ci95": clean[1],
        "robust_ci95": robust[1],
        "average_accuracy": round((clean[0] + robust[0]) / 2, 4),
        "undefended_clean_accuracy": alone_clean[0],
        "undefended_robust_accuracy": alone_robust[0],
        **similarity,
        "seconds_per_image": round((purify + classify) / 2, 6),
        "seed": settings.run.seed,
        "config_hash": config_hash(settings),
    }
    survivors = {name: sum(r["survivors"].get(name, 0) for r in records) for name in _attack_names(records)}
    warnings = list(dict.fromkeys(_joined(records, "warnings")))
    return Combination(
        result,
        (alone_clean[1], alone_robust[1]),
        (attack, purify / 2, classify / 2),
        {name: 100 * left / n for name, left in survivors.items()},
        warnings + square_warning(survivors, n),
        _samples(folder, classes),
    )


def _attack_names(records: Sequence[dict[str, Any]]) -> list[str]:
    """Names in `survivors`, in order; a chunk broken early lacks the later ones."""
    return max((list(record["survivors"]) for record in records), key=len)


def _samples(folder: Path, classes: list[str]) -> Samples | None:
    found = load_tensors(folder / SAMPLES)
    return Samples(found[0], classes) if found else None


def headlines(rows: Sequence[Combination]) -> list[Combination]:
    """For each purifier and threat model the row that stands for it.

    That is AutoAttack if it was run, else the last attack, at the first budget.
    """
    chosen: dict[tuple[str, str], Combination] = {}
    for row in rows:
        key = (row.result["purifier"], row.result["threat_model"])
        other = chosen.get(key)
        same = other is not None and other.result["attack"] in (AUTOATTACK, row.result["attack"])
        chosen[key] = other if other is not None and same else row
    return list(chosen.values())
