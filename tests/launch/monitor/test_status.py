"""What is read from Slurm's answers and from the run directory."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from maep.cli.slurm import _await
from maep.config.load import load_settings
from maep.launch.cluster.job_memory import JobMemory
from maep.launch.cluster.job_records import JobRecord, find_run, read_records, write_record
from maep.launch.cluster.slurm_client import JobState, fields_of, is_forgotten, seconds_of
from maep.launch.job.attempts import Outcome
from maep.launch.monitor.failures import failures_of, first_killed, shorten
from maep.launch.monitor.logs import show_logs
from maep.launch.monitor.screen import duration
from maep.launch.monitor.stage_progress import last_lines, progress_of
from maep.launch.monitor.status import StageStatus, follow, print_status, render, restarts_of
from maep.pipeline.stage_records import StageRecord
from maep.runtime.errors import UserError

LINE = (
    "JobId=12 ArrayJobId=10 ArrayTaskId=2 JobName=a b=c-pretrain UserId=me(1) JobState=PENDING Reason=Resources "
    "Dependency=(null) Restarts=3 RunTime=1-02:03:04 NodeList=n[1-4] BatchHost=n1 Command=/my runs/x.sh "
    "ReqB:S:C:T=0:0:*:* Power="
)
TRACEBACK = """\
Traceback (most recent call last):
  File "/runs/x/code/abc/launch/task.py", line 1, in __call__
    self._run()
  File "/runs/x/code/abc/maep/training/loop.py", line 2, in run
    self._step()
    ~~~~~~~~~~^^
  File "/runs/x/code/abc/maep/training/distributed.py", line 3, in agree
    dist.all_reduce(tensor)
  File "/usr/lib/python3/torch/wrapper.py", line 4, in wrapper
    return func()
  File "/usr/lib/python3/torch/c10d.py", line 5, in all_reduce
    work.wait()
RuntimeError: gone
"""


def test_fields_may_hold_blanks() -> None:
    """A path with a blank, an empty value, a name with colons, a job name with `=`."""
    fields = fields_of(LINE)
    assert fields["Command"] == "/my runs/x.sh"
    assert fields["Power"] == ""
    assert fields["JobState"] == "PENDING"
    assert fields["JobName"] == "a b=c-pretrain"


@pytest.mark.parametrize(("text", "seconds"), [("1-02:03:04", 93784), ("00:10", 10), ("01:00:00", 3600), ("N/A", 0)])
def test_seconds_of_slurms_times(text: str, seconds: int) -> None:
    """Days, hours, minutes; what is not known is 0."""
    assert seconds_of(text) == seconds


def test_why_a_job_waits_is_explained() -> None:
    """Slurm's word, and what it means; nothing for a job that runs."""
    waits = JobState("1", "PENDING", "Resources", "", "", 0, 0).waits
    assert waits == "Resources (waits for nodes to become free)"
    assert JobState("1", "PENDING", "SomethingNew", "", "", 0, 0).waits == "SomethingNew"
    assert JobState("1", "RUNNING", "None", "n1", "", 0, 5).waits == ""


def test_traceback_keeps_our_frames_and_the_last() -> None:
    """Two frames of the run's own code, the innermost of all, and none of the marks below them."""
    assert [line.strip() for line in shorten(TRACEBACK)] == [
        'File "/runs/x/code/abc/maep/training/loop.py", line 2, in run', "self._step()",
        'File "/runs/x/code/abc/maep/training/distributed.py", line 3, in agree', "dist.all_reduce(tensor)",
        'File "/usr/lib/python3/torch/c10d.py", line 5, in all_reduce', "work.wait()",
    ]  # fmt: skip


@pytest.fixture
def record(tmp_path: Path) -> JobRecord:
    """A submitted training job of a run in `tmp_path`."""
    submitted = JobRecord("77", "pretrain", "ranks", 1, (2, 4), 1, 0, submitted=1.0)
    write_record(tmp_path, submitted)
    return submitted


