"""`maep paper`: one page over all tables, from whatever has been run.

python -m maep paper [DIRECTORY] [--out PAGE.html]    DIRECTORY: where the sweeps' directories are; runs/ablation
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file


def main(arguments: Sequence[str]) -> int:
    """Build the page. Raises UserError for a directory without any table, or one that cannot be written."""
    parser = argparse.ArgumentParser(prog="maep paper", description=__doc__, exit_on_error=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("directory", nargs="?", default="runs/ablation", type=Path)
    parser.add_argument("--out", type=Path, help="the page; DIRECTORY/paper.html if left out")
    try:
        namespace, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        fail(f"maep paper: {error}")
    if unknown:
        fail(f"maep paper: {unknown[0]}: unknown argument")
    if namespace.directory.exists() and not namespace.directory.is_dir():
        fail(f"{namespace.directory}: not a directory")
    from maep.ablation.tables.paper_page import render_paper
    from maep.ablation.tables.summary_document import SUMMARY

    summaries = sorted(namespace.directory.glob(f"*/{SUMMARY}"))
    page, out = render_paper(summaries), namespace.out or namespace.directory / "paper.html"
    with atomic_file(out) as temporary:
        temporary.write_text(page)
    say(f"{len(summaries)} tables run, {shlex.quote(str(out))}")
    return 0
