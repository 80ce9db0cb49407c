"""A compile that fails ends no training: it is said, once, and the module runs as it is, in training, too."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

from maep.evaluation.reporting.curves import read_curves
from maep.evaluation.reporting.report import _notes_on_compiling
from maep.runtime.compiling import compile_in_place
from maep.training.metrics_log import UNCOMPILED
from tests.tiny import Problem


class Doubling(nn.Module):
    """Twice its input, or an error of its own."""

    def forward(self, values: Tensor) -> Tensor:
        if len(values) > 3:
            raise ValueError("too many")
        return 2 * values


def fails(graph: Any, inputs: Any) -> NoReturn:
    """A backend on a machine without a compiler."""
    raise RuntimeError("g++ was not found")


def test_a_compile_that_fails_is_said_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """With the setting and the reason, in one line, once; what compiles is compiled, and errors stay errors."""
    module = Doubling()
    compiled = compile_in_place(module, "compute.compile", backend=fails)  # type: ignore[arg-type]
    for _ in range(2):
        assert module(torch.ones(2)).tolist() == [2, 2]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: compute.compile=true: torch.compile failed (")
    assert "g++ was not found" in line
    assert compiled.has_failed
    other = Doubling()
    works = compile_in_place(other, "compute.compile", backend="eager")
    assert other(torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(ValueError, match="too many"):
        other(torch.ones(4))
    assert not works.has_failed


def test_a_training_says_that_it_was_not_compiled(
    problem: Problem, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any C++ compiler it ends well, its log has the mark, and the report says so of it alone."""
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(run_dir / "inductor"))
    more = ("compute.compile=true", "compute.device=cpu", "pretrain.steps=3", "pretrain.mask_until=1")
    done = problem.run("pretrain", run_dir, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compute.compile=true: torch.compile failed (" in " ".join(done.stdout.split())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line[UNCOMPILED] for line in lines] == [1, 1, 1]
    (note,) = _notes_on_compiling(read_curves(run_dir))
    assert note.startswith("pretraining: torch.compile failed")
    assert list(_notes_on_compiling({"finetuning": [{"step": 1, "loss": 1.0}]})) == []