def write_exits(run: Path, attempt: int, kinds: dict[int, Outcome], decided: Outcome, *, requeued: bool = True) -> None:
    """How some ranks ended, and the decision after them."""
    exits = run / "jobs" / "pretrain" / "exits" / "77"
    exits.mkdir(parents=True, exist_ok=True)
    for rank, kind in kinds.items():
        facts = {"rank": rank, "node": f"n{rank + 1}", "kind": kind, "code": 1, "error": f"error of {rank}",
                 "traceback": TRACEBACK, "time": rank}  # fmt: skip
        (exits / f"attempt-{attempt:03d}-rank-{rank:04d}.json").write_text(json.dumps(facts))
    with (exits / "attempts.jsonl").open("a") as file:
        line = {"attempt": attempt, "code": 1, "requeued": requeued, "kind": decided, "reason": "why", "time": attempt}
        file.write(json.dumps(line) + "\n")


def test_the_rank_that_failed_is_shown_not_those_that_lost_it(tmp_path: Path, record: JobRecord) -> None:
    """Of four ranks, three lost the fourth: only its error is shown, with node, life and path."""
    write_exits(tmp_path, 0, {0: Outcome.STOPPED, 1: Outcome.STOPPED}, Outcome.STOPPED)
    write_exits(
        tmp_path,
        1,
        {0: Outcome.PEER_LOST, 1: Outcome.PEER_LOST, 2: Outcome.PEER_LOST, 3: Outcome.CRASHED},
        Outcome.CRASHED,
    )
    (failure,) = failures_of(tmp_path, record, [], pytest.fail)
    assert failure.startswith("pretrain: job 77, attempt 1, rank 3 on n4: error of 3\n")
    assert failure.endswith("exits/77/attempt-001-rank-0003.json")
    assert restarts_of(tmp_path, record, [], pytest.fail) == "2 (1 stopped, 1 crashed)"


def test_the_first_exit_is_shown_first(tmp_path: Path, record: JobRecord) -> None:
    """By when they were written, on the one clock of the disk: that of node n4 is hours behind."""
    write_exits(tmp_path, 0, dict.fromkeys((3, 1, 2), Outcome.CRASHED), Outcome.CRASHED)
    for second, rank in enumerate((3, 1, 2)):
        path = tmp_path / "jobs" / "pretrain" / "exits" / "77" / f"attempt-000-rank-{rank:04d}.json"
        os.utime(path, (1000 + second, 1000 + second))
        path.write_text(path.read_text().replace(f'"time": {rank}', f'"time": {-9000 if rank == 2 else 1}'))
        os.utime(path, (1000 + second, 1000 + second))
    failures = failures_of(tmp_path, record, [], pytest.fail)
    assert [line.split("error of ")[1][0] for line in failures] == ["3", "1", "2"]


def test_a_killed_rank_is_found_in_sruns_words(tmp_path: Path, record: JobRecord) -> None:
    """A rank that could not write is named from the log; the attempt before it does not count."""
    log = tmp_path / "jobs" / "pretrain" / "77_0_log.out"
    log.write_text(
        "srun: error: n1: task 0: Killed\njob 77, attempt 0: is requeued: x\nsrun: error: n4: task 3: Killed\n"
        "srun: error: n2: task 1: Killed\njob 77, attempt 1: is not requeued: y\n"
    )
    write_exits(tmp_path, 1, {0: Outcome.PEER_LOST}, Outcome.CRASHED, requeued=False)
    assert first_killed(log, 1) == "rank 3 on n4 was killed (Killed)"
    assert "rank 3 on n4 was killed" in failures_of(tmp_path, record, [], pytest.fail)[0]


def test_bad_input_is_shown(tmp_path: Path, record: JobRecord) -> None:
    """A final error of one rank; and one that only the batch script could tell."""
    write_exits(tmp_path, 0, {2: Outcome.FINAL}, Outcome.FINAL, requeued=False)
    assert "rank 2 on n3: error of 2" in failures_of(tmp_path, record, [], pytest.fail)[0]
    write_exits(tmp_path, 1, {}, Outcome.FINAL, requeued=False)
    assert "attempt 1: why" in failures_of(tmp_path, record, [], pytest.fail)[0]


