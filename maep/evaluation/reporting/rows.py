"""From the records of one combination (threat model, attack, budget) to one row of the report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TypedDict

from torch import Tensor

from maep.attacks.attack_state import load_tensors
from maep.attacks.autoattack import square_warning
from maep.attacks.catalog import is_autoattack
from maep.config.identity import configuration_digest
from maep.config.schema import Settings
from maep.evaluation.reporting.report_row import ClassRow, Interval, ReportRow
from maep.evaluation.scoring.chunk_record import ChunkRecord, PerImage, joined
from maep.evaluation.scoring.defense import UNDEFENDED
from maep.evaluation.scoring.metrics import count_right, wilson_interval
from maep.evaluation.scoring.plan import SAMPLES, Plan


@dataclass(frozen=True)
class Samples:
    """A few images for the eye.

    tensors: `clean`, `adversarial`, `purified` uint8 [K, 3, H, W]; `labels` and `ids` int64 [K]; the classifier's
    answer to each, `clean_prediction` int64 [K] and `clean_confidence` float [K] and so on. classes: names.
    """

    tensors: dict[str, Tensor]
    classes: Sequence[str]


@dataclass(frozen=True)
class Combination:
    """One row of a report: a threat model, an attack and a budget, over all its chunks.

    result: as in report.json. undefended_ci95: Wilson intervals in percent of the undefended classifier,
    (clean, robust). seconds: (attack, purify, classify) per image. robust_after: share of images, in percent,
    that the attacked model still classified rightly after each attack. warnings: what the attacks warned of;
    square_warning: AutoAttack's, if Square broke what its gradient attacks left, else empty.
    correct: by sample index, whether the attacked image, purified, was classified rightly.
    """

    result: ReportRow
    undefended_ci95: tuple[Interval, Interval]
    seconds: tuple[float, float, float]
    robust_after: dict[str, float]
    warnings: list[str]
    square_warning: str
    samples: Samples | None
    correct: dict[int, bool]


def percent_with_interval(right: int, n: int) -> tuple[float, Interval]:
    """Accuracy and its Wilson 95 % interval, in percent."""
    low, high = wilson_interval(right, n)
    return round(100 * right / n, 4), (round(100 * low, 4), round(100 * high, 4))


def combine(settings: Settings, purifier: str, plan: Plan, folder: Path, records: Sequence[ChunkRecord]) -> Combination:
    """One row of the report, of all chunks of a combination.

    purifier: its name in reports. folder: where the combination's records and samples are, whose last three parts are
    purifier, threat model and attack.
    """
    labels = joined([record.labels for record in records])
    n = len(labels)
    accuracies = {
        name: percent_with_interval(count_right(joined([record.predictions[name] for record in records]), labels), n)
        for name in records[0].predictions
    }
    seconds = _seconds(records, n)
    survivors = {name: sum(record.survivors.get(name, 0) for record in records) for name in _attack_names(records)}
    square = square_warning(survivors, n)
    return Combination(
        result=_row(settings, purifier, plan, folder, records, accuracies, seconds),
        undefended_ci95=(accuracies["undefended_clean"][1], accuracies["undefended_adversarial"][1]),
        seconds=seconds,
        robust_after={name: 100 * number / n for name, number in survivors.items()},
        warnings=list(dict.fromkeys(joined([record.warnings for record in records]))) + square,
        square_warning=" ".join(square),
        samples=_samples(folder, plan.classes),
        correct={
            index: right
            for record in records
            for index, right in zip(record.ids, record.correct("defended_adversarial"), strict=True)
        },
    )


def _seconds(records: Sequence[ChunkRecord], n: int) -> tuple[float, float, float]:
    """To attack, purify and classify one image; records have the seconds to purify and classify 2N."""
    attack, purify, classify = (
        sum(record.seconds[what] for record in records) / n for what in ("attack", "purify", "classify")
    )
    return attack, purify / 2, classify / 2


def _row(
    settings: Settings,
    purifier: str,
    plan: Plan,
    folder: Path,
    records: Sequence[ChunkRecord],
    accuracies: Mapping[str, tuple[float, Interval]],
    seconds: tuple[float, float, float],
) -> ReportRow:
    labels, first = joined([record.labels for record in records]), records[0]
    clean, robust = accuracies["defended_clean"], accuracies["defended_adversarial"]
    attack, purify, classify = seconds
    return ReportRow(
        dataset=settings.data.name,
        classifier=settings.classifier.arch,
        purifier=purifier,
        threat_model=first.threat_model,
        attack=first.attack,
        norm=first.norm,
        eps=first.eps,
        n=len(labels),
        clean_accuracy=clean[0],
        robust_accuracy=robust[0],
        clean_ci95=clean[1],
        robust_ci95=robust[1],
        average_accuracy=round((clean[0] + robust[0]) / 2, 4),
        undefended_clean_accuracy=accuracies["undefended_clean"][0],
        undefended_robust_accuracy=accuracies["undefended_adversarial"][0],
        psnr_clean=_mean([record.psnr_clean for record in records]),
        psnr_adversarial=_mean([record.psnr_adversarial for record in records]),
        ssim_clean=_mean([record.ssim_clean for record in records]),
        ssim_adversarial=_mean([record.ssim_adversarial for record in records]),
        seconds_per_image=round(purify + classify, 6),
        seed=settings.run.seed,
        config_hash=configuration_digest(settings)[:16],
        robust_accuracy_8bit=accuracies["defended_adversarial_8bit"][0],
        eps_used=max(_perturbations(records, rounded=False)),
        eps_used_8bit=max(_perturbations(records, rounded=True)),
        energy_removed=_median_of_defined([record.energy_removed for record in records]),
        energy_added=_median_of_defined([record.energy_added for record in records]),
        distance_clean=_mean_of_defined([record.distance_clean for record in records]),
        distance_adversarial=_mean_of_defined([record.distance_adversarial for record in records]),
        direction_cosine=_mean_of_defined([record.direction_cosine for record in records]),
        **_scores_of_draws(records, labels),
        detected_clean=_detected(records, "clean"),
        detected_adversarial=_detected(records, "adversarial"),
        seconds_attack=round(attack, 6),
        seconds_purify=round(purify, 6),
        seconds_classify=round(classify, 6),
        image_set=plan.images[:16],
        records="/".join(folder.parts[-3:]),
        per_class=tuple(_per_class(records, labels, plan.classes)),
    )


def _mean(parts: Sequence[PerImage]) -> float:
    return round(fmean(joined(parts)), 4)


def _perturbations(records: Sequence[ChunkRecord], *, rounded: bool) -> list[float]:
    """Of each image in the attack's norm, as it was made or after rounding its image to 8 bits."""
    norm = "linf" if records[0].norm == "Linf" else "l2"
    return joined([getattr(record, f"{norm}_8bit" if rounded else norm) for record in records])


