"""One page over all tables of the paper: ours with interval, the paper's, the difference, the scale, the command."""

import shlex
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from maep.ablation.spec.sweep import Sweep, read_sweep
from maep.ablation.tables.render import EMPTY, number
from maep.config.load import sweep_names
from maep.storage.atomic import read_json


def render_paper(summaries: Sequence[Path]) -> str:
    """The page, as HTML that stands alone.

    summaries: ablation.json files, of any sweeps and scales. Tables of the paper that none of them is about are
    there with the paper's numbers and empty cells.
    """
    run = [(path, read_json(path)) for path in summaries]
    known = {summary["table"] for _, summary in run}
    sweeps = (read_sweep(name, "paper") for name in sweep_names())
    tables = [from_summary(summary, path.parent / "figures") for path, summary in run]
    tables += [not_run(sweep) for sweep in sweeps if sweep.table not in known]
    tables.sort(key=lambda table: (_place(table["table"]), table["scale"]))
    environment = Environment(
        loader=PackageLoader("maep.ablation.tables", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("paper.html").render(tables=tables, run=len(run))


def _place(table: str) -> int:
    """Numbered tables in order, a user's own after them."""
    return int(table.split()[-1]) if table.split()[-1:] and table.split()[-1].isdigit() else 10_000


def from_summary(summary: dict[str, Any], figures: Path) -> dict[str, Any]:
    """What the page shows of an ablation.json, and of the figures beside it."""
    lines = [
        _line([*cell["names"], *([cell["reading"]] if cell["reading"] else [])], measure, cell["state"])
        for cell in summary["cells"]
        for measure in cell["measures"]
    ]
    finished = sum(point["state"] == "finished" for point in summary["points"])
    return {
        "table": summary["table"], "title": summary["title"], "scale": summary["scale"], "note": summary["note"],
        "errata": summary["errata"], "command": shlex.join(summary["command"]), "lines": lines,
        "told": f"{finished} of {len(summary['points'])} points finished",
        "figures": {path.stem.replace("_", " "): _embedded(path) for path in sorted(figures.glob("*.png"))},
    }  # fmt: skip


def _embedded(path: Path) -> str:
    """A PNG as the page carries it."""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"


def not_run(sweep: Sweep) -> dict[str, Any]:
    """A table of which nothing has been run."""
    lines = [
        _line([name for name in names if name], {"name": value, "mean": None, "paper": paper}, "")
        for names, numbers in sweep.paper.items()
        for value, paper in zip(sweep.values, numbers, strict=True)
    ]
    return {
        "table": sweep.table, "title": sweep.title, "scale": "not run", "note": "", "errata": sweep.errata,
        "command": f"python launch/local.py cfg=ablation/{sweep.name} --scale paper", "lines": lines, "told": "",
        "figures": {},
    }  # fmt: skip


def _line(names: Sequence[str], measure: dict[str, Any], state: str) -> dict[str, Any]:
    mean, paper = measure["mean"], measure["paper"]
    return {
        "names": " · ".join(names),
        "value": measure["name"].replace("_", " "),
        "ours": state if mean is None and state not in ("", "waiting") else number(mean),
        "empty": mean is None,
        "spread": _spread(measure) if mean is not None else "",
        "paper": number(paper),
        "difference": EMPTY if mean is None or paper is None else f"{mean - paper:+.2f}",
    }


def _spread(measure: dict[str, Any]) -> str:
    if measure["deviation"] is not None:
        return f"± {number(measure['deviation'])} over {measure['seeds']} seeds"
    return "[{:.1f}, {:.1f}]".format(*measure["interval"]) if measure["interval"] else ""