def test_a_log_that_could_not_be_opened_names_the_node(tmp_path: Path, record: JobRecord) -> None:
    """Slurm's code 0:53 means that the batch script never began."""
    state = JobState("77", "FAILED", "NonZeroExitCode", "n3", "0:53", 0, 0)
    assert "node n3 cannot open its log" in failures_of(tmp_path, record, [state], pytest.fail)[0]


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"format": 99}'])
def test_damaged_records_are_one_line_each(
    tmp_path: Path, record: JobRecord, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Of a job, a stage, a rank's exit and an attempt: each is named once, and the rest of the status is there."""
    write_exits(tmp_path, 0, {0: Outcome.CRASHED}, Outcome.CRASHED)
    exits = tmp_path / "jobs" / "pretrain" / "exits" / "77"
    damaged = [
        tmp_path / "jobs" / "evaluate" / "78.json", tmp_path / "stages" / "attack.json",
        exits / "attempt-000-rank-0001.json",
    ]  # fmt: skip
    for path in damaged:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with (exits / "attempts.jsonl").open("a") as file:
        file.write(f"{text}\n")
    print_status(tmp_path)
    page = capsys.readouterr().out.replace("\n", "")
    for path in [*damaged, exits / "attempts.jsonl"]:
        complaints = page.count(f"left out: {path}")
        assert complaints == (0 if path.parent.name == "stages" and text == "{}" else 1), page
    assert "error of 0" in page


def test_workers_are_counted_by_state(record: JobRecord) -> None:
    """An array is one row."""
    states = [JobState(f"77_{i}", state, "", "", "", 0, 0) for i, state in enumerate(["RUNNING", "RUNNING", "FAILED"])]
    row = StageStatus("attack", False, record, states, None, "", [])
    assert row.state == "2 RUNNING, 1 FAILED"
    assert (row.ended, row.failed) == (False, False)


@pytest.mark.parametrize(("state", "shown"), [("FAILED", True), ("COMPLETED", False)])
def test_errors_of_a_failed_job_are_shown_though_an_older_one_finished(
    tmp_path: Path, record: JobRecord, state: str, shown: bool
) -> None:
    """An older record may say finished; what ended the newest job is told, unless that went well in the end."""
    row = StageStatus(
        "pretrain", True, record, [JobState("77", state, "", "n3", "66:0", 0, 1)], None, "", ["the error"]
    )
    page = Console(file=io.StringIO(), width=100)
    page.print(render(tmp_path, [row]))
    assert ("the error" in page.file.getvalue()) is shown  # type: ignore[attr-defined]


def test_progress_of_a_training(tmp_path: Path, problem: object) -> None:
    """Steps from the last whole line, time left from the recent steps' median; a line being written is left out."""
    from tests.tiny import Problem

    assert isinstance(problem, Problem)
    settings = load_settings("digits", problem.arguments(tmp_path)[1:])
    metrics = [json.dumps({"step": step, "step_seconds": 2.0}) for step in range(1, 11)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(metrics) + '\n{"step": 11, "st')
    progress = progress_of("pretrain", settings)
    assert progress is not None
    assert (progress.done, progress.total, progress.remaining) == (10, 30, 40.0)
    attack = progress_of("attack", settings)
    assert attack is not None
    assert (attack.done, attack.total) == (4, 4)
    assert last_lines(tmp_path / "missing") == []
    others = ["7", "[1]", "{", '{"step": 12}', '{"step": "12", "step_seconds": 1}', '{"step": NaN, "step_seconds": 1}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*metrics, *others]) + "\n")
    assert progress_of("pretrain", settings) == progress


def test_logs_of_a_rank_and_of_workers(tmp_path: Path, record: JobRecord) -> None:
    """The rank asked for, its last lines; a rank that is not there is told with those that are."""
    folder = tmp_path / "jobs" / "pretrain"
    for rank in range(2):
        (folder / f"77_{rank}_log.out").write_text("\n".join(f"line {i} of {rank}" for i in range(9)))
    assert list(show_logs(tmp_path, None, 1, None, 2))[1:] == ["line 7 of 1", "line 8 of 1"]
    with pytest.raises(UserError, match="77_1_log.out"):
        list(show_logs(tmp_path, "pretrain", 5, None, 2))
    with pytest.raises(UserError, match="did you mean pretrain"):
        list(show_logs(tmp_path, "pretrian", 0, None, 2))


def test_find_run(tmp_path: Path, record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a name below runs/, and a name that is not there with the nearest one."""
    assert find_run(str(tmp_path)) == tmp_path
    (tmp_path / "here" / "runs" / "digits").mkdir(parents=True)
    os.symlink(tmp_path / "jobs", tmp_path / "here" / "runs" / "digits" / "jobs")
    monkeypatch.chdir(tmp_path / "here")
    assert find_run("digits") == Path("runs/digits")
    with pytest.raises(UserError, match="did you mean digits"):
        find_run("digit")
    assert [job.job for job in read_records(find_run("digits"))] == ["77"]


def test_durations() -> None:
    """As Slurm writes them."""
    assert [duration(s) for s in (5, 3725, 200_000)] == ["00:00:05", "01:02:05", "2-07:33:20"]


SCONTROL = """#!/bin/sh
for job; do :; done
if [ -e "$0.$job" ]; then
  /bin/cat "$0.$job"
else
  echo "slurm_load_jobs error: ${SAYS:-Invalid job id specified}" >&2
  exit 1
fi
"""


@pytest.fixture
def slurm_without_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A controller that forgets jobs, and no sacct: a job that it knows is a file beside it. Nobody may wait."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(SCONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    for module in ("maep.launch.monitor.status", "maep.cli.slurm"):
        monkeypatch.setattr(f"{module}.time.sleep", lambda _: pytest.fail("waits on"))
    return program


def knows(program: Path, job: str, state: str) -> None:
    Path(f"{program}.{job}").write_text(f"JobId={job} JobState={state} Reason=None Restarts=0 RunTime=00:00:09\n")


def test_a_job_that_slurm_has_forgotten_is_not_waited_for(tmp_path: Path, slurm_without_accounting: Path) -> None:
    """Without accounting the controller forgets the first stage's job while the last one's runs: its record tells."""
    stages = (("7", "shards"), ("8", "report"))
    records = [JobRecord(job, stage, "single", 1, (1, 1), 1, 0, submitted=float(job)) for job, stage in stages]
    for record in records:
        write_record(tmp_path, record)
    knows(slurm_without_accounting, "8", "COMPLETED")
    assert follow(tmp_path, records, JobMemory()) == 1, "nothing says that the shards were made"
    StageRecord(finished=True, identity="x").write(tmp_path / "stages" / "shards.json")
    assert follow(tmp_path, records, JobMemory()) == 0
    knows(slurm_without_accounting, "8", "FAILED")
    assert follow(tmp_path, records, JobMemory()) == 1
    (tmp_path / "jobs" / "report" / "8.json").write_text("{")
    assert follow(tmp_path, records, JobMemory()) == 1, "its record is damaged, the job is the same"


def test_a_controller_that_does_not_answer_has_forgotten_nothing(
    slurm_without_accounting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is restarted, and will know the job again: that is waited for."""
    assert is_forgotten("9")
    monkeypatch.setenv("SAYS", "Unable to contact slurm controller (connect failure)")
    assert not is_forgotten("9")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "no Slurm on this machine: scontrol is not on PATH; how jobs stand is not known here"),
        ("echo 'Slurmctld(primary) at head is DOWN'; exit 1", "Slurm does not answer: Slurmctld(primary) at head is"),
    ],
)
def test_where_slurm_cannot_be_asked_its_silence_is_said(
    answer: str | None,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Status is read from anywhere, such as a workstation; of what is finished nothing is asked."""
    bin = tmp_path / "bin"
    bin.mkdir()
    if answer is not None:
        (bin / "scontrol").write_text(f"#!/bin/sh\n{answer}\n")
        (bin / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin))
    write_record(tmp_path, JobRecord("7", "shards", "single", 1, (1, 1), 1, 0, submitted=0.0))
    print_status(tmp_path)
    assert problem in " ".join(capsys.readouterr().out.split())
    StageRecord(finished=True, identity="x").write(tmp_path / "stages" / "shards.json")
    print_status(tmp_path)
    assert problem not in " ".join(capsys.readouterr().out.split())


def test_a_sweep_that_slurm_has_forgotten_is_not_waited_for(slurm_without_accounting: Path) -> None:
    """It ended, and how is not known: that is no success unless its points are finished."""
    array = JobRecord("9", "points", "array", 1, (1, 1), 1, 0)
    assert _await(array, JobMemory(), lambda: False) == 1
    assert _await(array, JobMemory(), lambda: True) == 0
    knows(slurm_without_accounting, "9", "COMPLETED")
    assert _await(array, JobMemory(), lambda: False) == 0
