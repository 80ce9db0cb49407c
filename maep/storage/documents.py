"""JSON documents with a format version: one reader and one writer for every manifest, record, plan and report.

A document is a frozen dataclass. Its fields are the entries of the JSON object, their types are checked on the way in,
and `FORMAT` counts how often its meaning has changed: 0 is what was written before documents had a version. A newer
one is refused by name; how an older one is read is the class's own business (`upgrade`).
"""

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from maep.config.implementations import names_of
from maep.runtime.digests import as_read, digest
from maep.runtime.errors import UserError, fail
from maep.runtime.plain_files import read_bytes
from maep.storage.atomic import read_json, write_json
from maep.storage.json_files import LIMIT, parse_json

T = TypeVar("T")
CONTENT = "content_sha256"  # the entry with a document's own digest; absent in files from before there was one
NUMBERS = {int: (int,), float: (int, float)}


class NewerFormat(UserError):
    """The file was written by a newer version of maep. It need not be damaged, so it is never passed over as such."""


@dataclasses.dataclass(frozen=True)
class Document:
    """Base of all documents. FORMAT: of what is written. VERSION_KEY: the entry that carries it.

    SELF_CHECKED: whether its file carries a digest of its own content, so that one that was edited is not believed.
    COMPACT: whether that digest is, but for itself, of the file's bytes: for documents that are read by the thousand.
    DIGEST_SINCE: the format from which on every file carries it; DIGEST_WITH: an entry that came with it or later,
    within an older format. A file that has the one and lacks the other was edited.
    """

    FORMAT: ClassVar[int] = 1
    VERSION_KEY: ClassVar[str] = "format"
    SELF_CHECKED: ClassVar[bool] = False
    COMPACT: ClassVar[bool] = False
    DIGEST_SINCE: ClassVar[int | None] = None
    DIGEST_WITH: ClassVar[str] = ""

    @classmethod
    def upgrade(cls, entries: dict[str, Any], version: int) -> dict[str, Any]:
        """The entries of an older format as those of this one; by default it had the same."""
        return entries

    @classmethod
    def from_json(cls, value: object, source: str | Path) -> Self:
        """Checked. source: the file (and the place in it), for the message.

        Raises UserError, naming source and entry, for a missing entry, or a wrong type or range; for a newer format a
        NewerFormat, which is one too. Entries that this version does not know are left out.
        """
        return cls.parsed(value, b"", source)

    @classmethod
    def parsed(cls, value: object, content: bytes, source: str | Path) -> Self:
        """As `from_json`; content: the bytes that `value` was parsed from, whose digest is checked if they are at hand.

        Raises as `from_json`.
        """
        if not isinstance(value, dict):
            fail(f"{source}: expected a JSON object, found {_kind(value)}")
        version = value.get(cls.VERSION_KEY, 0)
        if not isinstance(version, int) or isinstance(version, bool) or version < 0:
            fail(f"{source}: {cls.VERSION_KEY}={version!r}: expected a whole number")
        if version > cls.FORMAT:
            raise NewerFormat(f"{source}: format {version}; this version of maep reads up to {cls.FORMAT}: update maep")
        entries = cls.upgrade(value, version) if version < cls.FORMAT else value
        document = read_fields(cls, entries, str(source))
        if cls.SELF_CHECKED and (why := cls._edited(value, content, version)):
            fail(f"{source}: altered since it was written ({why}); remove it, and the command that wrote it makes it "
                 "again")  # fmt: skip
        return document

    @classmethod
    def _edited(cls, value: Mapping[str, Any], content: bytes, version: int) -> str:
        """What shows that a file with these entries, in these bytes if they are at hand, was edited; "" if nothing."""
        if CONTENT in value:
            return "" if _is_own_digest(value, content) else f"the SHA-256 of its content differs from its {CONTENT}"
        if cls.DIGEST_SINCE is not None and version >= cls.DIGEST_SINCE:
            return f"it is of format {version}, but its {CONTENT} was taken out"
        if cls.DIGEST_WITH and cls.DIGEST_WITH in value:
            return f"it has {cls.DIGEST_WITH!r}, but its {CONTENT} was taken out"
        return ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file. Raises UserError as `from_json`, and for a file that is missing or not JSON."""
        if not cls.COMPACT:
            return cls.from_json(read_json(path), path)
        content = read_bytes(path, LIMIT)
        return cls.parsed(parse_json(content, path), content, path)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, the version first."""
        return {self.VERSION_KEY: self.FORMAT, **dataclasses.asdict(self)}

    def to_file(self) -> dict[str, Any]:
        """As in its file: as a JSON object, and the digest of that where the document carries one."""
        entries = self.to_json()
        return {**entries, CONTENT: content_digest(entries)} if self.SELF_CHECKED else entries

    def write(self, path: Path) -> None:
        """Commit it under `path`."""
        write_json(path, self.to_file(), compact=self.COMPACT)


def content_digest(entries: Mapping[str, Any]) -> str:
    """SHA-256, as 64 hex digits, of what a document says, however its file is laid out."""
    return digest(as_read({name: value for name, value in entries.items() if name != CONTENT}))


