"""Every figure in a README's table is in a committed report, and every such report is in a README.

Which table stands where: `PAGES`. `test_links.py` checks what the READMEs link to and name, `test_front_page.py` the
examples of the front page.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from maep.ablation.grid.sweep import read_sweep
from maep.config.load import sweep_names
from maep.evaluation.scoring.tasks import eps_text
from tests.suites import suite_line
from tests.tables import DEFENSES, LINES, SHOWN, defense_table, readings_of, sweep_table, table_of, zoo_lines

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted((ROOT / "tests" / "reports").glob("*/report.json"))
ABLATIONS = sorted((ROOT / "tests" / "reports" / "ablation").glob("*.json"))
BY_TWO, WITH_CIFAR100 = ("04", "11", "12", "15"), ("02", "03", "05", "07", "13", "14")  # how they were run
SUITES = ROOT / "tests" / "reports" / "suites.json"
PAPERS = {name.removeprefix("ablation/") for name in sweep_names() if read_sweep(name, "cpu").table}
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "tests" / "reports" / "README.md").read_text()
DISCO_UNDEFENDED = 94.78  # clean accuracy of WRN-28-10 without a defense, in DISCO's own logs
PAGES = {  # table: the page that holds it
    "summary": "README.md",
    "costs": "README.md",
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


def recovery_line(row: dict[str, Any]) -> str:
    """One row of the recovery table."""
    return (
        f"| {row['after']} | {row['seconds']:.1f} s | {row['until_all_ended']:.1f} s | {row['slurm_seconds']:.1f} s "
        f"| {row['start_seconds']:.1f} s | {row['most_steps_repeated']} | {row['samples_lost']} / "
        f"{row['samples_repeated']} |"
    )


def scaling_line(row: dict[str, Any]) -> str:
    """One row of the scaling table."""
    share = 100 * row["communication_share"]
    return f"| {row['processes']} | {row['images_per_second']:.0f} | {share:.0f} % |"


def same_budget_lines() -> list[str]:
    """A row for each system at its training's cost, clean and attacked."""
    lines = []
    for cell in json.loads((ROOT / "tests/reports/ablation/same_budget.json").read_text())["cells"]:
        measures = {each["name"]: each for each in cell["measures"]}
        values = (measures[name] for name in ("clean_accuracy", "robust_accuracy"))
        columns = [f"{each['mean']:.1f} [{each['interval'][0]:.1f}, {each['interval'][1]:.1f}]" for each in values]
        lines.append(f"| {cell['names'][0].replace(', ', ' | ')} | {' | '.join(columns)} |")
    return lines


def draws_line(row: dict[str, Any]) -> str:
    """A row of the table of random defenses: one draw, mean, majority and worst, of clean and of attacked images."""
    names = ("accuracy", "average", "majority", "worst")
    clean, robust = (" / ".join(f"{row[f'{what}_{name}']:.1f}" for name in names) for what in ("clean", "robust"))
    head = f"| {row['purifier']} | {row['threat_model']} | {row['attack']} | {row['n']} | {row['draws']}"
    return f"{head} | {clean} | {robust} |"


def rows_with_draws() -> list[dict[str, Any]]:
    """Those of the committed reports that say what several draws of clean images gave."""
    rows = [row for path in REPORTS for row in json.loads(path.read_text())["results"]]
    return [row for row in rows if "clean_average" in row]


def flowing(text: str) -> str:
    """A text without its line breaks and indents."""
    return re.sub(r"\s+", " ", text)


