"""A report's table for the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from maep.attacks.catalog import title_of
from maep.evaluation.reporting.report_row import ReportRow
from maep.evaluation.reporting.rows import Combination, judged_word
from maep.evaluation.scoring.tasks import eps_text


def terminal_table(rows: Sequence[Combination]) -> Table:
    """Accuracies in percent of one threat model, one line a combination; fits 80 columns."""
    first = rows[0].result
    title = f"{first.threat_model}: {first.dataset}, {first.classifier}; accuracy in %, [95 % interval]"
    table = Table(title=title, title_style="bold", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    judged = judged_word([row.result for row in rows])
    for name in ("attack", "eps", "defense" if judged == "defended" else "purifier"):
        table.add_column(name, no_wrap=True, vertical="bottom")
    for name in ("n", "undefended\nclean/rob.", f"{judged}\nclean", f"{judged}\nrobust"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        result = row.result
        low, high = result.robust_ci95
        below = "\n" * len(_of_draws(result))  # cells are set at the bottom of their lines, as the heads are
        table.add_row(
            title_of(result.attack) + below,
            eps_text(result.eps) + (" L2" if result.norm == "L2" else "") + below,
            "\n".join([result.purifier, *_of_draws(result)]),
            str(result.n) + below,
            f"{result.undefended_clean_accuracy:.1f}/{result.undefended_robust_accuracy:.1f}{below}",
            "\n".join([f"{result.clean_accuracy:.1f}", *_lines(result, "clean")]),
            Text.assemble(
                (f"{result.robust_accuracy:.1f}", "bold"),
                f" [{low:.1f}, {high:.1f}]",
                (" !" if result.alarms else "", "bold red"),
                *(f"\n{line}" for line in _lines(result, "robust")),
            ),
        )
    table.caption = _alarms([row.result for row in rows])
    table.caption_justify, table.caption_style = "left", "bold red"
    return table


def _of_draws(row: ReportRow) -> list[str]:
    """What the further lines of a random purifier are."""
    return [] if row.draws is None else [f"mean of {row.draws}", "majority", "worst"]


def _lines(row: ReportRow, what: str) -> list[str]:
    """Of clean or robust accuracy, for these lines; a dash each in reports that did not say."""
    values = [getattr(row, f"{what}_{name}") for name in ("average", "majority", "worst")]
    return [] if row.draws is None else ["–" if value is None else f"{value:.1f}" for value in values]


def _alarms(rows: Sequence[ReportRow]) -> str | None:
    """The alarms that go with the numbers above, by purifier."""
    lines = dict.fromkeys(f"! {row.purifier}: {', '.join(row.alarms)}" for row in rows if row.alarms)
    return "\n".join(lines) or None
