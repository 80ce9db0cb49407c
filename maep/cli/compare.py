"""`maep compare RUN RUN … [--out DIRECTORY]`: one table and one figure over several reports.

A column holds one threat model, attack and budget, on the images that all its runs share; runs that share none are
refused. Each row is tested against the first of its column, image by image (McNemar), and carries the alarms of its
report. Writes compare.json and compare.png.
"""

from collections.abc import Sequence
from pathlib import Path

from maep.config.command_line import Parser
from maep.runtime.errors import fail


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Raises UserError for runs that cannot be compared, before anything is written."""
    parser = Parser(prog="maep compare", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="*", type=Path, help="run directory with a report.json")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="where to write (default runs/compare)")
    options = parser.parse_args(arguments)
    runs = list(dict.fromkeys(options.runs))
    if len(runs) < 2:
        fail("compare: give at least two different runs, such as: maep compare runs/cifar10 runs/cifar10_cpu")

    from maep.evaluation.reporting.comparison import (
        compare,
        comparison_figure,
        comparison_table,
        notes_on_images,
        read_defenses,
    )
    from maep.evaluation.reporting.figures import save_figure
    from maep.runtime.console import console, say

    for run in runs:
        _require_as_recorded(run)
    defenses = [defense for run in runs for defense in read_defenses(run)]
    comparison = compare(defenses)
    save_figure(comparison_figure(defenses, comparison), options.out / "compare.png")
    comparison.write(options.out / "compare.json")
    console.print(comparison_table(defenses, comparison))
    for note in notes_on_images(comparison):
        say(f"note: {note}")
    say(f"compare: {options.out / 'compare.json'}, {options.out / 'compare.png'}")
    return 0


def _require_as_recorded(run: Path) -> None:
    """Raise UserError for a report or record that was altered since its stage finished; who runs no stages has none."""
    from maep.pipeline.stage_records import read_stage_record, unproven_files

    for stage, pattern in (("report", "report.json"), ("evaluate", "evaluation/**/*.json")):
        record = read_stage_record(run, stage)
        if record is None or not record.finished:
            continue
        for name in unproven_files(run, record, [pattern]):
            if name in record.files:
                fail(f"{run / name}: altered since stage {stage} finished; run stage={stage} again, or put it back")
