"""The committed reports and the pages that quote them: what the tests of this folder read both by."""

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tests.tables import DEFENSES, LINES

ROOT = Path(__file__).resolve().parents[2]
REPORTS = sorted((ROOT / "tests" / "reports").glob("*/report.json"))
ABLATIONS = sorted((ROOT / "tests" / "reports" / "ablation").glob("*.json"))
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "tests" / "reports" / "README.md").read_text()
PAGES = {  # table: the page that holds it
    "summary": "README.md",
    "costs": "README.md",
    "front_generative": "README.md",
    "results": "tests/reports/README.md",
    "ablation": "tests/reports/README.md",
    "same_budget": "tests/reports/README.md",
    "draws": "tests/reports/README.md",
    "certified": "tests/reports/README.md",
    "attacked": "tests/reports/README.md",
    **dict.fromkeys([*LINES, *DEFENSES], "tests/reports/README.md"),
    "recovery": "launch/README.md",
    "scaling": "launch/README.md",
    "suites": "tests/README.md",
}


def flowing(text: str) -> str:
    """A text without its line breaks and indents."""
    return re.sub(r"\s+", " ", text)


def table(name: str) -> list[str]:
    """The rows between two markers of the page that holds a table, without head and rule."""
    page = (ROOT / PAGES[name]).read_text()
    text = re.search(f"<!-- {name} -->(.*?)<!-- /{name} -->", page, re.DOTALL)
    assert text, f"{PAGES[name]} lacks the markers of {name}"
    return [line for line in text[1].splitlines() if line.startswith("| ")][1:]


def committed(report: str, entry: str = "results") -> Any:
    """The rows of a committed report, or another of its entries."""
    return json.loads((ROOT / f"tests/reports/{report}/report.json").read_text())[entry]


def row_under(
    report: str,
    threat_model: str,
    attack: str = "autoattack-standard",
    eps: float = 8 / 255,
    purifier: str | None = None,
) -> dict[str, Any]:
    """The first row of a committed report under a threat model, attack and budget; of one purifier, if it is named."""
    key = (threat_model, attack, eps)
    rows = [row for row in committed(report) if purifier in (None, row["purifier"])]
    return next(row for row in rows if (row["threat_model"], row["attack"], row["eps"]) == key)


def robust(
    report: str,
    threat_model: str,
    attack: str = "autoattack-standard",
    eps: float = 8 / 255,
    purifier: str | None = None,
) -> float:
    """Its robust accuracy, percent."""
    accuracy: float = row_under(report, threat_model, attack, eps, purifier)["robust_accuracy"]
    return accuracy


def share(row: dict[str, Any]) -> str:
    """Robust accuracy of a row with its interval, as the pages write it."""
    low, high = row["robust_ci95"]
    return f"{row['robust_accuracy']:.1f} % [{low:.1f}, {high:.1f}]"


def rows_of(bench: str) -> dict[str, dict[str, Any]]:
    """`{name: row}` of a committed benchmark."""
    rows = json.loads((ROOT / "tests" / "reports" / f"{bench}.json").read_text())["rows"]
    return {row["name"]: row for row in rows}


def row_like(rows: dict[str, dict[str, Any]], start: str, end: str) -> dict[str, Any]:
    """The only row of a benchmark with such a name: what stands between, as a masking ratio, is the configuration's."""
    (row,) = (row for name, row in rows.items() if name.startswith(start) and name.endswith(end))
    return row


def cifar10_rows() -> list[dict[str, Any]]:
    """The rows of cfg=cifar10_cpu's report."""
    rows: list[dict[str, Any]] = committed("cifar10_cpu")
    return rows


def attacked_twice() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(oblivious, adaptive) rows of the same purifier, attack and budget, one report after the other."""
    pairs = []
    for path in REPORTS:
        results = json.loads(path.read_text())["results"]
        same = ("purifier", "attack", "eps")
        pairs += [
            (first, second)
            for first, second in product(results, results)
            if (first["threat_model"], second["threat_model"]) == ("oblivious", "adaptive")
            and all(first[key] == second[key] for key in same)
        ]
    return pairs


def minutes(run: str) -> str:
    """What all stages of a committed run took."""
    seconds = json.loads((ROOT / "tests" / "reports" / run / "seconds.json").read_text())
    return f"{seconds['total'] / 60:.0f} minutes"


def device(report: str) -> str:
    """What a committed report was made on."""
    name: str = json.loads((ROOT / "tests" / "reports" / f"{report}.json").read_text())["environment"]["device"]
    return name


def sweep_minutes(numbers: Sequence[str]) -> float:
    """Minutes that tables took, one after another, with as many workers as they had."""
    paths = (ROOT / "tests" / "reports" / "ablation" / f"table{number}.json" for number in numbers)
    times = [json.loads(path.read_text())["seconds"] for path in paths]
    return sum(seconds["sweep"] / seconds["workers"] for seconds in times) / 60


BY_TWO, WITH_CIFAR100 = ("04", "11", "12", "15"), ("02", "03", "05", "07", "13", "14")  # how they were run
