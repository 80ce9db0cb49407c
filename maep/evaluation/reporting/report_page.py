"""report.html: the whole report in one file that needs no network."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment as Engine
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from maep.attacks.threat_models import threat_model
from maep.config.schema import Settings
from maep.evaluation.audit.findings import ALARM, WARNING, Finding, PurifierResult, WorstCase, worst_case
from maep.evaluation.reporting.bounds import baseline_bounds, bounds_figure, bounds_of, is_shown
from maep.evaluation.reporting.certificates import SHOWN, certificate_figure
from maep.evaluation.reporting.curves import Curve
from maep.evaluation.reporting.figures import (
    ROWS,
    accuracy_figure,
    checks_figure,
    curve_figure,
    eps_figure,
    png_bytes,
    sample_images,
    verdicts,
)
from maep.evaluation.reporting.report_document import Report
from maep.evaluation.reporting.report_row import ClassRow, Interval, ReportRow
from maep.evaluation.reporting.rows import Combination, Samples, headlines, judged_word
from maep.evaluation.reporting.threat_meanings import KNOWABLE, meaning_of
from maep.evaluation.scoring.defense import UNDEFENDED
from maep.evaluation.scoring.metrics import wilson_interval
from maep.evaluation.scoring.tasks import eps_text
from maep.runtime.text import shown_in_html

LIGHT_INK, DARK_INK = "#1f2430", "#d6dbe6"
# Heads of the tables, `|` where a line ends, and what each means.
PACE = "ms an image|att., pur. / class."
COLUMNS = {
    "attack": "as the literature writes it; AutoAttack is four attacks, of which an image must stand all",
    "purifier": "what was put before the classifier",
    "ε": "the most that an attack may move an image, in its norm and in pixels from 0 to 1",
    "n": "images that were attacked and scored",
    "undefended|clean %": "of the n images, those that the classifier alone gets right; below: 95 % interval",
    "undefended|robust %": "the same after the same attack, aimed at the classifier alone",
    "purified|clean %": "the classifier behind the purifier, on images that were not attacked",
    "purified|robust %": (
        "the classifier behind the purifier, on attacked images: the number that counts. Below, of a defense that "
        "judges which images are attacked: the share that it found; beside clean %, of clean images: its false alarms"
    ),
    "average|%": "mean of purified clean and purified robust",
    "PSNR dB, SSIM|clean / adv.": (
        "likeness of purified and clean image, when it was clean and when it was attacked; higher is more alike, SSIM "
        "1 is equal. Energy: share of the perturbation's energy that purifying takes away, and that it adds"
    ),
    PACE: "milliseconds to attack one image; below: to purify it and to classify it",
}
CLASS_COLUMNS = ("n", "undefended|clean %", "undefended|robust %", "purified|clean %", "purified|robust %")
# Sides up to this many pixels are shown pixel by pixel, and stored lossless: a 64 x 64 image is 8 kB as PNG.
SMALL = 96


@dataclass(frozen=True)
class Tile:
    """A headline number. condition: what the images went through; accuracies in percent on n images."""

    name: str
    condition: str
    accuracy: float
    interval: Interval
    n: int
    undefended: float
    alarms: Sequence[str] = ()


@dataclass(frozen=True)
class Stood:
    """Of n images, the share in percent that stood against every attack within eps. interval: Wilson, 95 %."""

    eps: float
    n: int
    accuracy: float
    interval: Interval
    is_guessing: bool


@dataclass(frozen=True)
class Verdict:
    """What a reader takes away of one purifier, or of a model without one.

    name: of the purifier, "" for a model without. stood: by budget. alarms: findings that say not to believe the
    numbers. warnings: those that say what else to know of them.
    chance: percent that guessing gives. knows: whether an attacker who knows the whole model was run.
    """

    name: str
    stood: Sequence[Stood]
    threats: Sequence[str]
    alarms: Sequence[Finding]
    warnings: Sequence[Finding]
    chance: float
    classes: int
    knows: bool


@dataclass(frozen=True)
class HonestySection:
    """The findings on a purifier and the curves behind them. images: how many the defense was asked about."""

    name: str
    findings: Sequence[Finding]
    worst_case: Sequence[WorstCase]
    images: int
    picture: Markup


@dataclass(frozen=True)
class Cell:
    """One picture of the gallery, and what the classifier sees in it."""

    source: Markup
    name: str
    verdict: str
    is_right: bool


@dataclass(frozen=True)
class GalleryLine:
    """The pictures of one test image. kind: `saved` or `lost`."""

    label: str
    id: int
    kind: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Gallery:
    """Pictures of some test images. is_large: whether they are too large to be shown pixel by pixel."""

    heads: Sequence[str]
    lines: Sequence[GalleryLine]
    is_large: bool


@dataclass(frozen=True)
class ThreatSection:
    """A threat model: what it means, its table, how suites went, and classes and images under one attack of it."""

    name: str
    meaning: Sequence[str]
    rows: Sequence[Combination]
    courses: Sequence[str]
    attack: str
    purifier: str
    per_class: Sequence[ClassRow]
    gallery: Gallery | None


@dataclass(frozen=True)
class CurveSection:
    """The curve of a training and where it ended."""

    picture: Markup
    steps: int
    samples: int | None
    loss: float
    images_per_second: float | None


def render_page(
    settings: Settings,
    results: Sequence[PurifierResult],
    rows: Sequence[Combination],
    curves: Mapping[str, Curve],
    notes: Sequence[str],
    report: Report,
    configuration: str,
) -> str:
    """The page as HTML. rows: of all results, side by side. curves: by name of the training. configuration: YAML."""
    engine = Engine(
        loader=PackageLoader("maep.evaluation.reporting", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=shown_in_html,
    )  # fmt: skip
    engine.filters |= {
        "eps": eps_text, "purifier": purifier_text, "percent": lambda value: f"{value:.1f}", "ms": _milliseconds,
    }  # fmt: skip
    return engine.get_template("page.html").render(
        title=f"{settings.run.name}: {settings.data.name}, {settings.classifier.arch}",
        settings=settings,
        verdicts=[_verdict(result) for result in results],
        has_purifier=_judged(results) == "purified",
        nouns={result.name: _noun(result) for result in results},
        tiles=_tiles(rows),
        honesty=[_honesty(result) for result in results],
        purifying={result.name: result.cost for result in results if result.name != UNDEFENDED},
        against_eps=_against_eps(rows),
        sections=_sections(rows),
        columns=_columns(results),
        judged=_judged(results),
        knowable=KNOWABLE[_judged(results)],
        class_columns=[name.replace("purified", _judged(results)) for name in CLASS_COLUMNS],
        overview=_picture(lambda ink: accuracy_figure(headlines(rows), ink), "accuracy in each threat model"),
        curves={name: _curve(name, lines) for name, lines in curves.items()},
        notes=[_sentence(note, [result.name for result in results]) for note in notes],
        environment=report.environment,
        bounds=_bounds(results, report),
        baseline=report.baseline,
        certificates=report.certificates,
        certificate_picture=_picture(
            lambda ink: certificate_figure(report.certificates, ink), "certified accuracy against the radius"
        )
        if report.certificates
        else None,
        radii=SHOWN,
        undefended=UNDEFENDED,
        configuration=configuration,
        seed=settings.run.seed,
        config_hash=rows[0].result.config_hash,
    )


def _bounds(results: Sequence[PurifierResult], report: Report) -> Markup | None:
    """The picture of what each purifier is worth, where more than an oblivious attacker was asked."""
    bounds = bounds_of(results, report.certificates)
    if not is_shown(bounds):
        return None
    shown = [*bounds, *([baseline_bounds(report.baseline)] if report.baseline else [])]
    return _picture(lambda ink: bounds_figure(shown, ink), "clean, oblivious, every attacker, certified")


def _sentence(note: str, names: Sequence[str]) -> str:
    """A note with a capital letter, unless it begins with a purifier's name, which is written as it is."""
    is_name = any(note.startswith((f"{name}:", f"{name},", f"{name} ")) for name in names)
    return note if is_name else note[:1].upper() + note[1:]


