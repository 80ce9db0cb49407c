"""The tables of the results page: `python -m tests.tables [DIRECTORY …] [NAME=DIRECTORY …]`.

DIRECTORY: a run directory with reports of `maep bench`, `bench-evaluation` and `bench-loader` (all write into
`run.dir`), or that of a sweep; with NAME, that of a run, whose report becomes `tests/reports/NAME/report.json`, or of a
sweep whose result is not to take the place of another scale's. What is there becomes the committed one in
`tests/reports` first. Tables are written as a test asks for them, so after it only
the sentences around a table are left to people.
"""

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from maep.evaluation.scoring.tasks import eps_text

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "tests" / "reports"
PAGE = REPORTS / "README.md"
SWEEPS = REPORTS / "ablation"
SAME_BUDGET = ("same_budget", "same_budget_seed1", "same_budget_seed2")  # a seed each
SHOWN = ("04", "05", "07", "08", "11", "12", "15")  # tables of the paper whose points are their own


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


def result_line(result: dict[str, Any]) -> str:
    """One row of the results table."""
    clean, robust = result["clean_accuracy"], result["robust_accuracy"]
    return (
        f"| {result['dataset']} | {result['classifier']} | {result['purifier']} | {result['threat_model']} "
        f"| {result['attack']} | {eps_text(result['eps'])} | {result['n']} "
        f"| {result['undefended_clean_accuracy']:.1f} / {result['undefended_robust_accuracy']:.1f} "
        f"| {clean:.1f} [{result['clean_ci95'][0]:.1f}, {result['clean_ci95'][1]:.1f}] "
        f"| {robust:.1f} [{result['robust_ci95'][0]:.1f}, {result['robust_ci95'][1]:.1f}] |"
    )


def draws_line(row: dict[str, Any]) -> str:
    """A row of the table of random defenses: one draw, mean, majority and worst, of clean and of attacked images."""
    names = ("accuracy", "average", "majority", "worst")
    clean, robust = (" / ".join(f"{row[f'{what}_{name}']:.1f}" for name in names) for what in ("clean", "robust"))
    head = " | ".join(str(row[name]) for name in ("dataset", "purifier", "threat_model", "attack", "n", "draws"))
    return f"| {head} | {clean} | {robust} |"


def entries(name: str) -> list[dict[str, Any]]:
    """All entries of a list in the committed reports of runs, in the order of their folders."""
    paths = sorted(REPORTS.glob("*/report.json"))
    return [entry for path in paths for entry in json.loads(path.read_text()).get(name, [])]


def result_lines() -> list[str]:
    """The rows of AutoAttack, PGD and Square; those of FGSM are in the reports alone."""
    return [result_line(row) for row in entries("results") if row["attack"] != "fgsm"]


def rows_with_draws() -> list[dict[str, Any]]:
    """Those that say what several draws of clean images gave."""
    return [row for row in entries("results") if "clean_average" in row]


def certified_line(row: dict[str, Any]) -> str:
    """One row of the certificates' table."""
    points = zip(row["certified"], row["certified_ci95"], strict=True)
    held = {radius: (value, *interval) for (radius, value), interval in points}
    cells = " | ".join("{:.1f} [{:.1f}, {:.1f}]".format(*held[radius]) for radius in (0, 0.25, 0.5, 0.75, 1))
    name = "no purifier" if row["purifier"] == "none" else row["purifier"]
    return (
        f"| {row['dataset']} | {row['classifier']} | {name} | {row['sigma']:g} | {row['samples']} | {row['n']} "
        f"| {cells} | {row['abstained']:.1f} |"
    )


def attacked_lines(row: dict[str, Any]) -> list[str]:
    """The rows of the table of certificates with attacks on the same images beside them."""
    name = "no purifier" if row["purifier"] == "none" else row["purifier"]
    return [
        f"| {row['dataset']} | {name} | {row['sigma']:g} | {each['radius']:g} | {each['n']} | "
        + " | ".join(
            "{:.1f} [{:.1f}, {:.1f}]".format(each[kind], *each[f"{kind}_ci95"])
            for kind in ("certified", "smoothed", "without_noise")
        )
        + f" | {each['smoothed_attack']}; {each['without_noise_attack']} |"
        for each in row.get("attacked", ())
    ]


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
KNOWING_MORE = ("oblivious", "bpda", "adaptive", "adaptive-eot")  # attackers, from one to the next
SWEEP_HEAD = "| table | point | what | ours | paper |\n|---|---|---|---|---|\n"


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


