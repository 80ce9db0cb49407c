"""Text from outside on its way out: to a terminal, into LaTeX and Markdown, into what is shared."""

import io
import re

import pytest
from jinja2 import Environment
from markupsafe import Markup
from rich.table import Table

from maep.evaluation.reporting import provenance
from maep.runtime.console import PlainConsole
from maep.runtime.errors import UserError, exit_code, fail
from maep.runtime.text import latex, markdown, masked, printable, shown_in_html, unfit_name

STEERING = ("\x1b[31m", "\x07", "\r", "\x9b2J", "\u202e", "\u2066", "\x7f", "\x00", "\x1b]0;x\x07", "\u2028", "\udcff")


@pytest.mark.parametrize("text", STEERING)
def test_nothing_steers_the_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In errors, in lines and in tables."""
    error = UserError(f"a{text}b")
    file = io.StringIO()
    console = PlainConsole(file=file, width=80)
    console.print(f"a{text}b")
    table = Table(f"h{text}", title=f"t{text}")
    table.add_row(f"c{text}")
    console.print(table)

    def command() -> int:
        fail(f"x{text}y")

    assert exit_code(command) == 2
    for shown in (printable(text), str(error), file.getvalue(), capsys.readouterr().err):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066\u2028\ud800-\udfff]", shown)


@pytest.mark.parametrize("text", ["[bold]x[/]", "[/]", "[link=https://h]x[/link]", ":bomb:", "[red]", "\\[x]", "{x}"])
def test_markup_from_outside_is_text(text: str) -> None:
    """Rich would take it for a style, or fail."""
    file = io.StringIO()
    table = Table("a")
    table.add_row(text)
    PlainConsole(file=file, width=80).print(text, table)
    assert file.getvalue().count(text) == 2


@pytest.mark.parametrize("text", ["ä ö ü", "digits", "run #1", "日本", "a\u200db", "tab\tand\nline"])
def test_what_people_write_stays(text: str) -> None:
    """Also joiners, which some languages need."""
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", "a\\_b"), ("{x}", "\\{x\\}"), ("$x$", "\\$x\\$"), ("x^2", "x\\textasciicircum{}2"),
        ("~", "\\textasciitilde{}"), ("\\input{/etc/passwd}", "\\textbackslash{}input\\{/etc/passwd\\}"),
        ("50 % & #1", "50 \\% \\& \\#1"), ("a\nb", "a b"), ("[x]", "{}[x]"), ("*", "{}*"), ("–", "--"),
        ("1 ± 2", "1 $\\pm$ 2"), ("<a>|", "\\textless{}a\\textgreater{}\\textbar{}"),
        ("\x1b[1m", "\\textbackslash{}x1b[1m"),
    ],
)  # fmt: skip
def test_latex_sets_what_is_written(text: str, expected: str) -> None:
    """Each of its characters, once."""
    assert latex(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b\nc<script>", "a\\|b c&lt;script>"), ("a\\|b", "a\\\\\\|b"), ("&lt;b>", "&amp;lt;b>"), ("a & b", "a & b"),
        ("[x](http://h)", "[x]\\(http://h)"), ("85.1 [80.0, 90.2]", "85.1 [80.0, 90.2]"), ("\u202ex", "\\\\u202ex"),
    ],
)  # fmt: skip
def test_a_markdown_cell_stays_one(text: str, expected: str) -> None:
    """No second cell, line, tag or link; what looks escaped shows as it was written."""
    assert markdown(text) == expected


def test_html_shows_the_direction_of_writing() -> None:
    """Escaped once by jinja, which leaves markup of ours alone."""
    engine = Environment(autoescape=True, finalize=shown_in_html)
    page = engine.from_string("{{ a }} {{ b }} {{ c }}").render(a="<b>\u202e&amp;", b=Markup("<i>\u202e</i>"), c=7)
    assert page == "&lt;b&gt;\\u202e&amp;amp; <i>\u202e</i> 7"


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@host/x", "s3://hunter2@bucket/x", "https://h/x?token=hunter2&a=b", "api_key=hunter2",
        "--token=hunter2", "https://h/x?X-Amz-Signature=hunter2", "HF_TOKEN=hunter2", "https://h/x#hunter2",
        "argument 'data.shards=https://h/x?sv=1&sig=hunter2'", "my_secret=hunter2, b", "https://u:hunt:hunter2@h",
        "https:/user:hunter2@host/x", "s3:/u:hunter2@b", "https:/h/x?token=hunter2", "Authorization: Bearer hunter2",
        "{'Authorization': 'Basic hunter2'}", "authorization=hunter2", "a bearer hunter2 came",
    ],
)  # fmt: skip
def test_secrets_are_masked(text: str) -> None:
    """In messages, and in what is kept of the command."""
    assert "hunter2" not in masked(text)
    assert "hunter2" not in str(UserError(text))
    assert "hunter2" not in str(provenance.Environment.current(["launch/local.py", "cfg=digits", text]))


@pytest.mark.parametrize(
    "text",
    [
        "run.seed=1",
        "https://host/shards",
        "a@b",
        "key=value",
        "cfg=digits",
        "x?y=1",
        "a:/b@c",
        "C:/x?y",
        "/a:/home/b@c",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """A message that hides what is wrong helps nobody."""
    assert masked(text) == text


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "a\\b", "a\x00", "a\n", "x" * 256, "ä" * 101, "\u202ex"])
def test_a_file_name_is_one(name: str) -> None:
    """Names that are none, or another place."""
    assert unfit_name(name)
    assert not unfit_name("run #1, ä (2).x")