def _is_own_digest(entries: Mapping[str, Any], content: bytes) -> bool:
    """Whether the digest that a document carries is that of its content.

    content: the file's bytes, or none. Where they are in canonical form, nothing is encoded again, which would take
    longer than all else of reading a record.
    """
    own = entries[CONTENT]
    if content and hashlib.sha256(content.strip().replace(f'"{CONTENT}":"{own}",'.encode(), b"", 1)).hexdigest() == own:
        return True
    values = {name: value for name, value in entries.items() if name != CONTENT}
    return own == digest(values) or own == content_digest(entries)  # what was read as JSON need not be read so again


# Both asked once a class: a shard set's manifest can have tens of thousands of entries, read before every start.
@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def read_fields(cls: type[T], entries: Mapping[str, Any], source: str) -> T:
    """A dataclass from JSON entries, checked against its annotations and the ranges in its fields' metadata.

    low <= value <= high, value > above, and choices: as `maep.config.schema.setting` has them, so that a section of
    the settings is held to the same ranges wherever it was saved.

    Raises UserError naming source and entry.
    """
    hints, values = _hints(cls), {}  # type: ignore[arg-type]
    for item in _fields(cls):  # type: ignore[arg-type]
        if item.name not in entries:
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                fail(f"{source}: lacks the entry {item.name!r}")
            continue
        value = _typed(hints[item.name], entries[item.name], f"{source}: {item.name}")
        _check_range(f"{source}: {item.name}", value, item.metadata)
        values[item.name] = value
    return cls(**values)


def _check_range(where: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices, low, high, above = (metadata.get(name) for name in ("choices", "low", "high", "above"))
    if not choices and low is high is above is None:
        return
    choices = names_of(choices) if isinstance(choices, str) else choices
    for entry in value if isinstance(value, list | tuple) else [value]:
        if choices and entry not in choices:
            fail(f"{where}={str(entry)[:60]}: choose one of {', '.join(map(str, choices))}")
        if not isinstance(entry, int | float) or isinstance(entry, bool):
            continue
        if low is not None and entry < low:
            fail(f"{where}={entry}: must be at least {low}")
        if high is not None and entry > high:
            fail(f"{where}={entry}: must be at most {high}")
        if above is not None and entry <= above:
            fail(f"{where}={entry}: must be above {above}")


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that `hint` names; JSON's lists become tuples where those are wanted."""
    if type(value) is hint and hint is not float:  # nearly every entry of a long manifest
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is Literal:
        return (
            value if _is_one_of(value, arguments) else _wrong(where, value, f"one of {', '.join(map(str, arguments))}")
        )
    if origin in (list, tuple):
        return _sequence(origin, arguments, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            return _wrong(where, value, "an object")
        return {key: _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if issubclass(hint, Document):
            return hint.from_json(value, where)
        return read_fields(hint, value, where) if isinstance(value, dict) else _wrong(where, value, "an object")
    return _scalar(hint, value, where)


def _is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """Of the same type, too: to Python 1 and 1.0 are equal to true."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    others = [choice for choice in choices if choice is not type(None)]
    if len(others) == 1:
        return _typed(others[0], value, where)
    fits = [choice for choice in others if isinstance(choice, type) and type(value) is choice]
    return _typed(fits[0], value, where) if fits else _wrong(where, value, " or ".join(map(_name, others)))


def _sequence(origin: type, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        return _wrong(where, value, "a list")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            return _wrong(where, value, f"a list of {len(arguments)}")
        return tuple(_typed(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))
    if _is_plain(value, _plain_types(arguments[0])):  # the long lists of a record: a hundred times faster so
        return origin(value)
    return origin(_typed(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))


def _is_plain(values: list[Any] | tuple[Any, ...], types_: frozenset[type]) -> bool:
    """Whether every value is of one of these types, and finite where it is a float."""
    if not types_ or not set(map(type, values)) <= types_:
        return False
    return float not in types_ or all(map(math.isfinite, filter(None, values)))


@cache
def _plain_types(hint: Any) -> frozenset[type]:
    """The types whose values a hint takes as they are, if they are finite; none if the hint looks deeper."""
    choices = frozenset(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))
    return choices if choices <= {float, type(None)} or choices <= {int, str, bool, type(None)} else frozenset()


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        values = [member.value for member in hint]
        return hint(value) if value in values else _wrong(where, value, f"one of {', '.join(map(str, values))}")
    accepts = NUMBERS.get(hint, (hint,))
    if not isinstance(value, accepts) or (isinstance(value, bool) and hint is not bool):
        return _wrong(where, value, _name(hint))
    if isinstance(value, float) and not math.isfinite(value):
        return _wrong(where, value, "a finite number")
    return float(value) if hint is float else value


def _wrong(where: str, value: Any, expected: str) -> Any:
    fail(f"{where}={json.dumps(value)[:60]}: expected {expected}")


def _kind(value: object) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _name(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))
