"""Worker processes follow the cores of the task, not the machine's."""

import os
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.runtime import cores
from maep.runtime.cores import MOST_WORKERS, task_cores, worker_count


@pytest.fixture(autouse=True)
def _many_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that may use 64 cores, without Slurm, launcher or container."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)))
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    for name in ("SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_number_is_taken_as_it_is() -> None:
    """Also 0; the default is a number, so that no earlier configuration changes."""
    assert [worker_count(number) for number in (0, 2, 99)] == [0, 2, 99]
    assert load_settings("digits").data.workers == 2
    assert load_settings("digits", ["data.workers=null"]).data.workers is None
    assert load_settings("cifar10").data.workers is None


@pytest.mark.parametrize(("given", "quota", "expected"), [("", "", 64), ("12", "", 12), ("12", "500000 100000", 5)])
def test_the_narrowest_share_counts(
    given: str, quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of affinity, Slurm's cores a task and a container's quota; a quota of `max` is none."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    (tmp_path / "cpu.max").write_text(quota or "max 100000")
    assert task_cores() == expected
    assert worker_count(None) == min(expected - 1, MOST_WORKERS)


def test_ranks_that_share_cores_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks on 64 cores have seven workers each; there is always one."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert worker_count(None) == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert worker_count(None) == 1
