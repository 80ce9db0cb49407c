"""The front page: short enough to be read to its end, and its examples run as they are printed."""

import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.small import Blur, digits, train_small

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
README_BYTES = 10_000  # what a visitor reads in a few minutes


def test_front_page_is_short() -> None:
    """It is read to its end."""
    assert len(README.encode()) <= README_BYTES


def code_blocks(language: str) -> list[str]:
    """The blocks of a language on the front page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_ten_lines_judge_a_defense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    """The first example runs as it is printed, only on fewer queries, and prints a line a threat model."""
    monkeypatch.chdir(tmp_path)
    images, labels = digits()
    source = code_blocks("python")[0]
    assert len([line for line in source.splitlines() if line and not line.startswith("#")]) <= 10
    quick = source.replace(
        "eps=[8 / 255]", "eps=[8 / 255], blackbox_attacks=['square-20'], check_images=2, figure_images=1"
    )
    assert quick != source
    names = {"purifier": Blur(), "classifier": train_small(), "images": images[:12], "labels": labels[:12]}
    exec(quick, names)
    printed = capsys.readouterr().out
    for threat_model in ("oblivious", "bpda", "adaptive", "adaptive-eot"):
        assert f"\n{threat_model} pgd-20: " in f"\n{printed}"
    assert "blackbox square-20: " in printed
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_second_example_loads_a_purifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a run directory in the place that it names."""
    with tarfile.open(ROOT / "tests" / "formats" / "0" / "artefacts.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"classifier": nn.Identity()}
    exec(code_blocks("python")[1], names)
    images = digits()[0][:2]
    assert names["model"](images).shape == images.shape
