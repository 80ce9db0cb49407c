"""report.html: the whole report in one file that needs no network."""

import base64
import inspect
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from maep.attacks.threat_models import threat_model
from maep.config.schema import Settings
from maep.evaluation.audit.findings import Judged, worst_case
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
from maep.evaluation.reporting.rows import Combination, Samples, headlines
from maep.evaluation.scoring.plan import eps_text

LIGHT_INK, DARK_INK = "#1f2430", "#d6dbe6"
SMALL = 96


def render_page(
    settings: Settings,
    judged: Sequence[Judged],
    rows: Sequence[Combination],
    curves: dict[str, list[dict[str, Any]]],
    notes: Sequence[str],
    environment: dict[str, Any],
    configuration: str,
) -> str:
    """The page as HTML. rows: of all that were judged, side by side. curves: lines of metrics.jsonl by name of the
    stage. configuration: YAML.
    """
    engine = Environment(
        loader=PackageLoader("maep.evaluation.reporting", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    engine.filters |= {"eps": eps_text, "percent": lambda value: f"{value:.1f}", "ms": _milliseconds}
    return engine.get_template("page.html").render(
        title=f"{settings.run.name}: {settings.data.name}, {settings.classifier.arch}",
        settings=settings,
        tiles=_tiles(rows),
        honesty=[_honesty(one) for one in judged],
        purifying={one.name: one.purifying for one in judged},
        against_eps=_against_eps(rows),
        sections=_sections(rows),
        overview=_picture(lambda ink: accuracy_figure(headlines(rows), ink), "accuracy in each threat model"),
        curves={name: _curve(name, lines) for name, lines in curves.items()},
        notes=notes,
        environment=environment,
        versions=environment.get("versions", {}),
        configuration=configuration,
        seed=settings.run.seed,
        config_hash=rows[0].result["config_hash"],
    )


def _milliseconds(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.2g}" if milliseconds < 1 else f"{milliseconds:.{int(milliseconds < 100)}f}"


def _tiles(rows: Sequence[Combination]) -> dict[str, list[dict[str, Any]]]:
    """The headline of each purifier: clean accuracy, then one tile a threat model."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in headlines(rows):
        result = row.result
        tiles = groups.setdefault(result["purifier"], [])
        if not tiles:
            tiles.append(_tile("clean", "not attacked", result, "clean"))
        what = f"{result['attack']}, {result['norm']} {eps_text(result['eps'])}"
        tiles.append(_tile(f"robust, {result['threat_model']}", what, result, "robust"))
    return groups


def _tile(name: str, what: str, result: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "name": name,
        "what": what,
        "value": result[f"{kind}_accuracy"],
        "interval": result[f"{kind}_ci95"],
        "n": result["n"],
        "alone": result[f"undefended_{kind}_accuracy"],
    }


def _honesty(one: Judged) -> dict[str, Any]:
    """The findings on a purifier and the curves behind them."""
    return {
        "name": one.name,
        "findings": one.findings,
        "worst_case": worst_case(one.rows),
        "images": one.checks["images"],
        "picture": _picture(lambda ink: checks_figure(one.checks, ink), "loss and accuracy against ε and steps"),
    }


def _against_eps(rows: Sequence[Combination]) -> Markup | None:
    """Robust accuracy against the budget, where there are several."""
    shown = headlines(rows)
    curves = [[row for row in rows if _same_but_eps(row, first)] for first in shown]
    if max(len(curve) for curve in curves) < 2:
        return None
    return _picture(lambda ink: eps_figure(curves, ink), "robust accuracy against ε")


def _same_but_eps(row: Combination, other: Combination) -> bool:
    return all(row.result[key] == other.result[key] for key in ("purifier", "threat_model", "attack", "norm"))


def _sections(rows: Sequence[Combination]) -> list[dict[str, Any]]:
    """One section a threat model: what it means, its table, and classes and images of the last, finetuned purifier."""
    shown = {row.result["threat_model"]: row for row in headlines(rows)}
    return [
        {
            "name": name,
            "meaning": (inspect.getdoc(type(threat_model(name))) or "").split("\n\n"),
            "rows": [row for row in rows if row.result["threat_model"] == name],
            "courses": list(
                dict.fromkeys(
                    _course(row) for row in rows if row.result["threat_model"] == name and len(row.robust_after) > 2
                )
            ),
            "gallery": _gallery(row.samples) if row.samples else None,
            "shown": "{attack}, {norm} ".format(**row.result) + eps_text(row.result["eps"]),
            "purifier": row.result["purifier"],
            "per_class": row.result["per_class"],
        }
        for name, row in shown.items()
    ]


def _course(row: Combination) -> str:
    """How far the attacked model's accuracy fell, attack by attack."""
    knows = threat_model(row.result["threat_model"]).uses_purifier
    model = f"classifier behind {row.result['purifier']}" if knows else "classifier alone"
    steps = [f"{value:.1f} % after {name.upper()}" for name, value in row.robust_after.items() if name != "clean"]
    what = "{attack}, {norm} ".format(**row.result) + eps_text(row.result["eps"])
    return (
        f"{what}: the {model}, which was attacked, fell from {row.robust_after['clean']:.1f} % to {', '.join(steps)}."
    )


def _gallery(samples: Samples) -> dict[str, Any]:
    """Column heads and cells (image, verdict, right) of the picture table: one row of it an image, saved or lost."""
    images = sample_images(samples)
    answers = {name: verdicts(samples, name) for name in ROWS}
    lines = []
    for number, label in enumerate(samples.tensors["labels"].tolist()):
        cells = []
        for name in ROWS:
            answer = answers[name]
            text, right = answer[number] if answer else ("", True)
            cells.append({"source": _image_source(images[name][number]), "name": name, "verdict": text, "right": right})
        saved = cells[ROWS.index("purified")]["right"]
        lines.append({
            "label": samples.classes[label],
            "id": int(samples.tensors["ids"][number]),
            "kind": "saved" if saved else "lost",
            "cells": cells,
        })  # fmt: skip
    return {"heads": ROWS, "lines": lines, "large": max(images[ROWS[0]].shape[1:3]) > SMALL}


def _image_source(image: np.ndarray) -> Markup:
    """A uint8 [H, W, 3] image as a data URI: small ones lossless, large ones as WebP to keep the page light."""
    buffer = io.BytesIO()
    small = max(image.shape[:2]) <= SMALL
    Image.fromarray(image).save(buffer, "PNG" if small else "WEBP", **({} if small else {"quality": 90}))
    return _data_uri("png" if small else "webp", buffer.getvalue())


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _picture(draw: Callable[[str], Figure], alt: str) -> Markup:
    """A figure that follows the reader's light or dark scheme."""
    light, dark = (_data_uri("png", png_bytes(draw(ink))) for ink in (LIGHT_INK, DARK_INK))
    source = Markup('<source media="(prefers-color-scheme: dark)" srcset="{}">').format(dark)
    return Markup('<picture>{}<img class="figure" src="{}" alt="{}"></picture>').format(source, light, alt)


def _curve(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    last = lines[-1]
    return {
        "picture": _picture(lambda ink: curve_figure(lines, ink), f"loss and learning rate of {name}"),
        "steps": last["step"],
        "samples": last.get("samples"),
        "loss": last["loss"],
        "speed": last.get("images_per_second"),
    }
