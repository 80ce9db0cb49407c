"""JSON from anywhere: limits, numbers and keys are checked before they are used; nothing waits."""

import os
import time
from pathlib import Path

import pytest

from maep.runtime.errors import UserError
from maep.runtime.plain_files import read_bytes
from maep.storage import json_files
from maep.storage.atomic import sha256_file
from maep.storage.json_files import parse_json, read_json
from maep.storage.manifests import Manifest

BAD = {
    "no JSON": (b"{", "cannot be read"),
    "no text": (b"\xff\xfe\x00", "cannot be read"),
    "empty": (b"", "cannot be read"),
    "twice": (b'{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
    "NaN": (b'{"a": [1, NaN]}', r"a\[1\]=NaN: expected a finite number"),
    "infinite": (b'{"a": -Infinity}', "a=-Infinity"),
    "overflow": (b'{"a": 1e999}', "1e999 is no finite number"),
    "overflow, signed": (b"[1.0, -1E+0400]", r"-1E\+0400 is no finite number"),
    "overflow, alone": (b"1e309", "1e309 is no finite number"),
    "overflow, long": (b"[" + b"9" * 400 + b".5]", "9999 is no finite number"),
    "huge, small": (b"[-" + b"1" * 41 + b"]", "whole number of 42 digits"),
    "huge": (b'{"a": ' + b"9" * 5000 + b"}", "whole number of 5000 digits"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 64"),
    "deep objects": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
    "half a letter": (rb'{"a": "\ud800"}', "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_one_line(tmp_path: Path, name: str) -> None:
    """That names the file and what is wrong."""
    content, message = BAD[name]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.json: .*{message}") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_good_text_is_read() -> None:
    """With a byte order mark, brackets and NaN inside of text, 128-bit numbers, many flat lists."""
    assert parse_json(b'\xef\xbb\xbf{"a": "[[[NaN", "b": [1.5, null]}', "x") == {"a": "[[[NaN", "b": [1.5, None]}
    assert parse_json(b"[" + str(2**128 - 1).encode() + b"]", "x") == [2**128 - 1]
    assert parse_json(b"[1e-400, 0.1e2, " + b"9" * 40 + b"]", "x") == [0.0, 10.0, 10**40 - 1]
    assert parse_json(b'{"a": "%s", "b": 1.7976931348623157e308}' % (b"0e123" * 20), "x")["b"] == 1.7976931348623157e308
    assert parse_json(b"[" + b"[],{}," * 200 + b"1]", "x")[-1] == 1


def test_the_time_grows_with_the_length() -> None:
    """A key twice at the end of an object of many keys, and a text of many marks without an end: named at once.

    Either would take minutes if each key, or each mark, were compared with all others.
    """
    start = time.process_time()
    keys = ",".join(f'"{number}":0' for number in range(100_000))
    with pytest.raises(UserError, match="the key 'last' stands twice"):
        parse_json(f'{{{keys},"last":0,"last":0}}', "x")
    with pytest.raises(UserError, match="the key 'kkk.*' stands twice"):
        parse_json('{"%s":0,"%s":0}' % (("k" * 10**6,) * 2), "x")
    with pytest.raises(UserError, match="cannot be read: Unterminated string"):
        parse_json(b"[" * 60 + b"[]," * 60 + b'"' + rb"\"" * 400_000, "x")
    assert time.process_time() - start < 10


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, values and containers."""
    (tmp_path / "x.json").write_text('[1, 2, 3, [], [], "a"]')
    for limit, value in (("VALUES", 3), ("CONTAINERS", 2), ("STRINGS", 0)):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="more than"):
            patch.setattr(json_files, limit, value)
            read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="larger than 5 bytes"):
        read_bytes(tmp_path / "x.json", 5)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe without a writer, a device without an end and a directory are refused at once."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        for read in (read_json, sha256_file):
            with pytest.raises(UserError, match=rf"{name}: is no regular file"):
                read(tmp_path / name)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a\0b", "a\nb", "x" * 5000])
def test_a_manifest_names_files_below_it(name: str) -> None:
    """Any other name is refused."""
    with pytest.raises(UserError, match=r"m\.json: files: .*expected a name below the directory"):
        Manifest.from_json({"files": {name: {"bytes": 1, "sha256": ""}}}, "m.json")
