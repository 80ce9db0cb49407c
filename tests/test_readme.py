"""The two tables of the front page are in the committed reports, number by number.

`tests/results` holds what the other READMEs say of results; `test_links.py` checks what they link to and name,
`test_front_page.py` the examples of the front page.
"""

import json
from typing import Any

from maep.evaluation.scoring.tasks import eps_text
from tests.results.committed import (
    README,
    ROOT,
    attacked_twice,
    device,
    flowing,
    minutes,
    row_like,
    row_under,
    rows_of,
    table,
)
from tests.tables import readings_of

ATTACKERS = ("oblivious", "adaptive")


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


def test_front_page_results_are_the_committed_ones() -> None:
    """Six to ten rows, adaptive beside oblivious, from every report that has both, number by number."""
    lines = {summary_line(*pair): pair[0]["classifier"] for pair in attacked_twice()}
    rows = table("summary")
    assert 6 <= len(rows) <= 10
    assert set(rows) <= set(lines)
    assert len(set(rows)) == len(rows)
    assert {lines[row] for row in rows} == set(lines.values())


def generative_lines() -> list[str]:
    """Rows of the front page: what small generative purifiers keep, and MAEP at the operations of the cheapest."""
    hill = readings_of("zoo_generative")["Hill"]
    kept = {
        name: [
            row["oblivious"]["clean_accuracy"]["mean"],
            *(row[each]["robust_accuracy"]["mean"] for each in ATTACKERS),
        ]
        for name, row in [*readings_of("zoo_generative_cifar10").items(), ("Hill, digits at 32/255", hill)]
    }
    oblivious = row_under("maep_generative_cifar10", "oblivious")
    adaptive = row_under("maep_generative_cifar10", "adaptive", "pgd-20")["robust_accuracy"]
    kept["MAEP, same operations"] = [oblivious["clean_accuracy"], oblivious["robust_accuracy"], adaptive]
    return [f"| {name} | {' | '.join(f'{each:.1f}' for each in row)} |" for name, row in kept.items()]


def test_generative_purifiers_on_the_front_page_are_the_committed_ones() -> None:
    """Number by number, of as many images as is said."""
    assert table("front_generative") == generative_lines()
    reports = ("adp", "diffpure", "flowpure", "gdmp", "maep_generative", "scoreopt", "scoreopt_n")
    rows = [row_under(f"{name}_cifar10", *who) for name in reports for who in (("oblivious",), ("adaptive", "pgd-20"))]
    assert [row["n"] for row in rows] == [500, 32] * len(reports)
    assert "AutoAttack on 500 images and PGD-20 with exact gradients on 32" in flowing(README)


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
        f"| `cifar10` | {device('bench')} | {training}, {purifying} | not measured |",
        f"| `cifar10_short` | {device('cifar10_short/report')} | {minutes('cifar10_short')} "
        f"| {memory('cifar10_short', '32 × 32')} |",
    ]


def memory(run: str, size: str) -> str:
    """Peak of tensors while a committed run purified."""
    costs = json.loads((ROOT / "tests" / "reports" / run / "report.json").read_text())["purifying"].values()
    cost = max(costs, key=lambda each: each["peak_bytes"])
    return f"{cost['peak_bytes'] / 1e6:.0f} MB, {cost['images_at_once']} images of {size}"


def test_costs_are_the_recorded_ones() -> None:
    """Time and memory of the configurations on the front page; what no report has is not there."""
    assert table("costs") == cost_lines()