def table(name: str) -> list[str]:
    """The rows between two markers of the page that holds a table, without head and rule."""
    page = (ROOT / PAGES[name]).read_text()
    text = re.search(f"<!-- {name} -->(.*?)<!-- /{name} -->", page, re.DOTALL)
    assert text, f"{PAGES[name]} lacks the markers of {name}"
    return [line for line in text[1].splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("path", [*REPORTS, *ABLATIONS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_reports_say_where_they_come_from(path: Path) -> None:
    """A committed report names command, commit and device, was made from a clean checkout, and has no local path."""
    environment = json.loads(path.read_text())["environment"]
    assert environment["command"]
    assert re.fullmatch("[0-9a-f]{40}", environment["commit"])
    assert environment["dirty"] is False
    assert environment["device"]
    assert not re.search(r"/(work|tmp|root|home)/", path.read_text())


def test_results_table_is_the_committed_reports() -> None:
    """The table and the reports hold the same AutoAttack and PGD rows, number by number."""
    expected = [
        result_line(result)
        for path in REPORTS
        for result in json.loads(path.read_text())["results"]
        if result["attack"] != "fgsm"
    ]
    assert sorted(table("results")) == sorted(expected)


def certified_rows() -> list[dict[str, Any]]:
    """What the committed reports certify."""
    return [row for path in REPORTS for row in json.loads(path.read_text()).get("certificates", [])]


def held_within(row: dict[str, Any], radius: float) -> tuple[float, float, float]:
    """Certified accuracy at a radius and its interval, percent."""
    index = [each for each, _ in row["certified"]].index(radius)
    low, high = row["certified_ci95"][index]
    return row["certified"][index][1], low, high


def test_certificates_are_the_committed_reports() -> None:
    """Table and verdict; and what it says: without a purifier next to none holds, beyond the intervals."""
    assert table("certified") == [certified_line(row) for row in certified_rows()]
    told = {("digits", 0.5): (1,), ("cifar10", 0.25): (0.25, 0.5), ("cifar10", 0.5): (0.75, 1)}
    rows = certified_rows()
    assert {(row["dataset"], row["sigma"]) for row in rows} == set(told)
    for (dataset, sigma), radii in told.items():
        purified, alone = (row for row in rows if (row["dataset"], row["sigma"]) == (dataset, sigma))
        for radius in radii:
            (held, low, high), (other, least, most) = held_within(purified, radius), held_within(alone, radius)
            assert low > most
            sentence = f"{held:.1f} % [{low:.1f}, {high:.1f}] of {purified['n']} images within an L2 radius of {radius}"
            assert f"{sentence}; without the purifier it is {other:.1f} % [{least:.1f}, {most:.1f}]" in flowing(RESULTS)


def test_attacks_beside_certificates_are_the_committed_reports() -> None:
    """And no attack on what is certified has left less than that."""
    rows = certified_rows()
    assert table("attacked") == [line for row in rows for line in attacked_lines(row)]
    beside = [each for row in rows for each in row.get("attacked", ())]
    assert all(each["certified"] <= each["smoothed"] and not each["broken"] for each in beside)


@pytest.mark.parametrize("name", LINES)
def test_benchmark_tables_are_the_committed_ones(name: str) -> None:
    """So are those of the benchmarks, as `python -m tests.tables` writes them, or nothing was recorded."""
    path = ROOT / "tests" / "reports" / f"{name}.json"
    if path.is_file():
        assert json.loads(path.read_text())["environment"]["dirty"] is False
    assert f"<!-- {name} -->\n{table_of(name)}<!-- /{name} -->\n" in RESULTS


@pytest.mark.parametrize(("name", "line"), [("recovery", recovery_line), ("scaling", scaling_line)])
def test_cluster_tables_are_the_committed_ones(name: str, line: Callable[[dict[str, Any]], str]) -> None:
    """So do what was measured on the Slurm of tests/cluster and its file, made from a clean checkout."""
    report = json.loads((ROOT / "tests" / "reports" / "cluster.json").read_text())
    assert report["environment"]["dirty"] is False
    assert table(name) == [line(row) for row in report[name]]


def test_ablation_tables_are_the_committed_ones() -> None:
    """So do the paper's tables at small scale; those of shared points, which were run too, are named."""
    shown = [path for path in ABLATIONS if path.stem.removeprefix("table") in SHOWN]
    assert f"<!-- ablation -->\n{sweep_table()}<!-- /ablation -->\n" in RESULTS
    tables = [path for path in ABLATIONS if path.stem.startswith("table")]
    others = [int(path.stem.removeprefix("table")) for path in tables if path not in shown]
    *first, last = map(str, others)
    assert f"Tables {', '.join(first)} and {last} were run too" in flowing(RESULTS)


@pytest.mark.parametrize("path", [path for path in ABLATIONS if path.stem in PAPERS], ids=lambda path: path.stem)
def test_a_table_is_the_one_that_was_run(path: Path) -> None:
    """A committed report of a table of the paper has the points that its file has today, and says the same of them."""
    report, sweep = json.loads(path.read_text()), read_sweep(f"ablation/{path.stem}", "cpu")
    assert report["note"] == sweep.note
    assert [axis["names"] for axis in report["axes"]] == [list(axis.names) for axis in sweep.axes]
    assert list(report["readings"]) == list(sweep.row_selectors)


def test_the_table_at_the_same_cost_is_the_committed_one() -> None:
    """Row by row; and the plain CNN is ahead of MAEP and of DISCO beyond the intervals, as the text says."""
    assert table("same_budget") == same_budget_lines()
    cells = json.loads((ROOT / "tests/reports/ablation/same_budget.json").read_text())["cells"]
    robust = {cell["names"][0].partition(",")[0]: cell["measures"][1] for cell in cells}
    others = (robust[name]["interval"][1] for name in ("MAEP", "DISCO"))
    assert robust["plain CNN"]["interval"][0] > max(others)


@pytest.mark.parametrize("name", DEFENSES)
def test_tables_of_defenses_are_the_committed_ones(name: str) -> None:
    """So do the tables of defenses and of what they cost, as `python -m tests.tables` writes them."""
    assert f"<!-- {name} -->\n{defense_table(name)}<!-- /{name} -->\n" in RESULTS


def test_what_is_said_of_the_defenses_is_so() -> None:
    """The text says how some were made cheaper, and orders those that it names."""
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in zoo_lines()}
    robust = {name: [float(cell.split()[0]) for cell in row[1:5]] for name, row in rows.items()}
    assert {name for name, row in robust.items() if row[0] > 10} == {
        "MAEP", "DISCO", "plain CNN", "NIM-MAE", "NRP", "ComDefend", "SOAP reconstruction",
    }  # fmt: skip
    assert {name for name, row in robust.items() if min(row)} == {"ComDefend", "SOAP reconstruction"}
    assert robust["ComDefend"][3] == 31.2
    assert robust["NRP"][0] == max(row[0] for row in robust.values()) == 97.2
    assert robust["NRP"][1:] == [93.8, 0, 0]
    assert robust["DISCO"][0] > robust["DISCO"][1] == 89.1 > robust["DISCO"][2] == 0
    assert robust["Anti-Adv"] == [0, 23.4, 23.4, 23.4]
    assert all(len(set(robust[name][1:])) == 1 for name in ("bit depth", "JPEG", "SOAP", "DRAM"))
    assert robust["plain CNN"] == [93.6, 82.8, 0, 0]
    assert robust["DISCO"][0] == 93.9
    fallen = ("SOAP", "SOAP trained so", "DRAM", "frequency prompts (reconstructed)")
    assert {max(robust[name]) for name in fallen} == {0}
    assert robust["SOAP reconstruction"] == [44.2, 43.8, 43.8, 43.8]
    command = json.loads((ROOT / "tests/reports/ablation/zoo.json").read_text())["command"]
    for word in ("soap/digits:evaluation.images=120", "soap/digits:soap.radii=4", "tvm/digits:tvm.iterations=25",
                 "nrp/digits:nrp.blocks=2", "nrp/digits:nrp.features=16", "nrp/digits:attack.steps=10",
                 "residual_cnn/digits:residual_cnn.scale=2", "dram/digits:dram.steps=8",
                 "dram/digits:evaluation.adaptive_images=32",
                 "soap/digits_reconstruction:evaluation.adaptive_images=32"):  # fmt: skip
        assert word in command
        assert word.partition(":")[2] in RESULTS


def test_what_is_said_of_the_transforms_on_cifar10_is_so() -> None:
    """Which keep what DISCO's log has, that none withstands who knows it, and what the untrained ones are ahead of."""
    rows, text = readings_of("zoo_cifar10"), flowing(RESULTS)
    kept = {name: row["oblivious"]["robust_accuracy"] for name, row in rows.items()}
    published = {name: each for name, each in kept.items() if each["paper"] is not None}
    assert {name for name, each in published.items() if abs(each["difference"]) <= 5} == {"bit depth", "resize-pad"}
    for name, each in published.items():
        assert f"{name} {each['mean']:.1f} ({each['paper']:.4g})" in text
    before = (robust(f"cifar10_{name}", "oblivious") for name in ("resnet20", "wrn28_1"))
    assert "keeps {:.1f} % before ResNet-20 and {:.1f} % before WRN-28-1".format(*before) in text
    (alone,) = {row["undefended_clean_accuracy"] for row in cifar10_rows() if row["n"] == 1000}
    for name, words in (("JPEG", "JPEG takes {:.1f} points"), ("median", "median {:.1f}")):
        clean = rows[name]["oblivious"]["clean_accuracy"]
        costs = (alone - clean["mean"], DISCO_UNDEFENDED - clean["paper"])
        assert f"{words} ({{:.1f}} there)".format(*costs) in text
    knowing = ("bpda", "adaptive", "adaptive-eot")
    ends = {name: [row[each]["robust_accuracy"]["mean"] for each in knowing] for name, row in rows.items()}
    assert {name for name, each in ends.items() if any(each)} == {"Gaussian noise", "resize-pad"}
    assert f"and MAEP**, whose {kept['MAEP, finetuned']['mean']:.1f} % become 0.0" in text
    assert "EOT leaves {:.1f} % to resize-pad and {:.1f} % to Gaussian noise".format(
        *(ends[name][2] for name in ("resize-pad", "Gaussian noise"))
    ) in text  # fmt: skip
    trained = json.loads((ROOT / "tests/reports/ablation/same_budget.json").read_text())["cells"]
    small = max(cell["measures"][1]["interval"][1] for cell in trained)
    assert kept["JPEG"]["interval"][0] > kept["median"]["interval"][0] > small
    pretrained = next(r for r in cifar10_rows() if (r["purifier"], r["attack"]) == ("maep", "autoattack-standard"))
    assert kept["JPEG"]["interval"][0] < pretrained["robust_accuracy"] < kept["JPEG"]["interval"][1]
    assert f"JPEG alone keeps {kept['JPEG']['mean']:.1f} % before ResNet-20" in flowing(README)


def test_the_anti_adversary_layer_is_worth_its_classifier_to_who_ignores_it() -> None:
    """It ends within a point of the classifier alone; moved in pixels, farther than by its authors, it does not."""
    normalized, pixels = (
        json.loads((ROOT / f"tests/reports/anti_adversary_cifar10{name}/report.json").read_text())
        for name in ("", "_pixels")
    )
    assert "anti_adversary.scale=normalized" in normalized["environment"]["command"]
    (row,), (far,) = normalized["results"], pixels["results"]
    assert row["undefended_robust_accuracy"] <= row["robust_accuracy"] < row["undefended_robust_accuracy"] + 1
    assert (row["threat_model"], row["attack"], row["n"]) == ("oblivious", "autoattack-standard", 1000)
    text = flowing(RESULTS)
    assert f"keeps {row['clean_accuracy']:.1f} % of clean images and {row['robust_accuracy']:.1f} % of attacked" in text
    assert f"keep {far['clean_accuracy']:.1f} % and {far['robust_accuracy']:.1f} %" in text


def cifar10_rows() -> list[dict[str, Any]]:
    """The rows of cfg=cifar10_cpu's report."""
    return list(json.loads((ROOT / "tests/reports/cifar10_cpu/report.json").read_text())["results"])


def test_generative_defenses_are_in_the_known_order() -> None:
    """The one that re-evaluations found: exact below BPDA, BPDA below oblivious; the page names the equal ones."""
    rows = {
        name: [readings[each]["robust_accuracy"]["mean"] for each in ("adaptive", "bpda", "oblivious")]
        for name, readings in readings_of("zoo_generative").items()
    }
    assert all(row == sorted(row) for row in rows.values())
    exact = {name for name, (adaptive, bpda, _) in rows.items() if adaptive == bpda}
    blind = {name for name, (_, bpda, oblivious) in rows.items() if bpda == oblivious}
    assert (exact, blind) == ({"Hill"}, {"ScoreOpt-O"})
    assert f"{rows['ScoreOpt-O'][2]:.1f} % under both, and {rows['ScoreOpt-O'][0]:.1f} % under" in flowing(RESULTS)
    for name in ("DiffPure", "GDMP", "FreqPure", "Hill", "FlowPure", "ADBM"):
        assert f"{name.replace('Hill', 'Hill et al.')} ({rows[name][2]:.1f})" in flowing(RESULTS)
    (equal,) = {row[2] for name, row in rows.items() if name.startswith("MAEP")}
    assert f"of the cheapest it keeps {equal:.1f} %" in flowing(RESULTS)
    assert f"ScoreOpt ({rows['ScoreOpt-O'][2]:.1f} and {rows['ScoreOpt-N'][2]:.1f})" in flowing(RESULTS)
    assert {name for name, row in rows.items() if row[2] > equal} >= {"FlowPure", "ScoreOpt-O", "ScoreOpt-N"}
    assert {name.partition(",")[0] for name, row in rows.items() if not row[0]} == {"MAEP", "FlowPure"}
    told = f"ScoreOpt-N's {rows['ScoreOpt-N'][0]:.1f} % (with EOT {{:.1f}}) are not to be believed"
    lowest = readings_of("zoo_generative")["ScoreOpt-N"]["adaptive-eot"]["robust_accuracy"]["mean"]
    assert told.format(lowest) in flowing(RESULTS)


def test_the_table_of_draws_is_the_committed_one() -> None:
    """So does that of random defenses; the worst of several draws is below their mean, of clean images too."""
    rows = rows_with_draws()
    assert table("draws") == [draws_line(row) for row in rows]
    for row in rows:
        for what in ("clean", "robust"):
            assert row[f"{what}_worst"] <= min(row[f"{what}_average"], row[f"{what}_majority"])


@pytest.mark.parametrize("name", ["cifar10_cpu", "cifar10_cpu_paper", "digits"])
def test_durations_are_the_recorded_ones(name: str) -> None:
    """The minutes that the READMEs give are the sum of the run's stages."""
    seconds = json.loads((ROOT / "tests" / "reports" / name / "seconds.json").read_text())
    assert seconds["total"] == pytest.approx(sum(seconds["stages"].values()), abs=0.1)
    assert f"`cfg={name}` took {seconds['total'] / 60:.0f} minutes" in flowing(RESULTS)


@pytest.mark.parametrize(("name", "alarms"), [("alone", set()), ("rounding", {"gradients", "square"}),
                                              ("jpeg", {"gradients", "square"})])  # fmt: skip
def test_masked_gradients_were_caught(name: str, alarms: set[str]) -> None:
    """The committed reports say which is which: a classifier alone, and behind defenses that mask gradients."""
    report = json.loads((ROOT / "tests" / "reports" / f"masking_{name}" / "report.json").read_text())
    raised = {finding["check"] for finding in report["honesty"]["none"]["findings"] if finding["level"] == "alarm"}
    assert alarms <= raised
    assert bool(alarms) == bool(raised)


def measured(table: str, measure: str = "robust_accuracy") -> dict[str, float]:
    """A measure of a committed table's cells, by their names."""
    cells = json.loads((ROOT / "tests" / "reports" / "ablation" / f"{table}.json").read_text())["cells"]
    by_name = {" · ".join([*cell["names"], cell["reading"]]).removesuffix(" · "): cell["measures"] for cell in cells}
    return {name: next(m["mean"] for m in measures if m["name"] == measure) for name, measures in by_name.items()}


def test_orderings_are_those_of_the_reports() -> None:
    """What the results page says of the paper's orderings is what the committed tables show."""
    grid = measured("table15")
    best = {p: max(("0", "0.25", "0.5", "0.75"), key=lambda r, p=p: grid[f"{p} · {r}"]) for p in "248"}
    assert best["2"] == "0.5"
    assert best["4"] != "0.25"  # the paper's
    assert best["8"] != "0.75"
    assert grid["2 · 0"] > grid["4 · 0"] > grid["8 · 0"]
    clean = measured("table15", "clean_accuracy")
    assert all(clean[f"{p} · 0"] > clean[f"{p} · 0.75"] + 15 for p in "248")
    assert f"where these reach {max(grid.values()):.0f} at most" in flowing(RESULTS)
    objectives = measured("table12")
    assert sorted(objectives, key=objectives.__getitem__)[-2:] == ["MAEP", "TRADES (pixel, Eq. 15)"]
    distances, cleans = measured("table11"), measured("table11", "clean_accuracy")
    assert distances["MSE"] > distances["L1"]
    assert cleans["MSE"] < cleans["L1"]
    tiles = measured("table08")
    for eps in ("4/255", "8/255"):
        assert tiles[f"trained on ImageNet · MAEP at {eps}"] > tiles[f"trained on CIFAR-10 · MAEP at {eps}"]
        assert {tiles[f"trained on {data} · MAEP with LoRA at {eps}"] for data in ("CIFAR-10", "ImageNet")} == {0}


def test_transfers_are_those_of_the_reports() -> None:
    """So are its sentences on CIFAR-100, and on the point that two machines have trained."""
    robust, clean, text = measured("table05"), measured("table05", "clean_accuracy"), flowing(RESULTS)
    assert clean["CIFAR-100 from CIFAR-10 · MAEP"] > clean["CIFAR-100 from CIFAR-100 · MAEP"]
    assert robust["CIFAR-100 from CIFAR-10 · MAEP"] < robust["CIFAR-100 from CIFAR-100 · MAEP"]
    assert robust["CIFAR-10 from CIFAR-100 · MAEP"] > robust["CIFAR-10 from CIFAR-10 · MAEP"]
    for data, other in product(("CIFAR-10", "CIFAR-100"), repeat=2):
        before, after = (f"{data} from {other} · MAEP{end}" for end in ("", " with LoRA"))
        assert clean[after] > clean[before] + 10
        assert robust[after] < robust[before] / 2
    for table, names in (("table02", "CIFAR-10"), ("table03", "CIFAR-100")):
        other = measured(table)
        assert {
            robust[f"{names} from {source} · MAEP"] == other[f"trained on {source}"]
            for source in ("CIFAR-10", "CIFAR-100")
        } == {True}
    for measure in ("clean_accuracy", "robust_accuracy"):
        both = measured("table14", measure)
        for name in (f"{data} from {other}" for data, other in product(("CIFAR-10", "CIFAR-100"), repeat=2)):
            assert abs(both[f"lora · {name}"] - both[f"full · {name}"]) < 1
    attacks, kept = measured("table07"), measured("table07", "clean_accuracy")
    assert attacks["AutoAttack, MAEP"] == robust["CIFAR-100 from CIFAR-100 · MAEP"]
    assert all(attacks[f"PGD, {name}"] < attacks[f"AutoAttack, {name}"] for name in ("MAEP", "MAEP with LoRA"))
    maep, lora = "AutoAttack, MAEP", "AutoAttack, MAEP with LoRA"
    sentence = f"MAEP keeps {kept[maep]:.1f} % of clean images, LoRA {kept[lora]:.1f} % with {attacks[lora]:.1f} %"
    assert f"{sentence} of the attacked" in text
    here = f"{clean['CIFAR-10 from CIFAR-10 · MAEP']:.1f} / {robust['CIFAR-10 from CIFAR-10 · MAEP']:.1f}"
    (there,) = {
        f"{measured(table, 'clean_accuracy')[name]:.1f} / {measured(table)[name]:.1f}"
        for table, name in (("table04", "MAEP"), ("table11", "L1"), ("table12", "MAEP"), ("table15", "4 · 0.5"))
    }
    assert f"MAEP with p = 4 and r = 0.5 has {here} in Table 5, and {there} in Tables 4, 11, 12 and 15" in text


def test_sweep_figures_are_those_of_the_reports() -> None:
    """Minutes, overhead and shared attacks that the results page gives."""
    text = flowing(RESULTS)
    reports = {path.stem: json.loads(path.read_text()) for path in ABLATIONS}
    for numbers, workers in ((BY_TWO, 2), (WITH_CIFAR100, 1)):
        assert {reports[f"table{number}"]["seconds"]["workers"] for number in numbers} == {workers}
    assert f"Tables 4, 11, 12 and 15 took {sweep_minutes(BY_TWO):.0f} minutes of two workers" in text
    cifar100 = f"Tables 2, 3, 5, 7, 13 and 14, with CIFAR-100, took {sweep_minutes(WITH_CIFAR100):.0f} minutes of one"
    assert cifar100 in text
    grid, single = reports["table15"], reports["table11"]
    assert f"is {grid['seconds']['overhead_percent']:.1f} % of its trainings" in text
    assert f"it is {single['seconds']['overhead_percent']:.0f} %" in text
    assert grid["attacked"]["training"]["sets"] == 1
    assert all(images["attacks"] == images["pieces"] for images in grid["attacked"].values())
    purification, maep = ("purification loss (Eq. 2)", "MAEP")
    for measure in ("distance_clean", "distance_adversarial"):
        values = measured("table04", measure)
        assert f"{values[purification]:.3f}" in RESULTS
        assert f"{values[maep]:.3f}" in RESULTS


def test_cross_check_is_as_told() -> None:
    """On two nets and under two seeds each, every image is pyautoattack's, and no attack had nothing to do."""
    reports = [json.loads(path.read_text()) for path in sorted((ROOT / "tests/reports/cross_check").glob("*.json"))]
    assert [report["classifier"] for report in reports] == ["cifar_resnet20", "wrn28_1"]
    rows = [row for report in reports for row in report["rows"]]
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    assert all(report["environment"]["dirty"] is False for report in reports)
    assert all(row["standing"]["fab-t"] > 0 for row in rows), "Square had nothing to do"
    count = sum(row["n"] for row in rows)
    for what in ("equal_images", "equal_answers"):
        assert f"{sum(row[what] for row in rows)} of {count} images" in flowing(RESULTS)


def test_imagenet_sentence_is_the_report() -> None:
    """What the text says of ImageNet transfer is what the report has."""
    results = json.loads((ROOT / "tests/reports/imagenet_transfer/report.json").read_text())["results"]
    small, large = (result for result in results if result["threat_model"] == "oblivious")
    text = flowing(RESULTS)
    assert f"On ImageNet ({small['n']:,} images, by tiles)" in text
    saved = f"{small['robust_accuracy']:.1f} % of the attacked images at 4/255 and {large['robust_accuracy']:.1f} %"
    assert f"{saved} at 8/255" in text


def row_under(
    report: str, threat_model: str, attack: str = "autoattack-standard", eps: float = 8 / 255
) -> dict[str, Any]:
    """The first row of a committed report under a threat model, attack and budget."""
    rows: list[dict[str, Any]] = json.loads((ROOT / f"tests/reports/{report}/report.json").read_text())["results"]
    key = (threat_model, attack, eps)
    return next(row for row in rows if (row["threat_model"], row["attack"], row["eps"]) == key)


def robust(report: str, threat_model: str, attack: str = "autoattack-standard", eps: float = 8 / 255) -> float:
    """Its robust accuracy, percent."""
    accuracy: float = row_under(report, threat_model, attack, eps)["robust_accuracy"]
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


def test_figures_in_the_text_are_those_of_the_reports() -> None:
    """What the results page says in words of masked gradients, transfer, speed and the tables."""
    text = flowing(RESULTS)
    by_pgd, by_square = (
        [robust(f"masking_{name}", threat_model, attack) for name in ("rounding", "jpeg")]
        for threat_model, attack in (("adaptive", "pgd-20"), ("blackbox", "square-1000"))
    )
    assert (
        f"PGD leaves {by_pgd[0]:.1f} and {by_pgd[1]:.1f} % of the images of the two defenses standing, "
        f"Square {by_square[0]:.1f} and {by_square[1]:.1f} %" in text
    )
    unseen, seen = robust("cifar10_wrn28_1", "oblivious"), robust("cifar10_resnet20", "oblivious")
    assert f"{unseen:.1f} against {seen:.1f} for the oblivious attacker" in text
    assert robust("cifar10_wrn28_1", "blackbox", "square") == 100 / 64
    assert "one of 64 images survives them" in text
    assert f"reaches {robust('cifar10_cpu_paper', 'oblivious'):.1f} where these reach" in text
    cells = json.loads((ROOT / "tests/reports/ablation/table08.json").read_text())["cells"]
    papers = [measure["paper"] for cell in cells[:3:2] for measure in cell["measures"] if "robust" in measure["name"]]
    assert f"The paper's Table 8 has {papers[0]:.1f} and {papers[1]:.1f}" in text
    counts = [adaptive["n"] for _, adaptive in attacked_twice() if adaptive["purifier"] != "robust"]
    assert f"{min(counts)} to {max(counts)} images" in text


def test_the_run_on_a_gpu_is_as_told() -> None:
    """The paper's model for an eighth of its epochs, and what the accelerator's benchmark shows."""
    text, text_of_front = flowing(RESULTS), flowing(README)
    report = json.loads((ROOT / "tests/reports/cifar10_short/report.json").read_text())
    assert "pretrain.epochs=50" in report["environment"]["command"]
    assert "H200" in report["environment"]["device"]
    first, tuned = (
        next(r for r in report["results"] if (r["purifier"], r["threat_model"], r["attack"]) == key)
        for key in (("maep", "oblivious", "autoattack-standard"), ("maep+lora", "oblivious", "autoattack-standard"))
    )
    figures = f"{first['clean_accuracy']:.1f} clean and {first['robust_accuracy']:.1f} attacked"
    assert f"reaches {figures} here" in text
    assert f"keeps {first['clean_accuracy']:.1f} % of the clean images and {first['robust_accuracy']:.1f} %" in text
    assert f"keeps {tuned['clean_accuracy']:.1f} and {tuned['robust_accuracy']:.1f} %" in text
    assert robust("cifar10_cpu_paper", "oblivious") > first["robust_accuracy"]
    assert f"{minutes('cifar10_short')} on one H200" in text_of_front
    rows = rows_of("bench_h200")
    idle = [
        rows[f"device idle, {what}, bf16, compiled"]["ratio"] for what in ("training step, r = 0.5", "purification")
    ]
    assert idle == pytest.approx([0.4, 0.4], abs=0.05)
    assert f"reaches {rows['attack step (wrn28_10), bf16, compiled']['ratio']:.2f} of the measured" in text
    assert f"gives {rows['loader']['ratio']:.1f} times what training takes" in text


def test_speeds_in_the_text_are_those_of_the_reports() -> None:
    """bf16 and compiling, in training and in attacks."""
    rows, text = rows_of("bench"), flowing(RESULTS)
    full, half = (row_like(rows, "training step, ", end) for end in (", fp32", ", bf16, compiled"))
    products = [float(row["limit"].split()[2]) for row in (half, full)]
    assert f"multiplies matrices in bf16 at {products[0] / products[1]:.1f} times its rate in fp32" in text
    assert f"the step runs at {half['rate'] / full['rate']:.1f} times the rate of fp32" in text
    assert rows["training step beside the official MAE's"]["ratio"] < 1.1
    assert full["ratio"] < 0.75
    loader = rows_of("bench_loader")
    assert loader["pair loader, 10,000 shards, raw"]["ratio"] == pytest.approx(0.9, abs=0.03)
    assert loader["pair loader, 50 shards, raw"]["rate"] == pytest.approx(1 / 43e-6, rel=0.02)
    assert loader["pair loader, 1,000 shards, raw"]["ratio"] == pytest.approx(29 / 30, abs=0.01)
    assert loader["shard build"]["ratio"] >= 1
    surrogates = rows_of("evaluation_bench")
    assert row_like(surrogates, "pgd-20 by a bf16 ", "")["ratio"] < 1, "a bf16 one is not"
    gain = row_like(surrogates, "pgd-20 by a fp32, compiled ", "")["ratio"]
    assert f"compiling one gains {100 * (gain - 1):.0f} %" in text
    assert f"49 tiles reaches {surrogates['purifier on 49 tiles']['ratio']:.2f} of the matrix product" in text
    assert surrogates["second purifier"]["ratio"] < 50
    assert "not 50 times faster than attacking" in text


def sweep_minutes(numbers: Sequence[str]) -> float:
    """Minutes that tables took, one after another, with as many workers as they had."""
    paths = (ROOT / "tests" / "reports" / "ablation" / f"table{number}.json" for number in numbers)
    times = [json.loads(path.read_text())["seconds"] for path in paths]
    return sum(seconds["sweep"] / seconds["workers"] for seconds in times) / 60


def summary_line(oblivious: dict[str, Any], adaptive: dict[str, Any]) -> str:
    """One row of the front page: an attack by who does not know the purifier, and by who does."""
    attacked = [
        f"{row['robust_accuracy']:.1f} [{row['robust_ci95'][0]:.1f}, {row['robust_ci95'][1]:.1f}], {row['n']}"
        for row in (oblivious, adaptive)
    ]
    undefended = f"{oblivious['undefended_clean_accuracy']:.1f} / {oblivious['undefended_robust_accuracy']:.1f}"
    return (
        f"| {oblivious['dataset']} · {oblivious['classifier']} | {oblivious['purifier']} "
        f"| {oblivious['attack']} {eps_text(oblivious['eps'])} | {undefended} | {oblivious['clean_accuracy']:.1f} "
        f"| {' | '.join(attacked)} |"
    )


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


def test_front_page_results_are_the_committed_ones() -> None:
    """Six to ten rows, adaptive beside oblivious, from every report that has both, number by number."""
    lines = {summary_line(*pair): pair[0]["classifier"] for pair in attacked_twice()}
    rows = table("summary")
    assert 6 <= len(rows) <= 10
    assert set(rows) <= set(lines)
    assert len(set(rows)) == len(rows)
    assert {lines[row] for row in rows} == set(lines.values())


def test_verdict_is_what_the_reports_say() -> None:
    """The purifier helps against who does not know it: always more than without; and against who does: not once.

    One that was trained against him does, as its report says, and no attacker who knows less does better than he.
    """
    pairs = [pair for pair in attacked_twice() if pair[0]["attack"] == "autoattack-standard"]
    trained = [adaptive for _, adaptive in pairs if adaptive["purifier"] == "robust"]
    for oblivious, adaptive in pairs:
        assert oblivious["robust_ci95"][0] > oblivious["undefended_robust_accuracy"]
        assert adaptive["undefended_robust_accuracy"] == 0
        if adaptive not in trained:
            assert adaptive["robust_accuracy"] == 0
    for row in trained:
        assert row["alarms"] == []
        assert row["robust_ci95"][0] > 0
    digits, cifar = row_under("robust_digits", "adaptive", eps=32 / 255), row_under("robust_cifar10", "adaptive")
    longer = row_under("robust_cifar10_longer", "adaptive")
    verdict = (
        "Against an attacker who knows it, it does not help at all, unless it was trained against him: that keeps "
        f"{digits['robust_accuracy']:.1f} % of the digits, and {longer['robust_accuracy']:.1f} % of CIFAR-10"
    )
    assert verdict in flowing(README)
    shares = f"{digits['clean_accuracy']:.1f} % of {digits['n']} clean images, and {share(digits)}"
    assert f"keeps {shares} under AutoAttack at 32/255" in flowing(RESULTS)
    shares = f"{cifar['clean_accuracy']:.1f} % of {cifar['n']} images clean, and {share(cifar)}"
    assert f"keeps {shares} of the same under AutoAttack at 8/255" in flowing(RESULTS)
    assert f"PGD-20 leaves {robust('robust_cifar10', 'adaptive', 'pgd-20'):.1f} %" in flowing(RESULTS)
    all_of_them = row_under("robust_cifar10", "oblivious")
    clean, attacked = (all_of_them[f"{kind}_accuracy"] for kind in ("clean", "robust"))
    assert f"keeps {clean:.1f} % clean and {attacked:.1f} % under the oblivious attacker" in flowing(RESULTS)
    assert longer["n"] == cifar["n"]
    gained = f"{longer['clean_accuracy']:.1f} % of the {longer['n']} clean, {share(longer)} at 8/255"
    assert gained in flowing(RESULTS)
    half = row_under("robust_cifar10_longer", "adaptive", eps=4 / 255)
    assert half["n"] == longer["n"]
    assert f"At 4/255 that one keeps {share(half)}." in flowing(RESULTS)
    clean = row_under("robust_cifar10_longer", "oblivious")["clean_accuracy"]
    assert f"and {clean:.1f} % of the 1,000 clean" in flowing(RESULTS)
    low = digits["robust_ci95"][0]
    weaker = (("blackbox", "square-1000"), ("adaptive", "pgd-20"))
    square, pgd = (robust("robust_digits", *attack, 32 / 255) for attack in weaker)
    assert min(square, pgd) >= low, "an attacker who knows less does better: the gradients are masked"
    assert f"leaves {square:.1f} %, and PGD-20 {pgd:.1f} %" in flowing(RESULTS)
    small = [o for o, _ in pairs if o["classifier"] == "cifar_resnet20" and o["eps"] == 8 / 255]
    best = max(small, key=lambda row: row["robust_accuracy"])
    gain = f"from {best['undefended_robust_accuracy']:.1f} to {best['robust_accuracy']:.1f} %"
    assert gain in flowing(RESULTS)


def test_finetuning_through_the_classifier_is_as_told() -> None:
    """What it adds under both attacks, beyond the intervals, and to clean accuracy; adaptive attacks leave nothing."""
    results = json.loads((ROOT / "tests/reports/cifar10_cpu/report.json").read_text())["results"]
    rows = {(r["purifier"], r["threat_model"], r["attack"]): r for r in results}
    before, after = (
        [rows[name, "oblivious", attack] for attack in ("autoattack-standard", "pgd-20")]
        for name in ("maep", "maep+full")
    )
    assert all(new["robust_ci95"][0] > old["robust_ci95"][1] for old, new in zip(before, after, strict=True))
    (aa, pgd), (aa_after, pgd_after) = ([row["robust_accuracy"] for row in each] for each in (before, after))
    assert f"from {aa:.1f} to {aa_after:.1f} % (PGD-20: {pgd:.1f} to {pgd_after:.1f})" in flowing(RESULTS)
    clean = [each[0]["clean_accuracy"] for each in (before, after)]
    assert f"Clean accuracy is {clean[0]:.1f} before it and {clean[1]:.1f} after it" in flowing(RESULTS)
    assert not any(row["robust_accuracy"] for row in results if row["threat_model"] == "adaptive")


def test_plain_adversarial_training_stands_beside_the_purifier() -> None:
    """The page says which of the two withstands more, on the same images, and by how much."""
    report = json.loads((ROOT / "tests/reports/robust_digits_plain/report.json").read_text())
    assert "classifier.epochs=16" in report["environment"]["command"]
    plain = next(row for row in report["results"] if row["attack"] == "autoattack-custom:apgd-ce+apgd-t")
    purified = json.loads((ROOT / "tests/reports/robust_digits/report.json").read_text())["results"]
    row = next(r for r in purified if r["attack"] == "autoattack-standard" and r["threat_model"] == "adaptive")
    assert (plain["n"], plain["eps"], plain["classifier"]) == (row["n"], row["eps"], row["classifier"])
    kept, clean = plain["undefended_robust_accuracy"], plain["undefended_clean_accuracy"]
    assert kept > row["robust_accuracy"]
    assert f"keeps {kept:.1f} % of the same {plain['n']} images, {clean:.1f} % of them clean" in flowing(RESULTS)
    digits = kept
    plain = row_under("robust_cifar10_plain", "oblivious")
    row = row_under("robust_cifar10", "adaptive")
    assert (plain["n"], plain["image_set"], plain["classifier"]) == (row["n"], row["image_set"], row["classifier"])
    kept, clean = plain["undefended_robust_accuracy"], plain["undefended_clean_accuracy"]
    assert f"keeps {kept:.1f} % of the same {plain['n']} images under AutoAttack at 8/255" in flowing(RESULTS)
    assert f"and {clean:.1f} % of them clean" in flowing(RESULTS)
    assert f"Classifiers trained so keep {digits:.1f} and {kept:.1f} %." in flowing(README)
    longer = row_under("robust_cifar10_longer", "adaptive")
    assert kept > longer["robust_accuracy"] > row["robust_accuracy"]
    assert clean > longer["clean_accuracy"] > row["clean_accuracy"]


def test_the_robust_purifier_before_an_unseen_classifier() -> None:
    """Attacked end to end before another classifier than in its training: the page has the number and the attack."""
    report = json.loads((ROOT / "tests/reports/robust_digits_transfer/report.json").read_text())
    (row,) = report["results"]
    assert (row["classifier"], row["threat_model"], row["attack"]) == ("cifar_resnet14", "adaptive", "pgd-20")
    assert row["alarms"] == []
    assert f"keeps {share(row)} under PGD-20, {row['clean_accuracy']:.1f} % clean" in flowing(RESULTS)


def test_the_robust_purifier_of_cifar10_is_for_its_classifier_alone() -> None:
    """Before another one clean images are guessed: the report raises the alarm, and the page says so."""
    (row,) = json.loads((ROOT / "tests/reports/robust_cifar10_transfer/report.json").read_text())["results"]
    assert (row["classifier"], row["alarms"]) == ("wrn28_1", ["clean accuracy"])
    assert row["clean_accuracy"] < 10
    assert f"{row['clean_accuracy']:.1f} % of {row['n']} clean images" in flowing(RESULTS)


def test_papers_number_is_that_of_its_table() -> None:
    """The paper's own result, which the front page sets beside ours."""
    cells = json.loads((ROOT / "tests/reports/ablation/table06.json").read_text())["cells"]
    measures = next(cell["measures"] for cell in cells if cell["reading"] == "AutoAttack, MAEP")
    published = {measure["name"]: measure["paper"] for measure in measures}
    sentence = f"{published['clean_accuracy']:.4g} clean and {published['robust_accuracy']:.4g} attacked"
    assert sentence in flowing(README)


def cost_lines() -> list[str]:
    """What configurations cost, as far as a committed report says it."""
    rows = rows_of("bench")
    training = f"{row_like(rows, 'training step, ', ', fp32')['rate']:.1f} images/s of training in fp32"
    purifying = f"{rows['purification']['rate']:.1f} images/s of purifying"
    small = memory("cifar10_cpu", "32 × 32")
    return [
        f"| `digits` | {device('digits/report')} | {minutes('digits')} | not measured |",
        f"| `cifar10_cpu` | {device('cifar10_cpu/report')} | {minutes('cifar10_cpu')} | {small} |",
        f"| the paper's Tables 4, 11, 12, 15, `--scale cpu` | {device('ablation/table15')} "
        f"| {sweep_minutes(BY_TWO):.0f} minutes | not measured |",
        f"| `cifar10` | {device('bench')} | {training}, {purifying}; a whole run not measured | not measured |",
        f"| `cifar10_short` | {device('cifar10_short/report')} | {minutes('cifar10_short')} "
        f"| {memory('cifar10_short', '32 × 32')} |",
        f"| `imagenet`, judging `cifar10_cpu_paper`'s purifier | {device('imagenet_transfer/report')} "
        f"| not measured | {memory('imagenet_transfer', '224 × 224')} |",
    ]


def device(report: str) -> str:
    """What a committed report was made on."""
    name: str = json.loads((ROOT / "tests" / "reports" / f"{report}.json").read_text())["environment"]["device"]
    return name


def minutes(run: str) -> str:
    """What all stages of a committed run took."""
    seconds = json.loads((ROOT / "tests" / "reports" / run / "seconds.json").read_text())
    return f"{seconds['total'] / 60:.0f} minutes"


def memory(run: str, size: str) -> str:
    """Peak of tensors while a committed run purified."""
    costs = json.loads((ROOT / "tests" / "reports" / run / "report.json").read_text())["purifying"].values()
    cost = max(costs, key=lambda each: each["peak_bytes"])
    return f"{cost['peak_bytes'] / 1e6:.0f} MB, {cost['images_at_once']} images of {size}"


def test_costs_are_the_recorded_ones() -> None:
    """Time and memory of the configurations on the front page; what no report has is not there."""
    assert table("costs") == cost_lines()


def test_seconds_of_the_suites_are_the_recorded_ones() -> None:
    """What each folder of tests takes is what `python -m tests.suites` wrote down, or is not said."""
    rows = json.loads(SUITES.read_text())["rows"] if SUITES.is_file() else []
    assert table("suites") == [suite_line(row) for row in rows]
