"""Documents: what is written is read back, and what does not fit is named with its file and entry."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from maep.runtime.errors import UserError
from maep.storage.atomic import write_json
from maep.storage.documents import CONTENT, Document


@dataclass(frozen=True)
class Part:
    """A nested entry."""

    name: str
    share: float = field(metadata={"low": 0, "high": 1})


@dataclass(frozen=True)
class Sample(Document):
    """One entry of every type."""

    FORMAT = 2

    count: int
    parts: tuple[Part, ...] = ()
    limits: tuple[int, int] = (0, 1)
    state: Literal["open", "closed"] = "open"
    note: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def upgrade(cls, entries: dict[str, Any], version: int) -> dict[str, Any]:
        """Format 0 called the count a number."""
        return {"count": entries["number"]} if version == 0 else entries


@dataclass(frozen=True)
class Checked(Document):
    """One whose file carries the digest of its own content."""

    SELF_CHECKED = True

    name: str
    shares: dict[int, float]
    parts: tuple[Part, ...] = ()
    note: str | None = None


class CheckedWithParts(Checked):
    """One that never had parts without having a digest."""

    DIGEST_WITH = "parts"


class CheckedSince(Checked):
    """One whose format 2 never was without a digest."""

    FORMAT = 2
    DIGEST_SINCE = 2


CHECKED = Checked("a", {10: 0.25, 9: 1.0}, (Part("b", 0.5), Part("c", 1)))


def test_a_checked_document_is_believed_as_it_was_written(tmp_path: Path) -> None:
    """In any layout and order of its keys; and without a digest, as files from before there was one."""
    CHECKED.write(tmp_path / "a.json")
    entries = json.loads((tmp_path / "a.json").read_text())
    assert len(entries[CONTENT]) == 64
    expected = Checked("a", {"10": 0.25, "9": 1.0}, CHECKED.parts)  # type: ignore[dict-item]
    for text in (json.dumps(dict(reversed(entries.items()))), json.dumps(entries, indent=7)):
        (tmp_path / "a.json").write_text(text)
        assert Checked.read(tmp_path / "a.json") == expected
    del entries[CONTENT]
    assert Checked.from_json(entries, "old.json") == expected


@pytest.mark.parametrize(
    "edit",
    [
        {"name": "b"}, {"name": "a "}, {"shares": {"10": 0.26, "9": 1.0}}, {"shares": {"10": 0.25}},
        {"parts": [{"name": "b", "share": 0.5}]}, {"parts": [{"name": "c", "share": 1}, {"name": "b", "share": 0.5}]},
        {"note": ""}, {"format": 0}, {"further": 1}, {CONTENT: "0" * 64}, {CONTENT: None}, {CONTENT: ["x"]},
    ],
)  # fmt: skip
def test_an_edited_document_is_not_believed(edit: dict[str, Any]) -> None:
    """Whatever was edited, also an entry that nobody reads, the version, and the digest itself."""
    entries = json.loads(json.dumps(CHECKED.to_file()))
    Checked.from_json(entries, "a.json")
    with pytest.raises(UserError, match=r"a\.json: altered since it was written"):
        Checked.from_json({**entries, **edit}, "a.json")


def test_a_digest_is_not_taken_out() -> None:
    """Of what never was without one, as an entry that came with it tells; what is older is believed."""
    entries = CHECKED.to_json()
    with pytest.raises(
        UserError, match=rf"a\.json: altered since it was written \(it has 'parts', but its {CONTENT} was"
    ):
        CheckedWithParts.from_json(entries, "a.json")
    del entries["parts"]
    assert CheckedWithParts.from_json(entries, "a.json").parts == ()
    assert CheckedSince.from_json(entries, "a.json").parts == (), "format 1 may lack it"
    with pytest.raises(
        UserError, match=rf"a\.json: altered since it was written \(it is of format 2, but its {CONTENT} was taken out"
    ):
        CheckedSince.from_json({**entries, "format": 2}, "a.json")


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Nested parts, tuples and options included; the version stands in the file."""
    sample = Sample(3, (Part("a", 0.5),), (1, 2), "closed", None, {"x": 7})
    sample.write(tmp_path / "sample.json")
    assert Sample.read(tmp_path / "sample.json") == sample
    assert '"format": 2' in (tmp_path / "sample.json").read_text()


def test_an_older_format_is_upgraded_and_a_newer_one_refused() -> None:
    """A newer one by name, with what this version reads."""
    assert Sample.from_json({"number": 4}, "old.json") == Sample(4)
    with pytest.raises(UserError, match=r"new\.json: format 3; this version of maep reads up to 2"):
        Sample.from_json({"format": 3, "count": 1}, "new.json")


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ([], "expected a JSON object, found a list"),
        ({"format": "x"}, "format='x'"),
        ({"format": True}, "format=True"),
        ({}, "lacks the entry 'count'"),
        ({"count": "3"}, 'count="3": expected a whole number'),
        ({"count": 1.5}, "count=1.5"),
        ({"count": True}, "count=true"),
        ({"count": 1, "parts": {}}, "parts={}: expected a list"),
        ({"count": 1, "parts": [{"name": "a", "share": 2}]}, r"parts\[0\]: share=2.0: must be at most 1"),
        ({"count": 1, "parts": [{"name": "a", "share": float("nan")}]}, "share=NaN: expected a finite number"),
        ({"count": 1, "parts": [3]}, r"parts\[0\]=3: expected an object"),
        ({"count": 1, "limits": [1]}, "limits=.*: expected a list of 2"),
        ({"count": 1, "state": "ajar"}, "state=.*: expected one of open, closed"),
        ({"count": 1, "note": 5}, "note=5: expected text"),
        ({"count": 1, "sizes": {"x": "y"}}, r'sizes\.x="y"'),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, entries: object, named: str) -> None:
    """One line with the file and the entry."""
    if isinstance(entries, dict) and "format" not in entries:
        entries = {"format": 2, **entries}
    write_json(tmp_path / "sample.json", entries)
    with pytest.raises(UserError, match=rf"sample\.json.*{named}"):
        Sample.read(tmp_path / "sample.json")


@dataclass(frozen=True)
class Long(Document):
    """Lists of every plain kind."""

    whole: tuple[int, ...] = ()
    numbers: tuple[float | None, ...] = ()
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"whole": [1, 2, True]}, r"whole\[2\]=true: expected a whole number"),
        ({"whole": [1, 2.0]}, r"whole\[1\]=2.0: expected a whole number"),
        ({"whole": [1, None]}, r"whole\[1\]=null"),
        ({"numbers": [0.5, None, float("inf")]}, r"numbers\[2\]=Infinity: expected a finite number"),
        ({"numbers": [float("nan")]}, r"numbers\[0\]=NaN"),
        ({"numbers": [0.5, "1"]}, r"numbers\[1\]=\"1\": expected a number"),
        ({"names": ["a", 1]}, r"names\[1\]=1: expected text"),
    ],
)
def test_a_long_list_is_checked_to_its_last_entry(entries: dict[str, Any], named: str) -> None:
    """Though it is taken at once where every entry has the type that is wanted."""
    with pytest.raises(UserError, match=named):
        Long.from_json(entries, "x")


def test_a_long_list_is_read_as_it_was_written() -> None:
    """Whole numbers among others become the floats that they stand for."""
    read = Long.from_json({"whole": [1, 2], "numbers": [1, None, 0.0, 2.5], "names": ["a"]}, "x")
    assert read == Long((1, 2), (1.0, None, 0.0, 2.5), ("a",))
    assert [type(number) for number in read.numbers] == [float, type(None), float, float]
