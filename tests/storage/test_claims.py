"""Claims: one worker a unit, also among many takers at once; a dead worker's units go to the living ones."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from maep.runtime.errors import UserError
from maep.runtime.process_identity import this_process
from maep.storage.claims import Claims, this_worker

TIMEOUT = 1.5
FORK = get_context("fork")


def started(work: Callable[..., None], *arguments: object) -> BaseProcess:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def hold_forever(directory: Path) -> None:
    with Claims(directory, TIMEOUT) as claims, claims.hold("a") as mine:
        (directory / "holds").write_text(str(mine))
        signal.pause()


def test_a_living_holder_keeps_its_unit_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    """Refreshed claims are never taken over; after SIGKILL of its holder one is, once, and it is named meanwhile."""
    process = started(hold_forever, tmp_path)
    wait_for(tmp_path / "holds")
    with Claims(tmp_path, TIMEOUT) as claims:
        for _ in range(8):
            with claims.hold("a") as mine:
                assert not mine
            time.sleep(TIMEOUT / 4)
        assert f"process {process.pid} on " in (claims.holder("a") or "")
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert list(claims.shared(["a"], lambda _: False)) == ["a"]
        assert claims.holder("a") is None
    assert list(tmp_path.glob("a*")) == []


@pytest.mark.parametrize(
    ("job", "array", "task", "named"),
    [("7", None, None, ", job 7"), ("9", "7", "2", ", job 7_2"), ("7", "7", "3", ", job 7_3"), (None, None, None, "")],
)
def test_a_worker_of_an_array_is_named(
    job: str | None, array: str | None, task: str | None, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the array and its number: the last one's own id is the array's, which is that of all of them."""
    for name, value in (("JOB_ID", job), ("ARRAY_JOB_ID", array), ("ARRAY_TASK_ID", task)):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
        if value is not None:
            monkeypatch.setenv(f"SLURM_{name}", value)
    assert this_worker() == f"process {os.getpid()} on {socket.gethostname()}{named} [{this_process()}]"


def test_what_is_no_claim_is_none(tmp_path: Path) -> None:
    """Whatever else lies there under such a name; a claim of bytes that are no text is taken over when it is old."""
    (tmp_path / "a.claim-x").write_text("?")
    (tmp_path / "a.claim-").write_text("?")
    (tmp_path / "a.claim-0").write_bytes(b"\xff\xfe")
    os.utime(tmp_path / "a.claim-0", (1, 1))
    with Claims(tmp_path, TIMEOUT) as claims, claims.hold("a") as mine:
        assert mine
        assert (claims.holder("a") or "").startswith("process ")


def hold_for_long(directory: Path) -> None:
    with Claims(directory, 600.0) as claims, claims.hold("a") as mine:
        (directory / "holds").write_text(str(mine))
        signal.pause()


def test_a_unit_of_a_process_that_ended_on_this_host_is_free_at_once(tmp_path: Path) -> None:
    """However long the timeout: the command started again after a SIGKILL need not wait for it."""
    process = started(hold_for_long, tmp_path)
    wait_for(tmp_path / "holds")
    with Claims(tmp_path, 600.0) as claims:
        with claims.hold("a") as mine:
            assert not mine
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        with claims.hold("a") as mine:
            assert mine


IN_CONTAINER = """\
import sys, time
from pathlib import Path
from maep.storage.claims import Claims
from maep.storage.atomic import temporary_name
directory = Path(sys.argv[1])
with Claims(directory, 600.0) as claims, claims.hold("a"):
    temporary_name(directory / "b").touch()
    (directory / "holds").touch()
    time.sleep(600)
"""