def _milliseconds(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.2g}" if milliseconds < 1 else f"{milliseconds:.{int(milliseconds < 100)}f}"


def _judged(results: Sequence[PurifierResult]) -> str:
    """What the tables call the answers that are judged."""
    return judged_word([row.result for result in results for row in result.rows])


def _noun(result: PurifierResult) -> str:
    """What a result is of, in headings."""
    return "defense" if result.subject is not None and result.subject.kind == "defended" else "purifier"


def _columns(results: Sequence[PurifierResult]) -> dict[str, str]:
    judged = _judged(results)
    if judged == "purified":
        return COLUMNS
    head = "purifier"
    if judged == "defended":
        head = "defense"
        words = {"classifier behind the purifier": "defended classifier", "what was put before": "what protects"}
    else:
        words = {"classifier behind the purifier": "model"}
    words |= {"to purify it and to classify it": "to classify it"}
    words |= {"purified and clean image": "the classified and the clean image", "purifying takes": "it takes"}
    heads = {"purifier": head, PACE: "ms an image|att. / class."}
    columns = {heads.get(key, key): text for key, text in COLUMNS.items()}
    for before, after in words.items():
        columns = {key: text.replace(before, after) for key, text in columns.items()}
    return {key.replace("purified", judged): text.replace("purified", judged) for key, text in columns.items()}


