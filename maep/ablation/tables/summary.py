"""What a sweep leaves in its directory: ablation.json, table.md, table.tex and figures/.

All of it is collected from the points, so it can be made at any time, and by anyone, while others still run.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maep.ablation.running.overhead import seconds_spent
from maep.ablation.running.point_records import read_record, stage_seconds
from maep.ablation.running.pretrained import pretrained_by
from maep.ablation.running.rungs import standing, state_of, stop_json
from maep.ablation.spec.points import Point
from maep.ablation.spec.sweep import Sweep
from maep.ablation.tables.cells import Cell, read_cells
from maep.ablation.tables.purification import draw_purification
from maep.ablation.tables.render import latex_table, markdown_table
from maep.ablation.tables.value_figures import draw_figures
from maep.evaluation.reporting.provenance import environment
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file, read_json, write_json
from maep.storage.locks import one_at_a_time

SUMMARY = "ablation.json"
SCHEMA = 1


def check_directory(sweep: Sweep, directory: Path) -> None:
    """Raise UserError if the directory holds the table of another sweep or of another scale."""
    path = directory / SUMMARY
    if not path.is_file():
        return
    known = read_json(path)
    for name, wanted in (("name", sweep.name), ("scale", sweep.scale)):
        if known[name] != wanted:
            fail(f"run.dir={directory}: holds the table of {name} {known[name]}, not {wanted}; choose another run.dir")


def write_summary(sweep: Sweep, points: Sequence[Point], directory: Path, command: Sequence[str]) -> dict[str, Any]:
    """Write ablation.json, both tables and the figures; returns the JSON.

    command: how to make it again. Of workers that end together one writes after the other, so the last sees all.
    """
    with one_at_a_time(directory):
        cells = read_cells(sweep, points)
        summary = _summary(sweep, points, directory, command, cells)
        for name, text in (("table.md", markdown_table(sweep, cells)), ("table.tex", latex_table(sweep, cells))):
            with atomic_file(directory / name) as temporary:
                temporary.write_text(text)
        draw_figures(sweep, cells, directory / "figures")
        draw_purification(sweep, points, directory / "figures")
        write_json(directory / SUMMARY, summary)
    return summary


def _summary(
    sweep: Sweep, points: Sequence[Point], directory: Path, command: Sequence[str], cells: Sequence[Cell]
) -> dict[str, Any]:
    records, stopped = [(point, read_record(point)) for point in points], standing(sweep, points).stopped
    return {
        "schema": SCHEMA,
        "name": sweep.name,
        "table": sweep.table,
        "title": sweep.title,
        "scale": sweep.scale,
        "note": sweep.note,
        "errata": list(sweep.errata),
        "command": list(command),
        "environment": environment(list(command)),
        "axes": [{"title": axis.title, "names": list(axis.names)} for axis in sweep.axes],
        "readings": sweep.readings,
        "values": list(sweep.values),
        "halving": asdict(sweep.halving) if sweep.halving else None,
        "attacked": attack_counts(points),
        "pretrainings": pretraining_counts(points),
        "seconds": {**seconds_spent(directory), "points": sum(record.seconds for _, record in records)},
        "points": [
            {
                "names": list(point.names), "seed": point.seed, "identity": point.identity,
                "directory": str(point.directory), "state": state_of(point, stopped), "reason": record.reason,
                "seconds": record.seconds, "stopped": stop_json(stopped.get(point.identity)),
            }
            for point, record in records
        ],
        "cells": [cell_json(cell) for cell in cells],
    }  # fmt: skip


def pretraining_counts(points: Sequence[Point]) -> dict[str, int]:
    """Of how many points the pretraining is finished, and how many of them trained themselves."""
    done = [point for point in points if "pretrain" in stage_seconds(point)]
    return {"points": len(done), "trained": sum(pretrained_by(point) is None for point in done)}


def cell_json(cell: Cell) -> dict[str, Any]:
    """A cell with the differences from the paper."""
    measures = [{**asdict(measure), "difference": measure.difference} for measure in cell.measures]
    return {"names": list(cell.names), "reading": cell.reading, "state": cell.state, "measures": measures}


def attack_counts(points: Sequence[Point]) -> dict[str, dict[str, int]]:
    """How much of the training and test images was attacked while these points ran, over all their lives.

    `attacks`: pieces (shards, chunks) attacked, each time counted; `pieces`: different ones among them; `sets`:
    different sets of images, a test set once for each attack and budget. Sharing works if attacks = pieces.
    """
    made: dict[str, set[tuple[str, int]]] = {"training": set(), "test": set()}
    for point in points:
        for kind, attacked in read_record(point).attacked.items():
            made[kind] |= set(attacked.items())
    return {
        kind: {
            "attacks": len(events),
            "pieces": len({path for path, _ in events}),
            "sets": len({Path(path).parent for path, _ in events}),
        }
        for kind, events in made.items()
    }
