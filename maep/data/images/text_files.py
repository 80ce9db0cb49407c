"""Text from outside: its encoding is recognised or refused with the row, and numbers are ASCII digits."""

import codecs
import re
import unicodedata

from maep.runtime.errors import fail

# UTF-32 before UTF-16, whose mark is the beginning of UTF-32's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Of a list of labels. ImageNet's has 1.3 million rows of 40 bytes; a row takes up to 300 bytes of memory.
MAX_TEXT = 64 * 2**20  # bytes; one letter of another script makes text take four in memory for each
MAX_ROWS = 2_000_000


def text_of(content: bytes, source: str) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 with their mark.

    source: the file, for the message. Raises UserError, naming file and row, for any other encoding: a guess of it
    would be a guess of names.
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if content.startswith(mark)), (b"", "utf-8"))
    if content.count(b"\n") + content.count(b"\r") > 2 * MAX_ROWS:  # a row may end with both
        fail(f"{source}: more than {MAX_ROWS} rows, the most that are read of a list")
    body = content[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        row = len(split_lines(body[: error.start].decode(encoding, "replace")))
        byte = body[error.start]
        fail(f"{source}: row {row}: byte 0x{byte:02x} is not {encoding.upper()}; save the file as UTF-8")
    if "\0" in text:
        row = len(split_lines(text.partition("\0")[0]))
        fail(f"{source}: row {row}: a zero byte, so this is no UTF-8 text; save the file as UTF-8")
    return text


def split_lines(text: str) -> list[str]:
    """Lines by their usual ends only: `str.splitlines` also splits at form feeds and Unicode's separators."""
    return re.split(r"\r\n|\n|\r", text)


def whole_number(text: str) -> int | None:
    """A number of at most nine ASCII digits, or None: `²` and `٣` are digits to Python, and mean nothing here."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def composed(text: str) -> str:
    """In one Unicode form (NFC), so that the same name is equal however it was typed or packed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
