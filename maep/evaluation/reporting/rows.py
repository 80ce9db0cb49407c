"""From the records of one combination (threat model, attack, budget) to one row of the report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from torch import Tensor

from maep.attacks.attack_state import load_tensors
from maep.attacks.autoattack import square_warning
from maep.attacks.catalog import is_autoattack
from maep.config.schema import Settings
from maep.evaluation.scoring.metrics import count_right, wilson_interval
from maep.evaluation.scoring.plan import SAMPLES
from maep.storage.atomic import digest


@dataclass(frozen=True)
class Samples:
    """A few images for the eye.

    tensors: `clean`, `adversarial`, `purified` uint8 [K, 3, H, W]; `labels` and `ids` int64 [K]; the classifier's
    answer to each, `clean_prediction` int64 [K] and `clean_confidence` float [K] and so on. classes: names.
    """

    tensors: dict[str, Tensor]
    classes: list[str]


@dataclass(frozen=True)
class Combination:
    """One row of a report: a threat model, an attack and a budget, over all its chunks.

    result: the fields of report.json. undefended_ci95: Wilson intervals in percent of the classifier alone,
    (clean, robust). seconds: (attack, purify, classify) per image. robust_after: share of images, in percent,
    that the attacked model still classified rightly after each attack. warnings: what the attacks warned of.
    right: by sample index, whether the attacked image, purified, was classified rightly.
    """

    result: dict[str, Any]
    undefended_ci95: tuple[list[float], list[float]]
    seconds: tuple[float, float, float]
    robust_after: dict[str, float]
    warnings: list[str]
    samples: Samples | None
    right: dict[int, bool]


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
    settings: Settings, purifier: str, plan: dict[str, Any], folder: Path, records: list[dict[str, Any]]
) -> Combination:
    """One row of the report, of all chunks of a combination.

    purifier: its name in reports. plan: what plan.json holds. folder: where the combination's records and samples are.
    """
    labels, classes = _joined(records, "labels"), plan["classes"]
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
    contract = {
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
    more = {
        "robust_accuracy_8bit": accuracies["defended_adversarial_8bit"][0],
        **_budget_used(records),
        **_energies(records),
        **_of_purification(records),
        **_scores_of_draws(records, labels),
        "seconds_attack": round(attack, 6),
        "seconds_purify": round(purify / 2, 6),
        "seconds_classify": round(classify / 2, 6),
        "image_set": plan["images"][:16],
        "records": str(Path(folder.parents[1].name) / folder.parents[0].name / folder.name),
        "per_class": _per_class(records, labels, classes),
    }
    survivors = {name: sum(r["survivors"].get(name, 0) for r in records) for name in _attack_names(records)}
    warnings = list(dict.fromkeys(_joined(records, "warnings")))
    return Combination(
        contract | more,
        (alone_clean[1], alone_robust[1]),
        (attack, purify / 2, classify / 2),
        {name: 100 * left / n for name, left in survivors.items()},
        warnings + square_warning(survivors, n),
        _samples(folder, classes),
        dict(zip(_joined(records, "ids"), _right(records, "defended_adversarial", labels), strict=True)),
    )


def _right(records: Sequence[dict[str, Any]], name: str, labels: Sequence[int]) -> list[bool]:
    """Image by image, whether a prediction is right."""
    return [p == label for p, label in zip(_joined(records, "predictions", name), labels, strict=True)]


def _budget_used(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The largest perturbation in the attack's norm, as it was made and after rounding its image to 8 bits."""
    norm = "linf" if records[0]["norm"] == "Linf" else "l2"
    return {"eps_used": max(_joined(records, norm)), "eps_used_8bit": max(_joined(records, f"{norm}_8bit"))}


def _energies(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Medians over the perturbed images; None where there is none."""
    found = {
        name: [value for value in _joined(records, name) if value is not None]
        for name in ("energy_removed", "energy_added")
    }
    return {name: round(median(values), 4) if values else None for name, values in found.items()}


def _of_purification(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Means of how far purified images are from the clean ones, and of how alike both ways there are (Sec. 4.2)."""
    names = ("distance_clean", "distance_adversarial", "direction_cosine")
    found = {name: [value for value in _joined(records, name) if value is not None] for name in names}
    return {name: round(fmean(values), 6) if values else None for name, values in found.items()}


def _scores_of_draws(records: Sequence[dict[str, Any]], labels: Sequence[int]) -> dict[str, Any]:
    """Of a random purifier, robust accuracy in percent: mean over draws, right in every draw, majority of draws."""
    if "draws" not in records[0]:
        return {}
    count = len(records[0]["draws"])
    draws = [[answer for record in records for answer in record["draws"][number]] for number in range(count)]
    right = [[p == label for p in answers] for label, *answers in zip(labels, *draws, strict=True)]
    majority = [Counter(answers).most_common(1)[0][0] == label for label, *answers in zip(labels, *draws, strict=True)]
    share = {
        "robust_average": fmean(sum(image) / len(image) for image in right),
        "robust_worst": fmean(all(image) for image in right),
        "robust_majority": fmean(majority),
    }
    return {name: round(100 * value, 4) for name, value in share.items()} | {"draws": count}


def _per_class(
    records: Sequence[dict[str, Any]], labels: Sequence[int], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Accuracies in percent of each class that has images."""
    names = ("undefended_clean", "undefended_adversarial", "defended_clean", "defended_adversarial")
    right = {name: _right(records, name, labels) for name in names}
    lines = []
    for number in sorted(set(labels)):
        own = [place for place, label in enumerate(labels) if label == number]
        shares = {name: round(100 * fmean(right[name][place] for place in own), 4) for name in names}
        lines.append({"class": classes[number], "n": len(own), **shares})
    return lines


def _attack_names(records: Sequence[dict[str, Any]]) -> list[str]:
    """Names in `survivors`, in order; a chunk broken early lacks the later ones."""
    return max((list(record["survivors"]) for record in records), key=len)


def _samples(folder: Path, classes: list[str]) -> Samples | None:
    found = load_tensors(folder / SAMPLES)
    return Samples(found[0], classes) if found else None


def headlines(rows: Sequence[Combination]) -> list[Combination]:
    """For each purifier and threat model the row that stands for it.

    That is the first of AutoAttack's versions that was run, else the last attack, at the first budget.
    """
    chosen: dict[tuple[str, str], Combination] = {}
    for row in rows:
        key = (row.result["purifier"], row.result["threat_model"])
        other = chosen.get(key)
        stands = other is not None and is_autoattack(other.result["attack"])
        same = other is not None and other.result["attack"] == row.result["attack"]
        chosen[key] = other if other is not None and (stands or same) else row
    return list(chosen.values())
