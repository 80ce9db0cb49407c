"""JSON from anywhere, read within limits: what a file says of its own size or depth is not believed.

Every JSON file of this library is read here, so that a number, a name or a nesting that no writer of ours gives ends
in one line that says where it is.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from maep.runtime.errors import UserError, fail
from maep.runtime.plain_files import read_bytes

LIMIT = 64 * 2**20  # bytes: the index of a shard takes some 40 a sample, so 1.6 million samples a shard
VALUES = 8_000_000  # at some 60 bytes each in memory, half a gigabyte; the index above has 6.4 million
STRINGS = 4_000_000  # of these; at 80 bytes each and more, a third of a gigabyte; that manifest has 1.2 million
CONTAINERS = 1_000_000  # at up to 300 bytes each; a manifest of 100,000 shards has 300,000
DEPTH = 64  # the deepest of ours is 8; Python's own limit depends on who calls
DIGITS = 40  # of a whole number: 128 bits, as the states of random generators, have 39
# Of text without an end all is taken too: it is no JSON, and would else be looked through from each mark in it again.
BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
SHAPE = bytes.maketrans(b"123456789E", b"000000000e")  # every digit a 0, every exponent an e
HUGE_EXPONENT = re.compile(rb"e\+?000+(?:[,\]}\s]|$)")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError, naming the file, as `parse_json`, and when it is missing."""
    return parse_json(read_bytes(path, LIMIT), path)


def parse_json(content: bytes | str, source: object) -> Any:
    """The value of a JSON text in UTF-8. source: the file, for the message.

    Raises UserError, naming it and what is wrong, for text that is not JSON, keys that stand twice in one object, NaN,
    infinite or huge numbers, text that is no Unicode, and what is too large or too deep.
    """
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    _check_size(raw, source)
    try:
        text = raw.decode("utf-8-sig")
        whole, number = (_whole, _number) if _may_have_huge_numbers(raw) else (int, float)
        value = json.loads(
            text, object_pairs_hook=_object, parse_float=number, parse_int=whole, parse_constant=_constant
        )
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError, UserError) as error:
        fail(f"{source}: cannot be read: {error}")
    _check_constants(value, text, source)
    return value


def _check_size(raw: bytes, source: object) -> None:
    containers = raw.count(b"[") + raw.count(b"{")
    if len(raw) > LIMIT or containers > CONTAINERS or raw.count(b",") > VALUES or raw.count(b'"') > 2 * STRINGS:
        fail(
            f"{source}: cannot be read: more than {LIMIT} bytes, {VALUES} values, {STRINGS} texts or {CONTAINERS} "
            "lists and objects"
        )
    if containers <= DEPTH:
        return
    depth = 0
    for match in BRACKETS.finditer(raw):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
        if depth > DEPTH:
            fail(f"{source}: cannot be read: nested deeper than {DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        fail(f"the key {next(key for key, count in counts.items() if count > 1)[:80]!r} stands twice in one object")
    return value


def _may_have_huge_numbers(raw: bytes) -> bool:
    """Whether some number may be longer than DIGITS or infinite; a no is sure, and spares a call for every number.

    A number of at most DIGITS digits and an exponent of two is below 1e140. Hexadecimal text is no exponent: it ends
    in a quotation mark.
    """
    shape = raw.translate(SHAPE)
    return b"0" * (DIGITS + 1) in shape or HUGE_EXPONENT.search(shape) is not None


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        fail(f"{text[:20]}… is a whole number of {len(text)} digits; at most {DIGITS}")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        fail(f"{text[:20]} is no finite number")
    return value


def _constant(text: str) -> float:
    """Named by `_check_constants`, which knows where it stands."""
    return float(text)


def _check_constants(value: Any, text: str, source: object) -> None:
    if "NaN" in text or "Infinity" in text:
        for where, number in _non_finite(value, ""):
            _refuse_constant(source, where, number)


def _refuse_constant(source: object, where: str, number: float) -> NoReturn:
    fail(f"{source}: {where}={json.dumps(number)}: expected a finite number")


def _non_finite(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """(where, value) of every NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield from _non_finite(item, f"{where}[{key}]" if isinstance(value, list) else f"{where}.{key}".lstrip("."))
