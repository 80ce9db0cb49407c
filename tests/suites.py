"""What each folder of tests takes: `python -m pytest -n 2 --slow --junitxml=FILE`, then `python -m tests.suites FILE`.

Sums the seconds of FILE by folder, writes `tests/reports/suites.json`, and puts the same rows into `tests/README.md`.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from maep.evaluation.reporting.provenance import environment
from maep.storage.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "tests" / "reports" / "suites.json"
PAGE = ROOT / "tests" / "README.md"
ROWS = re.compile(r"(?<=<!-- suites -->\n).*?(?=<!-- /suites -->)", re.DOTALL)
HEAD = "| folder | tests | skipped | seconds |\n|---|---|---|---|\n"


def folder_of(classname: str) -> str:
    """`tests.training.distributed.test_world` → `tests/training`, `tests.test_readme` → `tests`."""
    parts = classname.split(".")
    return "/".join(parts[:2] if len(parts) > 2 else parts[:1])


def suite_rows(junit: Path) -> list[dict[str, Any]]:
    """`{folder, tests, skipped, seconds}` of each folder, by name. seconds: added up over tests, not elapsed."""
    cases = defaultdict(list)
    for case in ElementTree.parse(junit).iter("testcase"):
        cases[folder_of(case.get("classname", ""))].append(case)
    return [
        {
            "folder": folder,
            "tests": len(members),
            "skipped": sum(case.find("skipped") is not None for case in members),
            "seconds": sum(float(case.get("time", 0)) for case in members),
        }
        for folder, members in sorted(cases.items())
    ]


def suite_line(row: dict[str, Any]) -> str:
    """One row of the table in tests/README.md."""
    return f"| `{row['folder']}` | {row['tests']} | {row['skipped']} | {row['seconds']:.0f} |"


def main(junit: Path) -> None:
    """Write the report and the table."""
    rows = suite_rows(junit)
    write_json(REPORT, {"schema": 1, "environment": environment(sys.argv), "rows": rows})
    table = HEAD + "".join(f"{suite_line(row)}\n" for row in rows)
    PAGE.write_text(ROWS.sub(table, PAGE.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