def test_a_host_of_the_same_name_is_another(tmp_path: Path) -> None:
    """What a living process of a PID namespace of its own has claimed and writes, under this host's name, stays.

    Its number, 1, is there that of a process which here is another one; once there is none of that number either.
    """
    namespaces = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child=KILL"]
    if subprocess.run([*namespaces, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs PID namespaces")
    container = subprocess.Popen([*namespaces, sys.executable, "-c", IN_CONTAINER, str(tmp_path)])
    try:
        wait_for(tmp_path / "holds")
        (claim,) = tmp_path.glob("a.claim-*")
        assert f"process 1 on {socket.gethostname()}" in claim.read_text()
        claim.write_text(claim.read_text().replace("process 1 ", "process 999999999 ").replace("[1-", "[999999999-"))
        with Claims(tmp_path, 600.0) as claims, claims.hold("a") as mine:
            assert not mine
            assert len(list(tmp_path.glob(".tmp-b-*"))) == 1
    finally:
        container.kill()
        container.wait()


def test_a_claim_of_an_earlier_version_waits_for_its_time(tmp_path: Path) -> None:
    """It names a host and a number alone, which another host may have too; it is taken over when it is old."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with Claims(tmp_path, 600.0) as claims:
        claim = tmp_path / "a.claim-0"
        claim.write_text(f"process {dead.pid} on {socket.gethostname()}, job 7")
        with claims.hold("a") as mine:
            assert not mine
        os.utime(claim, (1, 1))
        with claims.hold("a") as mine:
            assert mine


def take(directory: Path, name: str, barrier: object, answers: object) -> None:
    with Claims(directory, TIMEOUT, name) as claims:
        for number in range(20):
            barrier.wait()  # type: ignore[attr-defined]
            with claims.hold(f"unit-{number}") as mine:
                answers.put((number, mine))  # type: ignore[attr-defined]
                barrier.wait()  # type: ignore[attr-defined]


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_takers_one_gets_it(tmp_path: Path, stale: bool) -> None:
    """Six processes want the same unit at the same moment, free or left by a dead worker: one of them gets it."""
    for number in range(20 if stale else 0):
        left = tmp_path / f"unit-{number}.claim-0"
        left.touch()
        os.utime(left, (1, 1))
    barrier, answers = FORK.Barrier(6), FORK.Queue()
    processes = [started(take, tmp_path, str(name), barrier, answers) for name in range(6)]
    given = [answers.get(timeout=20) for _ in range(120)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(number for number, mine in given if mine) == list(range(20))
    assert list(tmp_path.iterdir()) == []


def work_on(directory: Path, first: int, die_in: str) -> None:
    units = [f"u{number % 12:02d}" for number in range(first, first + 12)]
    with Claims(directory / "claims", TIMEOUT) as claims:
        for number, unit in enumerate(claims.shared(units, lambda unit: (directory / unit).exists())):
            (directory / f"began-{number}-{first}").touch()
            while number < 2 and len(list(directory.glob(f"began-{number}-*"))) < 3:
                time.sleep(0.01)  # however late it is started, each worker gets its first two units
            if unit == die_in:
                os.kill(os.getpid(), signal.SIGKILL)
            with (directory / unit).open("a") as file:
                file.write(f"{first}\n")


def test_workers_share_units_and_redo_a_dead_ones(tmp_path: Path) -> None:
    """Three workers, one of them killed inside a unit: every unit is done, each by one worker."""
    processes = [started(work_on, tmp_path, first, die_in) for first, die_in in ((0, ""), (4, "u05"), (8, ""))]
    for process in processes:
        process.join()
    assert sorted(process.exitcode or 0 for process in processes) == [-signal.SIGKILL, 0, 0]
    workers = {path.name: path.read_text().split() for path in tmp_path.glob("u*")}
    assert sorted(workers) == [f"u{number:02d}" for number in range(12)]
    assert all(len(by) == 1 for by in workers.values())
    assert len({by[0] for by in workers.values()}) == 3
    assert workers["u05"] != ["4"]


def test_a_living_workers_unit_is_left_to_it(tmp_path: Path) -> None:
    """A worker that finds only a unit that another holds and refreshes ends without it."""
    process = started(hold_forever, tmp_path)
    wait_for(tmp_path / "holds")
    with Claims(tmp_path, TIMEOUT) as claims:
        assert list(claims.shared(["a", "b"], lambda _: False)) == ["b"]
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def test_claims_are_given_back(tmp_path: Path) -> None:
    """A unit is free again after its block, after an exception in it, and after a worker stopped between units."""
    with Claims(tmp_path, TIMEOUT) as first, Claims(tmp_path, TIMEOUT, "second") as second:
        with pytest.raises(RuntimeError), first.hold("a") as mine:
            assert mine
            with second.hold("a") as theirs:
                assert not theirs
            raise RuntimeError
        with second.hold("a") as theirs:
            assert theirs
            assert first.holder("a") == "second"
    with Claims(tmp_path, TIMEOUT) as claims:
        units = claims.shared(["a", "b"], lambda _: False)
        assert next(units) == "a"
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_holder_does_not_free_what_others_took(tmp_path: Path) -> None:
    """Whoever slept through a takeover gives back its own claim only."""
    with Claims(tmp_path, 1000) as frozen, Claims(tmp_path, 1000) as other:
        with frozen.hold("a") as mine:
            assert mine
            os.utime(tmp_path / "a.claim-0", (1, 1))
            taken = other.hold("a")
            assert taken.__enter__()
        assert [path.name for path in tmp_path.glob("a.*")] == ["a.claim-1"]
        with frozen.hold("a") as mine:
            assert not mine
        taken.__exit__(None, None, None)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """One line that names the directory."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/claims: cannot be written"), Claims(tmp_path / "file" / "claims", 1):
        pass


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_that_was_set_does_not_keep_a_dead_workers_unit(tmp_path: Path, hours: int) -> None:
    """A claim from hours before or to come, by the file system's clock, is not refreshed: it is taken over."""
    with Claims(tmp_path, 600.0) as claims:
        claim = tmp_path / "a.claim-0"
        claim.write_text("process 1 on another-host")
        os.utime(claim, (time.time() + 3600 * hours,) * 2)
        with claims.hold("a") as is_held:
            assert is_held


def test_the_clock_of_this_machine_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far it is off: a claim that was just refreshed is another's."""
    now = time.time()
    with Claims(tmp_path, 600.0) as claims:
        (tmp_path / "a.claim-0").write_text("process 1 on another-host")
        for shifted in (now - 1e5, now + 1e5):
            monkeypatch.setattr(time, "time", lambda shifted=shifted: shifted)
            with claims.hold("a") as is_held:
                assert not is_held