def purifier_text(name: str) -> str:
    """A purifier's name in reports, for people: a model without one is not called one."""
    return "no purifier" if name == UNDEFENDED else name


def _verdict(result: PurifierResult) -> Verdict:
    classes = len(result.plan.classes)
    threats = list(dict.fromkeys(row.result.threat_model for row in result.rows))
    return Verdict(
        name="" if result.name == UNDEFENDED else result.name,
        stood=[_stood(case, 100 / classes) for case in worst_case(result.rows)],
        threats=threats,
        alarms=[finding for finding in result.findings if finding.level == ALARM],
        warnings=[finding for finding in result.findings if finding.level == WARNING],
        chance=100 / classes,
        classes=classes,
        knows=any(threat_model(name).knows_purifier for name in threats),
    )


def _stood(case: WorstCase, chance: float) -> Stood:
    low, high = wilson_interval(round(case.robust_accuracy * case.n / 100), case.n)
    return Stood(case.eps, case.n, case.robust_accuracy, (100 * low, 100 * high), case.robust_accuracy <= chance)


def _attack_text(row: ReportRow) -> str:
    return f"{row.attack}, {row.norm} {eps_text(row.eps)}"


def _tiles(rows: Sequence[Combination]) -> dict[str, list[Tile]]:
    """The headline of each purifier: clean accuracy, then one tile a threat model."""
    groups: dict[str, list[Tile]] = {}
    for row in headlines(rows):
        result = row.result
        tiles = groups.setdefault(result.purifier, [])
        if not tiles:
            clean = (result.clean_accuracy, result.clean_ci95, result.n, result.undefended_clean_accuracy)
            tiles.append(Tile("clean", "not attacked", *clean))
        robust = (result.robust_accuracy, result.robust_ci95, result.n, result.undefended_robust_accuracy)
        alarms = getattr(result, "alarms", ())
        tiles.append(Tile(f"robust, {result.threat_model}", _attack_text(result), *robust, alarms))
    return groups


def _honesty(result: PurifierResult) -> HonestySection:
    picture = _picture(lambda ink: checks_figure(result.checks, ink), "loss and accuracy against ε and steps")
    return HonestySection(result.name, result.findings, worst_case(result.rows), result.checks.images, picture)


def _against_eps(rows: Sequence[Combination]) -> Markup | None:
    """Robust accuracy against the budget, where there are several."""
    curves = [[row for row in rows if _same_but_eps(row.result, first.result)] for first in headlines(rows)]
    if max(len(curve) for curve in curves) < 2:
        return None
    return _picture(lambda ink: eps_figure(curves, ink), "robust accuracy against ε")


