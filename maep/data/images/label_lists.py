"""What a label list says: rows of file and class, or one class a line, each read as its author meant it or refused."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

from maep.data.images.archives import Archive
from maep.data.images.text_files import MAX_TEXT, composed, split_lines, text_of, whole_number
from maep.runtime.errors import fail, nearest

# A set of more classes does not exist (ImageNet-21k has 21,841); a number above is a mistake, and costs memory.
MAX_CLASSES = 100_000
LONGEST_NUMBER = 20  # digits in a file's name: nanoseconds since 1970 have 19
COLUMNS = ("file", "index", "wnid", "name")  # of labels.csv
FEW_VALUES = 8  # of a column that may say the split: train, val and test, and spellings of them


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a list. cells: file and class, or the class alone."""

    number: int
    cells: tuple[str, ...]


def class_order(names: Sequence[str], source: str) -> list[str]:
    """Classes in the order of their labels: sorted as text, but numbers as numbers where the two differ.

    source: for the message. Raises UserError for two names of the same number, such as 1 and 01.
    """
    plain = sorted(names)
    numbers = {name: number for name in plain if (number := whole_number(name)) is not None}
    by_value = sorted(numbers, key=lambda name: (numbers[name], name))
    if len(numbers) == len(plain):
        for first, second in pairwise(by_value):
            if numbers[first] == numbers[second]:
                fail(f"{source}: the classes {first} and {second} are the same number; rename one")
    return plain if by_value == list(numbers) else [*by_value, *(name for name in plain if name not in numbers)]


@dataclass(frozen=True)
class LabelList:
    """A list beside a flat folder. classes: in the order of their labels; none where no folders say them."""

    source: str
    rows: tuple[Row, ...]
    classes: tuple[str, ...]

    def by_file(self, files: Sequence[str], prefix: str) -> tuple[dict[str, str], int]:
        """`{file: class}`, and how many rows name none of the files.

        files: the images below `prefix`. Raises UserError, with the row, for what contradicts or means nothing.
        """
        if all(len(row.cells) == 1 for row in self.rows):
            return self._in_order(files, prefix), 0
        index = _index(files, prefix)
        labels: dict[str, tuple[str, Row]] = {}
        strangers = 0
        for position, row in enumerate(self.rows):
            file, word = self._file_and_class(row, index)
            if file is None:
                strangers += position > 0 or self._may_be_class(word)
                continue
            self._add(labels, file, word, row)
        self._check_one_meaning([(word, row) for word, row in labels.values()])
        return {file: self._class(word, row) for file, (word, row) in labels.items()}, strangers

    def _in_order(self, files: Sequence[str], prefix: str) -> dict[str, str]:
        """One class a line, for the files in their order."""
        if len(self.rows) != len(files):
            fail(f"{self.source} has {len(self.rows)} lines for the {len(files)} images of {prefix}")
        counted = sorted(files, key=_by_numbers)
        if counted != list(files):
            text, number = next(pair for pair in zip(files, counted, strict=True) if pair[0] != pair[1])
            fail(
                f"{self.source}: one class a line, and the order of the images of {prefix} is not clear: {text} or"
                f" {number} may come first; give a file and its class a row"
            )
        self._check_one_meaning([(row.cells[0], row) for row in self.rows])
        return {file: self._class(row.cells[0], row) for file, row in zip(files, self.rows, strict=True)}

    def _file_and_class(self, row: Row, index: dict[str, set[str]]) -> tuple[str | None, str]:
        if len(row.cells) < 2:
            fail(f"{self.source}: row {row.number}: {row.cells[0][:60]!r} alone; expected a file and its class")
        name, word = row.cells[0], row.cells[1]
        # Names with spaces in a list whose cells are separated by spaces.
        if name not in index and " " in word:
            longer, _, last = f"{name} {word}".rpartition(" ")
            name, word = (longer, last) if longer in index else (name, word)
        files = index.get(_key(name)) or index.get(PurePosixPath(_key(name)).stem) or set()
        if len(files) > 1:
            fail(f"{self.source}: row {row.number}: {name} may be {' or '.join(sorted(files)[:2])}")
        return next(iter(files), None), word

    def _add(self, labels: dict[str, tuple[str, Row]], file: str, word: str, row: Row) -> None:
        if file in labels:
            other = labels[file][1].number
            same = "again" if labels[file][0] == word else f"as {word[:40]!r} after {labels[file][0][:40]!r}"
            fail(f"{self.source}: row {row.number}: {file} {same} (row {other}); leave one row")
        labels[file] = word, row

    def _may_be_class(self, word: str) -> bool:
        """Whether the first row is a row like any other, not a header."""
        first = self._word(word)
        return first in self.classes or whole_number(first) is not None

    def _word(self, text: str) -> str:
        """The class in a cell: all of it, or what comes first (bounding boxes follow it)."""
        return text if text in self.classes else text.split(" ")[0] if text else text

    def _check_one_meaning(self, cells: Sequence[tuple[str, Row]]) -> None:
        """A number is a class name where there is one of it, else a position; a list must not do both."""
        if not self.classes:
            return
        words = [(self._word(word), row) for word, row in cells]
        positions = [(word, row) for word, row in words if self._name(word) is None]
        if positions and len(positions) < len(words):
            word, row = positions[0]
            fail(
                f"{self.source}: row {row.number}: gives no known class: {word[:60]!r} is no class name, and other rows"
                f" are{nearest(word, self.classes)}"
            )

    def _name(self, word: str) -> str | None:
        """The class of this name, or of the same number where all names are numbers (7 and 07)."""
        if word in self.classes:
            return word
        number = whole_number(word)
        if number is None or any(whole_number(name) is None for name in self.classes):
            return None
        return next((name for name in self.classes if whole_number(name) == number), None)

    def _class(self, text: str, row: Row) -> str:
        word = self._word(text)
        number = whole_number(word)
        if not self.classes:
            if number is not None:
                fail(f"{self.source} numbers its classes, but no training folders say which they are")
            return word
        name = self._name(word)
        numeric = all(whole_number(name) is not None for name in self.classes)
        if name is None and number is not None and number < len(self.classes) and not numeric:
            name = self.classes[number]
        if name is None:
            last = len(self.classes) - 1
            fail(
                f"{self.source}: row {row.number}: gives no known class: {word[:60]!r}; expected a class name or"
                f" 0..{last}{nearest(word, self.classes)}"
            )
        return name