def _median_of_defined(parts: Sequence[PerImage]) -> float | None:
    """Over the images where it is defined, those that were perturbed; None where there is none."""
    values = [value for value in joined(parts) if value is not None]
    return round(median(values), 4) if values else None


def _mean_of_defined(parts: Sequence[PerImage]) -> float | None:
    """Six digits, since distances are of the order of 0.01; None where there is none."""
    values = [value for value in joined(parts) if value is not None]
    return round(fmean(values), 6) if values else None


class DrawScores(TypedDict, total=False):
    """Entries of a row that a random purifier has."""

    clean_average: float
    clean_worst: float
    clean_majority: float
    robust_average: float
    robust_worst: float
    robust_majority: float
    draws: int


def _scores_of_draws(records: Sequence[ChunkRecord], labels: Sequence[int]) -> DrawScores:
    """Of a random purifier, on clean and on attacked images; {} of one that draws nothing."""
    attacked = [record.draws for record in records if record.draws is not None]
    clean = [record.clean_draws for record in records if record.clean_draws is not None]
    scores: DrawScores = {}
    if attacked:
        average, worst, majority = draw_accuracies(attacked, labels)
        scores |= {"robust_average": average, "robust_worst": worst, "robust_majority": majority}
        scores["draws"] = len(attacked[0])
    if len(clean) == len(records):  # chunks of an earlier version may lack them
        average, worst, majority = draw_accuracies(clean, labels)
        scores |= {"clean_average": average, "clean_worst": worst, "clean_majority": majority}
    return scores


def _detected(records: Sequence[ChunkRecord], kind: str) -> float | None:
    """Percent of the images that the purifier took for attacked; None where a chunk does not say."""
    verdicts = [record.detected[kind] for record in records if record.detected is not None]
    return round(100 * fmean(joined(verdicts)), 4) if len(verdicts) == len(records) else None


def draw_accuracies(chunks: Sequence[Sequence[Sequence[int]]], labels: Sequence[int]) -> tuple[float, float, float]:
    """In percent: mean over draws, right in every draw, right by the answer of most draws (of equals the first).

    chunks: of each, the predictions of each draw. labels: of all chunks, in order.
    """
    draws = [joined(parts) for parts in zip(*chunks, strict=True)]
    by_image = [(label, answers) for label, *answers in zip(labels, *draws, strict=True)]
    right = [[answer == label for answer in answers] for label, answers in by_image]
    majority = [Counter(answers).most_common(1)[0][0] == label for label, answers in by_image]
    shares = fmean(sum(image) / len(image) for image in right), fmean(map(all, right)), fmean(majority)
    average, worst, most = (round(100 * share, 4) for share in shares)
    return average, worst, most


def _per_class(records: Sequence[ChunkRecord], labels: Sequence[int], classes: Sequence[str]) -> list[ClassRow]:
    """Accuracies in percent of each class that has images."""
    names = ("undefended_clean", "undefended_adversarial", "defended_clean", "defended_adversarial")
    right = {name: joined([record.correct(name) for record in records]) for name in names}
    rows = []
    for number in sorted(set(labels)):
        members = [position for position, label in enumerate(labels) if label == number]
        shares = (round(100 * fmean(right[name][position] for position in members), 4) for name in names)
        rows.append(ClassRow(classes[number], len(members), *shares))
    return rows


def _attack_names(records: Sequence[ChunkRecord]) -> list[str]:
    """Names in `survivors`, in order; a chunk broken early lacks the later ones."""
    return max((list(record.survivors) for record in records), key=len)


def _samples(folder: Path, classes: Sequence[str]) -> Samples | None:
    contents = load_tensors(folder / SAMPLES)
    return Samples(contents[0], classes) if contents else None


def judged_word(rows: Sequence[ReportRow]) -> str:
    """What the answers that are judged are called: `purified`, `defended` where no image is, `model` without either."""
    kinds = {row.kind for row in rows if row.purifier != UNDEFENDED}
    return "purified" if kinds - {"defended"} else "defended" if kinds else "model"


def headlines(rows: Sequence[Combination]) -> list[Combination]:
    """For each purifier and threat model the row that stands for it.

    That is the first of AutoAttack's versions that was run, else the last attack, at the first budget.
    """
    headline: dict[tuple[str, str], Combination] = {}
    for row in rows:
        key = (row.result.purifier, row.result.threat_model)
        other = headline.get(key)
        stays = other is not None and (is_autoattack(other.result.attack) or other.result.attack == row.result.attack)
        headline[key] = other if other is not None and stays else row
    return list(headline.values())