def sweep_lines(path: Path) -> list[str]:
    """The rows of one table of the paper: a line a cell, accuracies with their intervals."""
    report, lines = json.loads(path.read_text()), []
    for cell in report["cells"]:
        names = " · ".join([*cell["names"], *([cell["reading"]] if cell["reading"] else [])])
        ours, papers = [], []
        for measure in cell["measures"]:
            mean, interval = measure["mean"], measure["interval"]
            ours.append(f"{mean:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else f"{mean:.3g}")
            papers.append("–" if measure["paper"] is None else f"{measure['paper']:.4g}")
        columns = " | ".join(" / ".join(words) for words in (report["values"], ours, papers))
        lines.append(f"| {report['table'].removeprefix('Table ')} | {names} | {columns.replace('_', ' ')} |")
    return lines


def sweep_table() -> str:
    """What stands between the markers of the paper's tables."""
    paths = [SWEEPS / f"table{number}.json" for number in SHOWN]
    return SWEEP_HEAD + "".join(f"{line}\n" for path in paths for line in sweep_lines(path))


def readings_of(table: str) -> dict[str, dict[str, Any]]:
    """`{row: {reading: {measure: …}}}` of a sweep whose points differ along one axis, such as a table of defenses."""
    rows: dict[str, dict[str, Any]] = {}
    for cell in json.loads((SWEEPS / f"{table}.json").read_text())["cells"]:
        rows.setdefault(cell["names"][0], {})[cell["reading"]] = {each["name"]: each for each in cell["measures"]}
    return rows


def accuracies(readings: dict[str, Any], attackers: Sequence[str]) -> list[str]:
    """Clean accuracy as the oblivious attacker's row has it, then what each attacker leaves, with their intervals."""
    measures = [readings["oblivious"]["clean_accuracy"]] + [readings[name]["robust_accuracy"] for name in attackers]
    return [f"{each['mean']:.1f} [{each['interval'][0]:.1f}, {each['interval'][1]:.1f}]" for each in measures]


def published(reading: dict[str, Any]) -> str:
    """The pair of clean and attacked that was published, or a dash."""
    pair = [each["paper"] for each in reading.values()]
    return "–" if None in pair else " / ".join(f"{number:.4g}" for number in pair)


def table_lines(table: str, attackers: Sequence[str], papers: Sequence[str]) -> list[str]:
    """A row for each point: clean, what the attackers leave, and of which readings the published pair is shown."""
    return [
        f"| {name} | {' | '.join([*accuracies(row, attackers), *(published(row[each]) for each in papers)])} |"
        for name, row in readings_of(table).items()
    ]


def over_seeds(tables: Sequence[str], reading: str, measure: str) -> dict[str, list[float]]:
    """`{row: what each seed gave}` of one sweep, run with a seed a report."""
    rows = [readings_of(table) for table in tables]
    return {name: [row[name][reading][measure]["mean"] for row in rows] for name in rows[0]}


def lines_over_seeds(tables: Sequence[str], attackers: Sequence[str]) -> list[str]:
    """A row for each point: means over the seeds of clean and of what attackers leave, and each seed's of the last."""
    columns = [over_seeds(tables, attackers[-1], "clean_accuracy")]
    columns += [over_seeds(tables, attacker, "robust_accuracy") for attacker in attackers]
    return [
        f"| {name} | {' | '.join(f'{fmean(column[name]):.1f}' for column in columns)} "
        f"| {', '.join(f'{value:.1f}' for value in columns[-1][name])} |"
        for name in columns[0]
    ]


def same_budget_lines() -> list[str]:
    """A row for each system at its training's cost: means over the seeds, and what each kept."""
    return [line.replace(", ", " | ", 1) for line in lines_over_seeds(SAME_BUDGET, ("",))]


def zoo_lines(table: str = "zoo") -> list[str]:
    """A row for each defense, under one attacker after another."""
    return table_lines(table, KNOWING_MORE, ("oblivious",))


def detail_lines(table: str) -> list[str]:
    """A row for each defense: parameters, seconds an image, what was claimed and found, and our lowest."""
    lines = []
    for detail in json.loads((SWEEPS / f"{table}.json").read_text())["details"]:
        costs = {each["name"]: each["mean"] for each in detail["costs"]}
        claim = detail["claim"] or {"claimed": None, "found": None, "by": "–"}
        accuracies = (claim["claimed"], claim["found"], detail["lowest"])
        columns = [f"{costs['parameters']:,.0f}", f"{costs['seconds_per_image']:.2g}"]
        columns += ["–" if number is None else f"{number:.4g}" for number in accuracies]
        if "lowest_images" in detail:  # summaries of before do not say
            columns[-1] += f" ({detail['lowest_images']} images)"
        lines.append(f"| {detail['names'][0]} | {' | '.join([*columns, claim['by']])} |")
    return lines


ATTACKERS = "defense | clean | oblivious | BPDA | adaptive | adaptive, EOT | published, clean / oblivious"
DETAILS = "defense | parameters | seconds an image | claimed | found by others | ours, lowest | who found it, and how"
# Tables of defenses, and of what helps one, by name: what stands above them, and their rows.
DEFENSES: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "zoo": (ATTACKERS, zoo_lines),
    "zoo_cifar10": (ATTACKERS, lambda: zoo_lines("zoo_cifar10")),
    "zoo_cifar10_filters": (ATTACKERS, lambda: zoo_lines("zoo_cifar10_filters")),
    "zoo_cifar10_trained": (ATTACKERS, lambda: zoo_lines("zoo_cifar10_trained")),
    "zoo_cifar10_reconstruction": (ATTACKERS, lambda: zoo_lines("zoo_cifar10_reconstruction")),
    "zoo_cifar10_iterative": (
        ATTACKERS.replace("adaptive | adaptive, EOT", "adaptive"),
        lambda: table_lines("zoo_cifar10_iterative", KNOWING_MORE[:3], ("oblivious",)),
    ),
    "zoo_details": (DETAILS, lambda: detail_lines("zoo")),
    "generative": (
        f"{ATTACKERS} | published, clean / exact",
        lambda: table_lines("zoo_generative", KNOWING_MORE, ("oblivious", "adaptive")),
    ),
    "generative_cifar10": (
        f"{ATTACKERS.replace('adaptive', 'surrogate | adaptive', 1)} | published, clean / exact",
        lambda: table_lines(
            "zoo_generative_cifar10", ("oblivious", "bpda", "surrogate", *KNOWING_MORE[2:]), ("oblivious", "adaptive")
        ),
    ),
    "robust_ablation": (
        "changed | clean | oblivious | adaptive | adaptive, seeds 0, 1, 2",
        lambda: lines_over_seeds(("robust", "robust_seed1", "robust_seed2"), ("oblivious", "adaptive")),
    ),
    "same_budget": ("system | training | clean | attacked | attacked, seeds 0, 1, 2", same_budget_lines),
    "generative_details": (DETAILS, lambda: detail_lines("zoo_generative")),
}


