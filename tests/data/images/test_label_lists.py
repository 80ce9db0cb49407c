"""Labels mean what their file says: numbers in their order, names before positions, contradictions refused."""

from pathlib import Path

import pytest

from maep.data.images.label_lists import class_order
from maep.data.images.text_files import text_of, whole_number
from maep.runtime.errors import UserError
from tests.data.images.test_sources import labels_by_stem, opened, write_images


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(number) for number in range(12)], [str(number) for number in range(12)]),
        (["10", "9", "100"], ["9", "10", "100"]),
        (["n02", "n01", "n10"], ["n01", "n02", "n10"]),
        (["b", "10", "2", "a"], ["2", "10", "a", "b"]),
        (["²", "1", "2"], ["1", "2", "²"]),
        (["c10", "c2"], ["c10", "c2"]),
    ],
)
def test_class_order(names: list[str], order: list[str]) -> None:
    """As text, and numbers as numbers."""
    assert class_order(names, "x") == order


def test_the_same_number_twice_is_refused() -> None:
    """1 and 01 would be two labels of one class."""
    with pytest.raises(UserError, match="classes 01 and 1 are the same number"):
        class_order(["1", "01", "2"], "x")


def flat(root: Path, classes: list[str], files: list[str], name: str, text: str | bytes) -> dict[str, int]:
    """Labels of a flat val/ folder with this list."""
    write_images(root, [f"train/{label}/{label}.png" for label in classes] + [f"val/{file}" for file in files])
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    _, splits = opened(root)
    return {stem: int(label) for stem, label in labels_by_stem(splits, "test").items()}


NUMBERS = [str(number) for number in range(12)]


@pytest.mark.parametrize(
    ("classes", "text", "labels"),
    [
        (NUMBERS, "a.png 2\nb.png 11\n", [2, 11]),
        (["1", "2", "3"], "a.png 1\nb.png 3\n", [0, 2]),
        (["01", "02", "10"], "a.png 2\nb.png 10\n", [1, 2]),
        (["cat", "dog"], "a.png 0\nb.png 1\n", [0, 1]),
        (["maine coon", "pug"], "a.png,maine coon\nb.png,pug\n", [0, 1]),
        (["maine coon", "pug"], "a.png maine coon\nb.png pug\n", [0, 1]),
        (["cat", "dog"], "image;class\nb.png;cat\na.png;dog\n", [1, 0]),
        (["cat", "dog"], "val/a.png cat\n./b.png dog\n".replace("./", "val/"), [0, 1]),
        (["cat", "dog"], "dog\ncat\n", [1, 0]),
        (["cat", "dog"], "\ufefffile,label\r\na,cat\r\nb,dog\r\n", [0, 1]),
        (["Bär", "Zebra"], "a.png,Bär\nb.png,Zebra\n".encode("utf-16"), [0, 1]),
    ],
)
def test_lists_are_read_as_meant(tmp_path: Path, classes: list[str], text: str | bytes, labels: list[int]) -> None:
    """A name before a position, in any usual form and encoding."""
    read = flat(tmp_path, classes, ["a.png", "b.png"], "val.txt", text)
    assert read == dict(zip("ab", labels, strict=True))


