"""The copy of the code: whole, of the sources alone, and guarded against change."""

import shutil
from pathlib import Path

import pytest

from maep.launch.submission.code_snapshot import check_code, code_files, copy_code, mark_as_last
from maep.runtime.errors import UserError
from maep.storage.sealed import problem_with
from tests.tiny import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout to edit."""
    root = tmp_path / "checkout"
    for name in (
        "maep/launch/job/block_signals.py", "maep/runtime/errors.py", "maep/evaluation/reporting/page.html",
        "configs/digits.yaml",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "maep" / "runtime" / "__pycache__").mkdir()
    (root / "maep" / "runtime" / "__pycache__" / "errors.cpython-311.pyc").touch()
    return root


def test_copy_is_whole_and_sealed(checkout: Path, tmp_path: Path) -> None:
    """All sources and nothing else, under a name that follows from their content."""
    copy = copy_code(tmp_path / "run", checkout)
    assert problem_with(copy) is None
    assert {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()} == {
        *code_files(checkout),
        "manifest.json",
    }
    assert "maep/evaluation/reporting/page.html" in code_files(checkout)
    assert not list(copy.rglob("*.pyc"))
    assert copy_code(tmp_path / "run", checkout) == copy


def test_damaged_copy_is_made_again(checkout: Path, tmp_path: Path) -> None:
    """A file that was altered in the copy is not what jobs run."""
    copy = copy_code(tmp_path / "run", checkout)
    (copy / "maep" / "runtime" / "errors.py").write_text("raise SystemExit\n")
    assert problem_with(copy_code(tmp_path / "run", checkout)) is None


def test_changed_code_is_refused_unless_allowed(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The changed file is named; allowed, it is said; and the last copy counts, not the first."""
    run = tmp_path / "run"
    check_code(run, allowed=False, root=checkout)
    first = copy_code(run, checkout)
    mark_as_last(first)
    check_code(run, allowed=False, root=checkout)
    (checkout / "maep" / "runtime" / "errors.py").write_text("# edited\n")
    with pytest.raises(UserError, match=r"maep/runtime/errors\.py.*--allow-code-change"):
        check_code(run, allowed=False, root=checkout)
    check_code(run, allowed=True, root=checkout)
    assert "maep/runtime/errors.py" in capsys.readouterr().out
    mark_as_last(copy_code(run, checkout))
    check_code(run, allowed=False, root=checkout)


def test_copy_of_this_checkout_has_what_jobs_import(tmp_path: Path) -> None:
    """The parts that a job needs are there."""
    names = code_files()
    for name in (
        "maep/pipeline/stages.py", "maep/launch/rank/task.py", "maep/launch/job/requeue.py",
        "configs/cluster/default.yaml",
    ):  # fmt: skip
        assert name in names