def _by_numbers(name: str) -> str:
    """Sorts names as people count, 2.png before 10.png, and otherwise as text."""
    return re.sub(r"[0-9]+", lambda match: match[0].zfill(LONGEST_NUMBER), name)


def _key(name: str) -> str:
    return composed(name).removeprefix("./")


def _index(files: Sequence[str], prefix: str) -> dict[str, set[str]]:
    """What a row may call a file: its path, its path in the folder, its name, its name without suffix."""
    index: dict[str, set[str]] = defaultdict(set)
    for file in files:
        path = PurePosixPath(file)
        for name in {file, file.removeprefix(prefix), path.name, path.stem}:
            index[name].add(file)
    return index


def read_label_list(archive: Archive, name: str, classes: Sequence[str]) -> LabelList:
    """A list of the archive. Raises UserError for one that is no text or has no rows."""
    source = f"data.root={archive.path}: {name}"
    lines = split_lines(text_of(archive.read(name, MAX_TEXT), source))
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    mark = next((mark for mark in (",", "\t", ";") if numbered and all(mark in line for _, line in numbered)), None)
    rows = tuple(Row(number, _cells(line, mark, f"{source}: row {number}")) for number, line in numbered)
    if not rows:
        fail(f"{source}: empty; expected a file and its class a row")
    return LabelList(source, rows, tuple(classes))


def _cells(line: str, mark: str | None, where: str) -> tuple[str, ...]:
    """The file and all that follows it."""
    try:
        cells = next(csv.reader([line], delimiter=mark, strict=True)) if mark else line.split(None, 1)
    except csv.Error as error:
        fail(f"{where}: {error}")
    return tuple(composed(cell.strip()) for cell in cells)


@dataclass(frozen=True)
class Labelled:
    """A file and its label in labels.csv."""

    file: str
    label: int


@dataclass(frozen=True)
class LabelTable:
    """labels.csv. further: of each column that is not read its different values, where they are few."""

    rows: tuple[Labelled, ...]
    classes: tuple[str, ...]
    further: dict[str, frozenset[str]]


def read_labels_csv(archive: Archive, top: str) -> LabelTable:
    """`labels.csv` with the columns file, index and, if known, wnid and name; files relative to it.

    Raises UserError naming the row for a file that is not there or comes twice, for an index that is no number, too
    large, or of two names.
    """
    source = f"data.root={archive.path}: {top}labels.csv"
    text = text_of(archive.read(f"{top}labels.csv", MAX_TEXT), source)
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if not {"file", "index"} <= set(rows.fieldnames or ()):
            fail(f"{source}: must have the columns file, index (and may have wnid, name)")
        return _labelled(archive, top, rows, source)
    except csv.Error as error:
        fail(f"{source}: line {rows.line_num}: {error}")


def _labelled(archive: Archive, top: str, rows: "csv.DictReader[str]", source: str) -> LabelTable:
    files, lines = set(archive.files), dict[str, int]()
    names: dict[int, str] = {}
    further: dict[str, set[str]] = {column: set() for column in rows.fieldnames or () if column not in COLUMNS}
    items = []
    for row in rows:
        line = f"{source}: line {rows.line_num}"
        if None in row:
            fail(f"{line}: more cells than columns; quote names with commas")
        file = top + _key(row["file"] or "")
        if file not in files:
            fail(f"{line}: no such file {file}")
        label = _label(row["index"], line)
        if file in lines:
            fail(f"{line}: {file} again (line {lines[file]}); leave one row")
        name = composed(row.get("name") or row.get("wnid") or str(label))
        if names.setdefault(label, name) != name:
            fail(f"{line}: index {label} is {name!r} here and {names[label]!r} before")
        lines[file] = rows.line_num
        items.append(Labelled(file, label))
        for column, values in further.items():
            if len(values) <= FEW_VALUES:
                values.add((row.get(column) or "").strip())
    classes = tuple(names.get(label, str(label)) for label in range(max(names, default=-1) + 1))
    few = {column: frozenset(values) for column, values in further.items() if len(values) <= FEW_VALUES}
    return LabelTable(tuple(items), classes, few)


def _label(text: str | None, line: str) -> int:
    label = whole_number(text or "")
    if label is None:
        fail(f"{line}: index {text!r} is not a whole number >= 0")
    if label >= MAX_CLASSES:
        fail(f"{line}: index {label}: at most {MAX_CLASSES} classes are read")
    return label
