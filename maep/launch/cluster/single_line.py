"""Text from outside that becomes part of a line of a batch script: the one check that it cannot become another line."""

import re

from maep.runtime.errors import fail
from maep.runtime.text import is_steering

JOB_NAME = 128  # characters: squeue and sacct show fewer, and Slurm's accounting cuts longer ones
NOT_IN_JOB_NAMES = re.compile(r"[^\w.+-]+")  # what Slurm's file patterns, lists and shells give a meaning to


def single_line(name: str, text: str) -> str:
    """The text itself. Raises UserError, naming `name` and the character, if it could be more than part of one line.

    name: the setting, option or file, as the message shows it.
    """
    for position, character in enumerate(text, 1):
        if is_steering(character):
            fail(
                f"{name}: character {position} of {text!a} is the control character U+{ord(character):04X}; only "
                f"characters that print on a single line are valid"
            )
    return text


def single_lines(name: str, value: object) -> None:
    """`single_line` for every text within: of a list, of a mapping and its keys; paths and numbers as they print."""
    match value:
        case dict():
            for key, item in value.items():
                single_line(name, str(key))
                single_lines(f"{name}.{key}", item)
        case list() | tuple():
            for number, item in enumerate(value):
                single_lines(f"{name}[{number}]", item)
        case None:
            return
        case _:
            single_line(name, str(value))


def job_name(name: str) -> str:
    """A name as Slurm's tables, patterns and lists of jobs can hold it: letters, digits and `._+-`."""
    return NOT_IN_JOB_NAMES.sub("-", name).strip("-")[:JOB_NAME] or "maep"
