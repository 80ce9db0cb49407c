"""Text from outside on its way out: what a terminal shows of it, what is secret in it, what may name a file."""

import re
import unicodedata
from collections.abc import Sequence

# Categories of Unicode that steer what shows them: control codes, line ends, halves of a pair (undecodable bytes of a
# file name); and the marks that turn the direction of writing. Joiners, which languages need, are none.
STEERING = ("Cc", "Cs", "Zl", "Zp")
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# A file name has 255 bytes on Linux's file systems; a digest, an ending and a temporary mark are added to a name.
NAME_BYTES = 200
# An address begins with a protocol; one that was taken for a path has lost a slash, and is known by the usual ones.
ADDRESS = r"(?:[A-Za-z][A-Za-z0-9+.-]{1,20}://|\b(?:https?|s3a?|gc?s|ftps?|sftp|ssh|abfss?|az|hdfs|webhdfs):/)"
USER_INFO = re.compile(rf"({ADDRESS})(?:[^/\s@]*:[^/\s]*@|[^/\s:@]+@)")
SECRET_WORDS = "token|sig|signature|secret|password|passwd|pwd|credential|credentials|api_?key|access_?key"
# `name=value` of an address's query or fragment, and of a word such as api_key=…; an address's whole query is hidden,
# since its names are each service's own.
QUERY = re.compile(rf"({ADDRESS}[^\s?#'\"]*[?#])[^\s'\"]+")
ASSIGNMENT = re.compile(rf"(?i)(?<![A-Za-z0-9])((?:[\w-]*[_-])?(?:{SECRET_WORDS})=)[^\s&'\",\]}}]+")
# A header as an error of an HTTP library may quote it.
HEADER = re.compile(
    r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?|\bbearer\s+)[^\s'\",}]{4,}"
)
NAMES_LISTED = 5
MASK = "***"
ENTITY = re.compile(r"&(?=#?\w+;)")
LATEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "%": "\\%", "#": "\\#", "_": "\\_",
    "^": "\\textasciicircum{}", "~": "\\textasciitilde{}", "<": "\\textless{}", ">": "\\textgreater{}",
    "|": "\\textbar{}", "±": "$\\pm$", "–": "--", "·": "$\\cdot$", "→": "$\\to$",
}  # fmt: skip


def listed(names: Sequence[str]) -> str:
    """The first of many names, for a line."""
    return ", ".join(names[:NAMES_LISTED]) + (", …" if len(names) > NAMES_LISTED else "")


def is_steering(character: str) -> bool:
    """Whether a character draws nothing and steers what shows it."""
    return unicodedata.category(character) in STEERING or character in DIRECTIONS


def printable(text: str) -> str:
    """The text as a terminal may show it: characters that would steer it are written as `\\x1b` or `\\u202e`.

    Line ends and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if is_steering(c) and c not in "\n\t" else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def masked(text: str) -> str:
    """The text with what is secret in it as `***`: user and password of an address, its query, `token=…` and such."""
    text = HEADER.sub(rf"\g<1>{MASK}", text)
    text = QUERY.sub(rf"\g<1>{MASK}", USER_INFO.sub(rf"\g<1>{MASK}@", text))
    return ASSIGNMENT.sub(rf"\g<1>{MASK}", text)


def shown(text: str) -> str:
    """The text as a terminal, a log or a file that is shared may show it: `printable`, and `masked`."""
    return printable(masked(text))


def secret_problem(text: str) -> str:
    """Why a text with an address may not be written down or shown, in words; "" for one without secrets."""
    secret = "a user or a password" if USER_INFO.search(text) else "a query" if QUERY.search(text) else ""
    return secret and (
        f"has {secret}, which would be written down with the settings; give it by AWS's variables, or by headers "
        "in fsspec's configuration (FSSPEC_HTTPS, ~/.config/fsspec)"
    )


def unfit_name(name: str) -> str:
    """Why a text cannot be the name of a file in a folder, in words; "" if it can."""
    if not name.strip():
        return "is empty"
    if name in (".", ".."):
        return "means a folder"
    if "/" in name or "\\" in name:
        return "has a slash"
    if any(map(is_steering, name)):
        return "has a control character"
    if len(name.encode()) > NAME_BYTES:
        return f"is longer than {NAME_BYTES} bytes"
    return ""


def latex(text: str) -> str:
    """The text as LaTeX sets it, whatever is in it; also where a row of a table begins."""
    text = "".join(LATEX.get(character, character) for character in printable(" ".join(text.split())))
    return f"{{}}{text}" if text.startswith(("[", "*")) else text  # else an argument of the line end before it


def shown_in_html(value: object) -> object:
    """For jinja to finish values with, before it escapes them: nothing in a text turns the direction of writing."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def markdown(text: str) -> str:
    """The text as a cell of a Markdown table, or a line of it; neither HTML nor another cell begins in it."""
    text = ENTITY.sub("&amp;", printable(" ".join(text.split())))
    for character, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("](", "]\\(")):
        text = text.replace(character, escaped)
    return text
