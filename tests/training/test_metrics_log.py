"""The log of a training: what a resumed one forgets, whatever a kill or a hand has left in the file."""

import math
import os
from pathlib import Path

import pytest

from maep.evaluation.reporting.curves import read_metrics
from maep.runtime.errors import UserError
from maep.training.metrics_log import LONGEST, MetricsLog, forget_after


def test_later_steps_and_a_cut_line_are_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a word, since a resumed training writes them again; a whole line that lacks its end stays."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 3, "loss": 2}\n{"step": 2}\n{"step": 1, "lo')
    forget_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1}\n{"step": 2}')
    forget_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "line",
    [b"{", b"7", b"null", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b'{"step": NaN}', b"\xff\xfe", b"[" * 99_999,
     b'{"step": 1, "step": 1}', b'{"step": 1' + b"0" * 500 + b"}", b"x" * (LONGEST + 9)],
    ids=lambda line: repr(line[:20]),
)  # fmt: skip
def test_what_is_no_line_of_it_is_dropped_and_named(
    line: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training goes on: its log is for people."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    forget_after(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert f"{path}: line 2: " in capsys.readouterr().out.replace("\n", "")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """It has no end, and nobody writes into it."""
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    with pytest.raises(UserError, match="is no regular file"):
        forget_after(path, 2)


def test_a_norm_that_is_not_finite_is_a_line_that_is_read(tmp_path: Path) -> None:
    """As fp16 has them in its first steps: kept by a resumed training, and no reason to refuse the report."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, tmp_path / "tensorboard", 0)
    for step, norm in enumerate((math.inf, math.nan, 0.5), 1):
        log.write({"step": step, "loss": 1.0, "gradient_norm": norm})
    log.close()
    forget_after(path, 3)
    assert [line["gradient_norm"] for line in read_metrics(path)] == [None, None, 0.5]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """The system names no file where nothing more can be appended; the log does."""
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0)
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115  (closed with the log)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        log.write({"step": 1, "loss": 1.0})
    log.close()