def _same_but_eps(row: ReportRow, other: ReportRow) -> bool:
    keys = ("purifier", "threat_model", "attack", "norm")
    return all(getattr(row, key) == getattr(other, key) for key in keys)


def _sections(rows: Sequence[Combination]) -> list[ThreatSection]:
    """One section a threat model, with classes and images of the last, finetuned purifier."""
    headline = {row.result.threat_model: row for row in headlines(rows)}
    return [_section(row, [other for other in rows if other.result.threat_model == name])
            for name, row in headline.items()]  # fmt: skip


def _section(headline: Combination, rows: Sequence[Combination]) -> ThreatSection:
    result = headline.result
    return ThreatSection(
        name=result.threat_model,
        meaning=meaning_of(result.threat_model, judged_word([row.result for row in rows])),
        rows=rows,
        courses=list(dict.fromkeys(_course(row) for row in rows if len(row.robust_after) > 2)),
        attack=_attack_text(result),
        purifier=result.purifier,
        per_class=result.per_class,
        gallery=_gallery(headline.samples, judged_word([result])) if headline.samples else None,
    )


def _course(row: Combination) -> str:
    """How far the attacked model's accuracy fell, attack by attack."""
    knows = threat_model(row.result.threat_model).uses_purifier
    model = f"classifier behind {row.result.purifier}" if knows else "undefended classifier"
    if row.result.purifier == UNDEFENDED:
        model = "model"
    steps = [f"{value:.1f} % after {name.upper()}" for name, value in row.robust_after.items() if name != "clean"]
    clean = f"from {row.robust_after['clean']:.1f} %"
    return f"{_attack_text(row.result)}: the {model}, which was attacked, fell {clean} to {', '.join(steps)}."


def _gallery(samples: Samples, judged: str) -> Gallery:
    """The picture table: one line of it an image, saved or lost. judged: as `judged_word`."""
    images = sample_images(samples)
    answers = {name: verdicts(samples, name) for name in ROWS}
    lines = []
    for number, label in enumerate(samples.tensors["labels"].tolist()):
        cells = [
            _cell(judged if name == "purified" else name, images[name][number], answers[name], number) for name in ROWS
        ]
        kind = "saved" if cells[ROWS.index("purified")].is_right else "lost"
        lines.append(GalleryLine(samples.classes[label], int(samples.tensors["ids"][number]), kind, cells))
    heads = [judged if name == "purified" else name for name in ROWS]
    return Gallery(heads, lines, max(images[ROWS[0]].shape[1:3]) > SMALL)


def _cell(name: str, image: np.ndarray, answers: Sequence[tuple[str, bool]] | None, number: int) -> Cell:
    text, is_right = answers[number] if answers else ("", True)
    return Cell(_image_source(image), name, text, is_right)


def _image_source(image: np.ndarray) -> Markup:
    """A uint8 [H, W, 3] image as a data URI: small ones lossless, large ones as WebP to keep the page light."""
    buffer = io.BytesIO()
    if max(image.shape[:2]) <= SMALL:
        Image.fromarray(image).save(buffer, "PNG")
        return _data_uri("png", buffer.getvalue())
    Image.fromarray(image).save(buffer, "WEBP", quality=90)  # from here on the eye sees no difference
    return _data_uri("webp", buffer.getvalue())


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _picture(draw: Callable[[str], Figure], alt: str) -> Markup:
    """A figure that follows the reader's light or dark scheme."""
    light, dark = (_data_uri("png", png_bytes(draw(ink))) for ink in (LIGHT_INK, DARK_INK))
    source = Markup('<source media="(prefers-color-scheme: dark)" srcset="{}">').format(dark)
    return Markup('<picture>{}<img class="figure" src="{}" alt="{}"></picture>').format(source, light, alt)


def _curve(name: str, lines: Curve) -> CurveSection:
    last = lines[-1]
    picture = _picture(lambda ink: curve_figure(lines, ink), f"loss and learning rate of {name}")
    samples = last.get("samples")
    return CurveSection(
        picture, int(last["step"]), None if samples is None else int(samples), last["loss"],
        last.get("images_per_second"),
    )  # fmt: skip
