"""One look for every progress bar, on stderr: a bar in a terminal, and elsewhere a line a minute."""

import os
import sys
import threading
from typing import Any, NoReturn

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

from maep.runtime.exits import ExitCode
from maep.runtime.text import printable, shown


class PlainConsole(Console):
    """Shows text as it is: no markup, no emoji, and nothing in it steers the terminal. For styles there is `Text`."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A string, also of a table's cell, as rich's text."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> NoReturn:
        """End as others do whose output nobody reads any more: rich would with the code of a failure."""
        raise SystemExit(ExitCode.READER_LEFT)


console = PlainConsole()


EVERY = 60.0  # seconds between two lines of progress: a log is not silent for minutes, and not filled by them


class SpokenProgress(Progress):
    """Progress that is shown only where there is a terminal; elsewhere it is said, a line every EVERY seconds."""

    def start(self) -> None:
        """Begin, as the context does."""
        super().start()
        self._ended = threading.Event()
        self._speaker = threading.Thread(target=self._speak, name="progress", daemon=True)
        self._speaker.start()

    def stop(self) -> None:
        """End, as the context does."""
        self._ended.set()
        self._speaker.join()
        super().stop()

    def _speak(self) -> None:
        while not self._ended.wait(EVERY):
            for task in self.tasks:
                if not task.finished:
                    minutes, seconds = divmod(int(task.elapsed or 0), 60)
                    done = f"{task.completed:.0f} of {task.total:.0f}" if task.total else f"{task.completed:.0f}"
                    note = f" · {task.fields['note']}" if task.fields["note"] else ""
                    line = f"{task.description}: {done}, {minutes}:{seconds:02} min{note}"
                    self.console.print(shown(line), highlight=False, markup=False, soft_wrap=True)


def progress_bar(*, enabled: bool = True) -> Progress:
    """A rich progress bar: description, bar, done/total, elapsed, time left, and a `note` field.

    Use as a context manager and pass `note=""` to `add_task`. Without a terminal it says all this once a minute.
    enabled: whether this process shows it at all. Of several that a launcher started here, the first one does.
    """
    enabled = enabled and os.environ.get("LOCAL_RANK", "0") == "0"
    in_terminal = sys.stderr.isatty()
    return (Progress if in_terminal or not enabled else SpokenProgress)(
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=PlainConsole(stderr=True),
        disable=not (enabled and in_terminal),
    )


def say_error(message: str) -> None:
    """One line of what is wrong, on stderr, as `say`."""
    print(f"error: {shown(message)}", file=sys.stderr)


def say(message: str) -> None:
    """One line of what is going on, on stdout; nothing in it steers the terminal, and what is secret is masked."""
    console.print(shown(message), highlight=False, markup=False, soft_wrap=True)
