"""One look for every progress bar, on stderr; silent where there is no terminal."""

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console()


def progress_bar(*, enabled: bool = True) -> Progress:
    """A rich progress bar: description, bar, done/total, elapsed, time left, and a `note` field.

    Use as a context manager and pass `note=""` to `add_task`.
    """
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=not (enabled and sys.stderr.isatty()),
    )


def say(message: str) -> None:
    """One line of what is going on, on stdout."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)
