"""How a value is read: the type of its key decides, not what YAML takes its letters for.

YAML reads `2024_11_05` as a number, `no` as false, `12:30` as 750 and `010` as 8. So a plain scalar is kept with its
letters (`Plain`), a key of text takes the letters, and a number is read as people write it.
"""

import math
import os.path
import re
import types
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

from maep.runtime.errors import fail
from maep.runtime.plain_files import read_bytes
from maep.runtime.text import is_steering, secret_problem

FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*", re.ASCII)
INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d*(?:_\d+)*)|0x[0-9a-fA-F]+", re.ASCII)
FLOAT = re.compile(r"[+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NOTHING = ("", "~", "null", "Null", "NULL")
PYTHONS_NOTHING = ("None", "none")  # as help and reference write it; for a key of text they are a text
VARIABLE = re.compile(r"(?:^|/)(\$\w+)(?:/|$)")  # in a path, where no shell has put in what it stands for
LARGEST = 2**63 - 1  # what torch and safetensors count with
MAX_FILE = 2**18  # bytes of a file of settings; the parser takes up to 2,000 bytes of memory a scalar
ALIASES = 16  # of YAML in one file; a few kilobytes of nested ones are gigabytes when written out


class Unfit(Exception):
    """A value is none of its key's type; the message says why, or is empty."""


@dataclass(frozen=True)
class Plain:
    """A scalar without quotes: its letters, and what YAML takes it for."""

    text: str
    value: Any

    def __deepcopy__(self, _memo: object) -> "Plain":
        return self  # it cannot be changed


class _Loader(yaml.SafeLoader):
    """YAML as trees of dicts, lists, text (where it stands in quotes) and `Plain`; a key twice is an error."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > ALIASES:
                raise yaml.composer.ComposerError(
                    None, None, f"more than {ALIASES} aliases", self.peek_event().start_mark
                )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        tree: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            key = key.value if isinstance(key, Plain) else key
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key_node.start_mark)
            if key in tree:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", key_node.start_mark)
            tree[key] = self.construct_object(value_node, deep=True)
        return tree


def _plain(loader: _Loader, node: Any) -> Any:
    constructor = yaml.SafeLoader.yaml_constructors[node.tag]
    try:
        value = constructor(loader, node)
    except (ValueError, OverflowError):
        value = node.value
    if node.style in ("|", ">"):
        return str(node.value).rstrip("\n")
    return node.value if node.style in ("'", '"') else Plain(node.value, value)


for _kind in ("null", "bool", "int", "float", "timestamp", "str"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _plain)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_mapping)


def parse_yaml(text: str) -> Any:
    """The tree of a YAML text, plain scalars as `Plain`, for the caller to change. Raises yaml.YAMLError."""
    try:
        return deepcopy(_parsed(text))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None


# A sweep reads the same few files for each of its thousand points, and parsing them takes most of its preview.
@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections and keys of a YAML file, as `parse_yaml`. Raises UserError naming the file and the line."""
    try:
        tree = parse_yaml(read_bytes(path, MAX_FILE).decode("utf-8-sig"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        fail(f"{path}: cannot be read as YAML: {error}")
    if isinstance(tree, Plain) and tree.value is None:
        return {}
    if not isinstance(tree, dict | None):
        fail(f"{path}: must hold sections and keys")
    return tree or {}


def settled(tree: Any) -> Any:
    """A tree of `parse_yaml` with what YAML takes its plain scalars for."""
    if isinstance(tree, Mapping):
        return {key: settled(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [settled(value) for value in tree]
    return _any(tree)


def as_text(tree: Any) -> Any:
    """A tree of `parse_yaml` with the letters of its plain scalars; nothing stays None."""
    if isinstance(tree, Mapping):
        return {key: as_text(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [as_text(value) for value in tree]
    if isinstance(tree, Plain):
        return None if tree.text in NOTHING else tree.text
    return tree


def is_text(hint: Any) -> bool:
    """Whether a type is text, or text or nothing."""
    return hint is str or (get_origin(hint) in (Union, types.UnionType) and str in get_args(hint))


def holds_text(hint: Any) -> bool:
    """Whether a type is text or a list of it."""
    return is_text(hint) or (get_origin(hint) is list and is_text(get_args(hint)[0]))


def argument_value(text: str, hint: Any) -> Any:
    """What is written after `key=` on the command line, as a tree of `parse_yaml`.

    For a key of text it is the text itself, unless all of it stands in quotes. Raises yaml.YAMLError.
    """
    if is_text(hint) and not _is_quoted(text):
        return Plain(text, None if text in NOTHING else text)
    return parse_yaml(text) if text else Plain("", None)


def _is_quoted(text: str) -> bool:
    """Such as `"null"`: the way to write text that would otherwise be read as something else."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        return False
    try:
        return isinstance(parse_yaml(text), str)
    except yaml.YAMLError:
        return False


def read_value(value: Any, hint: Any) -> Any:
    """A tree of `parse_yaml`, or a value of Python, as the type `hint`. Raises Unfit.

    Numbers are finite; `8/255` is a number where one is wanted.
    """
    if get_origin(hint) in (Union, types.UnionType):
        if _is_nothing(value) or (not is_text(hint) and _letters(value) in PYTHONS_NOTHING):
            return None
        return read_value(value, next(part for part in get_args(hint) if part is not type(None)))
    if get_origin(hint) is list:
        if not isinstance(value, list | tuple):
            example = f": write [{value.text.strip('[]')}]" if isinstance(value, Plain) and value.text else ""
            raise Unfit(f"wrong type, expected a list{example}")
        return [read_value(item, get_args(hint)[0]) for item in value]
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise Unfit
        return {str(key): settled(item) for key, item in value.items()}
    return READERS[hint](value)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, Plain) and value.text in NOTHING) or value == ""


def _letters(value: Any) -> Any:
    return value.text.strip() if isinstance(value, Plain) else value


def _text(value: Any) -> str:
    if isinstance(value, Plain):
        return value.text
    if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
        raise Unfit
    return str(value)


def _truth(value: Any) -> bool:
    value = _letters(value)
    if isinstance(value, str) and value.lower() in TRUTH:
        return TRUTH[value.lower()]
    if not isinstance(value, bool):
        raise Unfit
    return value


def _whole(value: Any) -> int:
    value = _letters(value)
    if isinstance(value, str):
        if not INTEGER.fullmatch(value) or len(value) > len(str(LARGEST)) + 1:
            raise Unfit
        value = int(value, 16 if value.startswith("0x") else 10)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unfit
    if abs(value) > LARGEST:
        raise Unfit
    return value


def _number(value: Any) -> float:
    value = _letters(value)
    if isinstance(value, str):
        value = _written_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit
    if not abs(value) < math.inf:
        raise Unfit("must be finite")
    return float(value)


def _written_number(text: str) -> float:
    if match := FRACTION.fullmatch(text):
        top, bottom = map(float, match.groups())
        if not bottom:
            raise Unfit("divides by 0")
        return top / bottom
    if text.lower().strip("+-.") in ("inf", "infinity", "nan"):
        raise Unfit("must be finite")
    if not FLOAT.fullmatch(text):
        raise Unfit
    return float(text)


def _any(value: Any) -> Any:
    """A value whose key has no type. What YAML takes for something else than people do is refused."""
    if not isinstance(value, Plain):
        return value
    plainly = _plainly(value.text)
    if value.value != plainly and not isinstance(plainly, float):
        raise Unfit(f'{value.text} means {value.value} in YAML; write that, or "{value.text}" in quotes')
    return plainly


def _plainly(text: str) -> Any:
    """Nothing, true, false, a number as people write it, or text."""
    if text in NOTHING:
        return None
    if text.lower() in ("true", "false"):
        return TRUTH[text.lower()]
    if INTEGER.fullmatch(text) and "_" not in text and len(text) <= len(str(LARGEST)):
        return _whole(text)
    if FLOAT.fullmatch(text) and "_" not in text and not re.match(r"[+-]?0\d", text):
        return _number(text)
    return text


READERS = {str: _text, bool: _truth, int: _whole, float: _number, Any: settled}


def expanded(path: str) -> str:
    """A path with `~` as the home directory.

    Raises Unfit for a user that does not exist, and for a variable of the shell: nobody means a folder of that name.
    """
    if (variable := VARIABLE.search(path)) and not os.path.lexists(path):
        raise Unfit(f"{variable[1]} is the name of a folder here, no variable; write the path that it stands for")
    if not path.startswith("~"):
        return path
    whole = os.path.expanduser(path)
    if whole == path:
        raise Unfit(f"there is no user {path.partition('/')[0][1:]}; write ./{path} for a file of that name")
    return whole


def unfit_text(text: str) -> str:
    """Why a text may stand in no setting, in words; "" if it may."""
    if any(map(is_steering, text)):
        return "has a control character"
    return secret_problem(text)
