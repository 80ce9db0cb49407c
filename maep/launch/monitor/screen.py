"""The terminal that tables go to, and durations as Slurm writes them."""

import sys

from rich.console import Console

from maep.runtime.console import PlainConsole

WIDTH = 140  # columns where there is no terminal: a status line with its node list fits, and so does a printed page


def screen() -> Console:
    """The terminal, or a wide page where the output goes elsewhere."""
    return PlainConsole() if sys.stdout.isatty() else PlainConsole(width=WIDTH)


def duration(seconds: float) -> str:
    """`2-03:04:05`, as Slurm writes it, or `00:04:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"