def beside_their_like(lines: Sequence[str], before: Sequence[str]) -> list[str]:
    """The rows in the order in which they stood, and each new one after the last of its data and classifier; one that
    two reports have, twice.
    """
    new = Counter(lines)
    ordered = []
    for line in before:
        if new[line]:
            ordered.append(line)
            new[line] -= 1
    for line in lines:
        if new[line]:
            new[line] -= 1
            head = line.split(" | ")[:2]
            alike = [index for index, other in enumerate(ordered) if other.split(" | ")[:2] == head]
            ordered.insert(alike[-1] + 1 if alike else len(ordered), line)
    return ordered


# Tables of runs by name: their rows. What stands above them is on the page.
OF_RUNS: dict[str, Callable[[], list[str]]] = {
    "results": result_lines,
    "draws": lambda: [draws_line(row) for row in rows_with_draws()],
    "certified": lambda: [certified_line(row) for row in entries("certificates")],
    "attacked": lambda: [line for row in entries("certificates") for line in attacked_lines(row)],
}


def with_rows(text: str, name: str) -> str:
    """The page with the rows of a table of runs in place of those that are there."""
    between = re.search(rf"(?<=<!-- {name} -->\n)(\|.*\n\|.*\n)((?:\|.*\n)*)(?=<!-- /{name} -->)", text)
    if not between:
        raise SystemExit(f"{PAGE}: no table between the markers of {name}")
    rows = beside_their_like(OF_RUNS[name](), between[2].splitlines()) if name == "results" else OF_RUNS[name]()
    return text[: between.start(2)] + "".join(f"{row}\n" for row in rows) + text[between.end(2) :]


def defense_table(name: str) -> str:
    """What stands between the markers of a table of defenses."""
    head, lines = DEFENSES[name]
    return f"| {head} |\n|{'---|' * (head.count('|') + 1)}\n" + "".join(f"{line}\n" for line in lines())


def take_over(directory: Path, name: str = "") -> None:
    """Make what a run left the committed report: benchmarks, or a sweep's result under the sweep's name or `name`."""
    for bench in LINES:
        if (directory / f"{bench}.json").is_file():
            shutil.copyfile(directory / f"{bench}.json", REPORTS / f"{bench}.json")
    sweep = directory / "ablation.json"
    if sweep.is_file():
        result = json.loads(sweep.read_text())
        waiting = [point["names"] for point in result["points"] if point["state"] != "finished"]
        if waiting:
            raise SystemExit(f"{sweep}: not finished: {waiting}; a committed table has all of its points")
        shutil.copyfile(sweep, SWEEPS / f"{name or result['name']}.json")


def main(words: Sequence[str]) -> None:
    """Take the reports of runs over, if some are given, and write all tables."""
    for word in words:
        name, _, directory = word.rpartition("=")
        if name and not (Path(directory) / "ablation.json").is_file():
            (REPORTS / name).mkdir(exist_ok=True)
            shutil.copyfile(Path(directory) / "report.json", REPORTS / name / "report.json")
        else:
            take_over(Path(directory), name)
    text = PAGE.read_text()
    tables = {name: table_of(name) for name in LINES} | {name: defense_table(name) for name in DEFENSES}
    tables["ablation"] = sweep_table()
    for name, table in tables.items():
        between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        text = between.sub(lambda _, table=table: table, text)  # type: ignore[misc]
    for name in OF_RUNS:
        text = with_rows(text, name)
    PAGE.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