@pytest.mark.parametrize(
    ("classes", "text", "message"),
    [
        (["cat", "dog"], "a.png cat\na.png dog\nb.png dog\n", r"row 2: val/a\.png as 'dog' after 'cat' \(row 1\)"),
        (["cat", "dog"], "a.png cat\na.png cat\nb.png dog\n", r"row 2: val/a\.png again \(row 1\)"),
        (["cat", "dog"], "a.png cat\nb.png 1\n", "row 2: gives no known class: '1' is no class name"),
        (["cat", "dog"], "a.png 1\nb.png 2\n", r"row 2: gives no known class: '2'; expected a class name or 0\.\.1"),
        (["5", "7"], "a.png 5\nb.png 0\n", "row 2: gives no known class: '0'"),
        (["cat", "dog"], "a.png ²\nb.png ٣\n", "row 1: gives no known class: '²'"),
        (["cat", "dog"], "a.png cat\nb.png dig\n", "did you mean dog"),
        (["cat", "dog"], "a.png cat\nb.png\n", r"row 2: 'b\.png' alone"),
        (["cat", "dog"], "a.png cat\n", r"val/b\.png: val\.txt gives no known class for it"),
        (["cat", "dog"], "a.png cat\ncaf\xe9 dog\n".encode("latin-1"), r"row 2: byte 0xe9 is not UTF-8"),
        (["cat", "dog"], "a.png cat\n".encode("utf-16-le"), "row 1: a zero byte"),
        (["cat", "dog"], "\n\n", "empty"),
    ],
)
def test_lists_that_cannot_be_meant(tmp_path: Path, classes: list[str], text: str | bytes, message: str) -> None:
    """Refused in one line with the row."""
    with pytest.raises(UserError, match=message) as error:
        flat(tmp_path, classes, ["a.png", "b.png"], "val.txt", text)
    assert "\n" not in str(error.value)


def test_ambiguous_files_and_lists(tmp_path: Path) -> None:
    """Two files of one stem, and two lists that differ."""
    with pytest.raises(UserError, match=r"row 1: a may be val/a\.jpg or val/a\.png"):
        flat(tmp_path / "1", ["cat", "dog"], ["a.png", "a.jpg"], "val.txt", "a cat\n")
    (tmp_path / "2" / "val").mkdir(parents=True)
    (tmp_path / "2" / "val" / "labels.csv").write_text("a.png,dog\n")
    with pytest.raises(UserError, match=r"val/a\.png: dog in val/labels\.csv, cat in val\.txt"):
        flat(tmp_path / "2", ["cat", "dog"], ["a.png"], "val.txt", "a.png cat\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,index\na.png,0\nb.png,1\na.png,1\n", r"line 4: a\.png again \(line 2\)"),
        (b"file,index,name\na.png,0,cat\nb.png,0,dog\n", "line 3: index 0 is 'dog' here and 'cat' before"),
        (b"file,index,name\na.png,0,tench, Tinca\n", "line 2: more cells than columns"),
        (b"file,index\na.png,100000000\n", "line 2: index 100000000: at most 100000 classes"),
        ("file,index\na.png,٣\n".encode(), "line 2: index '٣' is not a whole number"),
        (b"file,index\na.png,-1\n", "line 2: index '-1' is not a whole number"),
        (b"file,index\n../a.png,0\n", r"line 2: no such file \.\./a\.png"),
        (b"file,index,name\na.png,0,caf\xe9\n", "row 2: byte 0xe9 is not UTF-8"),
        (b"file,index\na.png,0\nb.png,0\n", "images of a single class"),
    ],
)
def test_labels_csv_that_cannot_be_meant(tmp_path: Path, text: bytes, message: str) -> None:
    """Refused with the line."""
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_digits_are_ascii() -> None:
    """And few enough for memory."""
    assert [whole_number(text) for text in ("7", "007", "²", "٣", "-1", "1e3", "1_0", "", "1" * 10)] == [
        7, 7, None, None, None, None, None, None, None,
    ]  # fmt: skip


def test_every_mark_is_understood() -> None:
    """UTF-8, UTF-16 and UTF-32 with their byte order marks."""
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert text_of("a,Bär\n".encode(encoding), "x") == "a,Bär\n"


def test_one_class_a_line_needs_an_order(tmp_path: Path) -> None:
    """1.png, 10.png, 2.png as text, 1, 2, 10 as people count: which line is whose is not guessed."""
    names = [f"{number}.png" for number in (1, 2, 10)]
    with pytest.raises(UserError, match=r"the order of the images of val/ is not clear: val/10\.png or val/2\.png"):
        flat(tmp_path / "a", ["cat", "dog"], names, "val.txt", "cat\ndog\ncat\n")
    assert flat(tmp_path / "b", ["cat", "dog"], ["01.png", "02.png", "10.png"], "val.txt", "cat\ndog\ncat\n")
