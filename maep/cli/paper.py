"""`maep paper`: one page over all tables, from whatever has been run.

python -m maep paper [DIRECTORY] [--out PAGE.html]    DIRECTORY: where the sweeps' directories are; runs/ablation
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from maep.config.command_line import Parser
from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file


def main(arguments: Sequence[str]) -> int:
    """Build the page. Raises UserError for a directory without any table, or one that cannot be written."""
    parser = Parser(
        prog="maep paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, help="the page; DIRECTORY/paper.html if left out")
    namespace = parser.parse_args(arguments)
    directory = namespace.directory or Path("runs/ablation")
    if not directory.is_dir() and (namespace.directory or os.path.lexists(directory)):
        fail(f"{directory}: no such directory; give the one that holds the sweeps' directories")
    from maep.ablation.tables.paper_page import render_paper
    from maep.ablation.tables.summary_document import SUMMARY

    summaries = sorted(directory.glob(f"*/{SUMMARY}"))
    page, out = render_paper(summaries), namespace.out or directory / "paper.html"
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    say(f"{len(summaries)} tables run, {shlex.quote(str(out))}")
    return 0
