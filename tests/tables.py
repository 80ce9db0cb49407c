"""The tables of benchmarks in the READMEs: `python -m tests.tables [DIRECTORY]`.

DIRECTORY: a run directory with reports of `maep bench`, `bench-evaluation` and `bench-loader` (all write into
`run.dir`); those that are there become the committed ones in `tests/reports` first. Tables are written as a test asks
for them, so after it only the sentences around a table are left to people.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "tests" / "reports"
PAGE = REPORTS / "README.md"


def bench_line(row: dict[str, Any]) -> str:
    """One row of the benchmark table."""
    return f"| {row['name']} | {row['rate']:.1f} {row['unit']} | {row['limit']} | {row['ratio']:.2f} |"


def figure_line(row: dict[str, Any]) -> str:
    """One row of a table whose rates are of all sizes: three digits of each."""
    rate = f"{row['rate']:.3g}" if row["rate"] < 1000 else f"{row['rate']:,.0f}"
    return f"| {row['name']} | {rate} {row['unit']} | {row['limit']} | {row['ratio']:.3g} |"


def evaluation_bench_line(row: dict[str, Any]) -> str:
    """One row of the evaluation's benchmark table."""
    return f"| {row['name']} | {row['what']} | {row['ratio']:.3g} | {row['wanted']} |"


LINES: dict[str, Callable[[dict[str, Any]], str]] = {  # by name of the report and of its table
    "bench": bench_line,
    "bench_h200": bench_line,
    "bench_loader": figure_line,
    "evaluation_bench": evaluation_bench_line,
    "exact_gradient": evaluation_bench_line,
    "many_workers": figure_line,
}
HEADS = {line: f"| {head} |\n|{'---|' * (head.count('|') + 1)}\n" for line, head in (
    (bench_line, "what | rate | the machine's limit in the same run | share of it"),
    (figure_line, "what | figure | beside | ratio"),
    (evaluation_bench_line, "what | figures | ratio | wanted"),
)}  # fmt: skip
NONE = "Not recorded yet.\n"


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a committed report; [] where there is none."""
    path = REPORTS / f"{name}.json"
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def lines_of(name: str) -> list[str]:
    """The rows of its table."""
    return [LINES[name](row) for row in rows_of(name)]


def table_of(name: str) -> str:
    """What stands between the markers of a table."""
    lines = lines_of(name)
    return HEADS[LINES[name]] + "".join(f"{line}\n" for line in lines) if lines else NONE


def main(directory: Path | None) -> None:
    """Take the reports of a run over, if one is given, and write all tables."""
    text = PAGE.read_text()
    for name in LINES:
        if directory is not None and (directory / f"{name}.json").is_file():
            shutil.copyfile(directory / f"{name}.json", REPORTS / f"{name}.json")
        between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        text = between.sub(lambda _, name=name: table_of(name), text)  # type: ignore[misc]
    PAGE.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
