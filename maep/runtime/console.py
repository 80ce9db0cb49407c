"""One look for every progress bar, on stderr; silent where there is no terminal."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from maep.runtime.text import printable, shown


class PlainConsole(Console):
    """Shows text as it is: no markup, no emoji, and nothing in it steers the terminal. For styles there is `Text`."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A string, also of a table's cell, as rich's text."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


console = PlainConsole()


def progress_bar(*, enabled: bool = True) -> Progress:
    """A rich progress bar: description, bar, done/total, elapsed, time left, and a `note` field.

    Use as a context manager and pass `note=""` to `add_task`.
    """
    return Progress(
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=PlainConsole(stderr=True),
        disable=not (enabled and sys.stderr.isatty()),
    )


def say_error(message: str) -> None:
    """One line of what is wrong, on stderr, as `say`."""
    print(f"error: {shown(message)}", file=sys.stderr)


def say(message: str) -> None:
    """One line of what is going on, on stdout; nothing in it steers the terminal, and what is secret is masked."""
    console.print(shown(message), highlight=False, markup=False, soft_wrap=True)
