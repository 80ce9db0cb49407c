"""The command line that all commands share: `cfg=NAME key=value … --option`, and the help that lists every setting."""

import argparse
import math
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from maep.config.load import (
    config_names,
    default_of,
    leaves,
    load_settings,
    sweep_names,
    type_name,
    valid_choices,
)
from maep.config.schema import Settings
from maep.config.values import Unfit, expanded
from maep.runtime.errors import fail, nearest

# How options and paths begin, which may hold a `=` too, as folders of some data sets do (`/data/split=test`).
NO_SETTING = ("-", "/", "./", "../")


class Parser(argparse.ArgumentParser):
    """One that answers bad input as everything here does: with a UserError of one line, and no usage before it.

    An option is its whole name: what `--n` stands for today would be another option after the next one is added.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        fail(f"{self.prog}: {message}")

    def refuse(self, unknown: Sequence[str], hint: str = "") -> None:
        """Raise UserError for the first of the words that are no arguments here, if there are any."""
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            fail(f"{self.prog}: {unknown[0]}: unknown argument{nearest(unknown[0], known)}{hint}")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The namespace. Raises UserError for an unknown argument."""
        options, unknown = self.parse_known_args(args, namespace)
        self.refuse(unknown)
        return options

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """The namespace, and the words that are no arguments here; says which value counts of an option given twice."""
        words = list(args or ())
        _say_what_counts(list(self._given(words)))
        return super().parse_known_args(words, namespace)

    def _given(self, words: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(option, value) of every option in the words that takes one value."""
        for word, following in zip(words, [*words[1:], ""], strict=False):
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(name)
            if action is not None and action.nargs is None and not isinstance(action, argparse._AppendAction):
                yield max(action.option_strings, key=len), value if equals else following


def above_zero(text: str) -> float:
    """The value of an option that is a duration or a size, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a finite number above 0")
    return value


def at_least_one(text: str) -> int:
    """The value of an option that is a count, for argparse."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, at least 1") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def refuse_unheeded(
    options: argparse.ArgumentParser, namespace: argparse.Namespace, mode: str, *, heeded: Collection[str] = (),
    unheeded: Collection[str] = (),
) -> None:  # fmt: skip
    """Raise UserError for an option that is given beside `--mode`, and would do nothing there.

    options: of which the namespace was parsed. heeded: the only options, by their names, that do something; or
    unheeded: the only ones that do not. An option that has its default counts as not given.
    """
    for action in options._actions:
        name = max(action.option_strings, key=len).removeprefix("--")
        is_idle = name in unheeded if unheeded else name not in heeded
        if is_idle and name != mode and getattr(namespace, action.dest) != action.default:
            fail(f"--{name}: does nothing beside --{mode}; leave one of the two out")


def settings_help() -> str:
    """Every setting with type, unit, default and help, for `--help`."""
    lines = []
    for key, (item, hint) in leaves(Settings).items():
        unit = f" [{item.metadata['unit']}]" if item.metadata.get("unit") else ""
        choices = f" ({', '.join(map(str, valid_choices(item)))})" if valid_choices(item) else ""
        lines.append(f"  {key}={default_of(item)}  <{type_name(hint)}>")
        lines.append(textwrap.indent(f"{item.metadata['help']}{choices}{unit}", "      "))
    return "settings (key=default <type>):\n" + "\n".join(lines)


def at_home(words: Sequence[str]) -> list[str]:
    """The words of a command with `~` as the home directory, which a shell leaves in `--out=~/x` and in quotes.

    Values of settings are left to their own reader. Raises UserError for a user that does not exist, and an empty word.
    """
    return [_at_home(word) for word in words]


def _at_home(word: str) -> str:
    if not word:
        fail("one of the arguments is empty (a variable of the shell that is not set?); leave it out")
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    try:
        return option + equals + expanded(value)
    except Unfit as problem:
        fail(f"{word}: {problem}")


def split_arguments(
    description: str,
    arguments: Sequence[str],
    *,
    options: argparse.ArgumentParser | None = None,
    default_cfg: str = "",
) -> tuple[argparse.Namespace, list[str]]:
    """Parse `cfg=NAME key=value … --option`, without resolving the settings.

    A path with `=` in it is taken for one where it begins with `/`, `./` or `../`.
    options: a parser made with `add_help=False` that holds the launcher's own `--` options and positionals.
    Returns its namespace (with `cfg`) and the `key=value` words. Raises UserError for an unknown option.
    """
    parser = Parser(
        prog=_program(),
        description=description,
        parents=[options] if options else [],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"cfg=NAME: one of {', '.join([*config_names(), *sweep_names()])}\n\n{settings_help()}",
        exit_on_error=False,
    )
    options_only = " ".join(parser.format_usage().split()[1:])
    parser.usage = f"{options_only} [cfg=NAME] [key=value ...]".replace("%", "%%")
    pairs = [word for word in arguments if "=" in word and not word.startswith(NO_SETTING)]
    words = [word for word in arguments if word not in pairs]
    try:
        namespace, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        fail(str(error))
    parser.refuse(unknown, " (settings are written key=value)")
    _say_what_counts([(key, value) for key, _, value in (word.partition("=") for word in pairs)])
    names = [word.partition("=")[2] for word in pairs if word.startswith("cfg=")]
    namespace.cfg = names[-1] if names else default_cfg
    return namespace, [word for word in pairs if not word.startswith("cfg=")]


def _program() -> str:
    """The command as it was typed, without its arguments: `maep VERB`, or a script's path."""
    script, *words = sys.argv
    if Path(script).name not in ("__main__.py", "maep"):
        return script
    return " ".join(["maep", *words[: 2 if words[:1] == ["shards"] else 1]])  # of which there are three verbs


def _say_what_counts(pairs: Sequence[tuple[str, str]]) -> None:
    """A line for each name that is given with several values, of which the last counts: scripts append their own.

    pairs: (key or option, value).
    """
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    for key, given in values.items():
        if len(set(given)) > 1:
            from maep.runtime.console import say  # only now: `maep --help` needs no rich

            say(f"{key} is given {len(given)} times: {key}={given[-1]} counts, not {key}={given[0]}")


def command_line(
    description: str,
    arguments: Sequence[str],
    *,
    options: argparse.ArgumentParser | None = None,
    default_cfg: str = "",
) -> tuple[argparse.Namespace, Settings]:
    """Parse `cfg=NAME key=value … --option` as `split_arguments`, and resolve the settings.

    Raises UserError on bad input.
    """
    namespace, overrides = split_arguments(description, arguments, options=options, default_cfg=default_cfg)
    return namespace, load_settings(namespace.cfg or None, overrides)
