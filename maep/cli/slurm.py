"""Run the pipeline on a SLURM cluster, a job a stage.

    maep slurm --nodes 4 cfg=imagenet [stage=…]         submit what is left to do, and return
    maep slurm --dry-run --nodes 4 cfg=imagenet         print the batch scripts, what they may cost, and
                                                        what was understood of the images
    maep slurm --plan --nodes 1,4,16 cfg=imagenet       what it would take, on paper [--bench PATH]
    maep slurm cfg=ablation/table15 [--scale cpu]       a sweep: an array of workers that share its points;
                                                        --dry-run shows them, and what they share
    maep slurm status|cancel|logs RUN                   RUN: a run directory, or a name below runs/

From a checkout also `python launch/slurm.py …`.

What it adds to the run directory:

    code/HASH/                         the code that jobs execute: a copy, so that editing the checkout changes nothing
    jobs/config-HASH.yaml              the settings as submitted
    jobs/STAGE/ID.json                 one submitted job or array: size, what it waits for, code, settings
    jobs/STAGE/ID[_WORKER]_RANK_log.out    output of a process, that of all its attempts one after the other
    jobs/STAGE/ID_submission.sh, *.pkl     Submitit's: the batch script, and the task; nothing reads state from these
    jobs/STAGE/exits/ID[_WORKER]/attempt-AAA-rank-RRRR.json    how a process ended badly: kind, error, traceback, node
    jobs/STAGE/exits/ID[_WORKER]/attempts.jsonl                what was decided after each attempt: requeued, or not
"""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.table import Table

from maep.ablation.grid.sweep import is_sweep
from maep.config.command_line import Parser, refuse_unheeded, split_arguments
from maep.config.load import load_settings, sweep_names
from maep.config.schema import Settings
from maep.launch.cluster.job_memory import JobMemory
from maep.launch.cluster.job_records import JobRecord, find_run, live_jobs
from maep.launch.cluster.jobs import KINDS, POINTS, Job
from maep.launch.cluster.partition_nodes import fit_to_nodes, unfitted
from maep.launch.cluster.settings import Cluster, add_options, read_cluster
from maep.launch.cluster.slurm_client import cancel, job_states, require_slurm
from maep.launch.command_name import command_name
from maep.launch.job.attempts import warn
from maep.launch.monitor.logs import show_logs
from maep.launch.monitor.preemption import cancelled_by_preemption
from maep.launch.monitor.status import follow, job_text, print_status, print_submitted
from maep.pipeline.unread_settings import say_unread
from maep.runtime.console import console, say
from maep.runtime.errors import UserError, fail
from maep.runtime.exits import ExitCode
from maep.runtime.text import printable

SETTLE = 4.0  # seconds: Slurm's scheduler says within two passes, of a second or two, why a job does not start
SETTLE_POLL = 0.2  # seconds: a person waits for this
POLL = 2.0  # seconds: for hours, of a controller that all share


def main(arguments: Sequence[str]) -> int:
    """Dispatch on the verb; exit code 2 for bad input, with --wait 1 if a job failed."""
    verbs: dict[str, Callable[[Sequence[str]], int]] = {"status": _status, "cancel": _cancel, "logs": _logs}
    if arguments and arguments[0] in verbs:
        return verbs[arguments[0]](arguments[1:])
    return _launch(arguments)


def _launch(words: Sequence[str]) -> int:
    options = argparse.ArgumentParser(add_help=False)
    add_options(options)
    options.add_argument("--grace", metavar="SECONDS", help="short for compute.grace=SECONDS")
    options.add_argument("--wait", action="store_true", help="follow the jobs until they end")
    options.add_argument("--dry-run", action="store_true", help="print the batch scripts and what they may cost")
    options.add_argument("--plan", action="store_true", help="what it takes, a training on --nodes N,N,…, on paper")
    options.add_argument("--bench", metavar="PATH", help="of --plan: measured rates, a bench.json of maep bench")
    options.add_argument(
        "--allow-code-change", action="store_true", help="go on with code that the run did not begin with"
    )
    options.add_argument("--scale", help="of a sweep: paper, or cpu for a small version of the table")
    stages = [word.partition("=")[2] for word in words if word.startswith("stage=")]
    words = [word for word in words if not word.startswith("stage=")]
    namespace, words = split_arguments(__doc__ or "", [*_joined(words), *_grace(words)], options=options)
    if not namespace.cfg:
        fail("cfg: name a configuration, such as cfg=imagenet")
    _check_together(options, namespace, stages)
    if is_sweep(namespace.cfg):
        return _launch_sweep(namespace, words, stages)
    if namespace.scale:
        fail(f"--scale: {namespace.cfg} is no sweep; choose one of {', '.join(sweep_names())}")
    settings = load_settings(namespace.cfg, words)
    say_unread(settings, namespace.cfg, words)
    if namespace.plan:
        from maep.launch.estimate.scaling_table import print_plan

        return print_plan(settings, namespace)
    stage = stages[-1] if stages else "all"
    if namespace.dry_run:
        from maep.launch.submission.submit import on_paper

        scripts = on_paper(settings, _cluster(namespace), stage)
        lines = _source_lines(settings, stage) if any(job.stage == "shards" for job, _ in scripts) else []
        _print_scripts(scripts)
        for line in lines:
            say(line)
        return 0
    require_slurm()
    cluster = _cluster(namespace)
    records = _submit(settings, cluster, stage, namespace)
    if not records or not namespace.wait:
        return 0
    run, memory = Path(settings.run.dir), JobMemory()
    code = _wait(run, partial(follow, run, records, memory))
    while code == ExitCode.FAILED and (preempted := cancelled_by_preemption(records, memory)):
        say(f"{', '.join(preempted)}: preempted and cancelled by Slurm; what is left is submitted again")
        records = _submit(settings, cluster, stage, namespace)
        code = _wait(run, partial(follow, run, records, memory)) if records else ExitCode.DONE
    return code


def _check_together(options: argparse.ArgumentParser, namespace: argparse.Namespace, stages: Sequence[str]) -> None:
    """Raise UserError for what would do nothing beside something else."""
    if namespace.plan:
        refuse_unheeded(options, namespace, "plan", heeded=("nodes", "bench"))
        if is_sweep(namespace.cfg):
            fail(f"--plan: {namespace.cfg} is a sweep; name the configuration of one of its points")
        if stages:
            fail(f"stage={stages[-1]}: does nothing beside --plan, which is of the whole run; leave one of the two out")
    elif namespace.bench:
        fail(f"--bench {namespace.bench}: is for --plan; give both, or neither")
    if namespace.dry_run:
        refuse_unheeded(options, namespace, "dry-run", unheeded=("wait", "allow-code-change"))


def _submit(settings: Settings, cluster: Cluster, stage: str, namespace: argparse.Namespace) -> list[JobRecord]:
    """Submit what is left of a run, and print it; [] if nothing is."""
    from maep.launch.submission.submit import submit

    run = Path(settings.run.dir)
    records = submit(settings, cluster, stage, allow_code_change=namespace.allow_code_change)
    if records:
        _settle(records)
        print_submitted(run, records)
        command = command_name("slurm")
        say(f"{command} status {run} · {command} logs {run} · {command} cancel {run}")
    return records


def _cluster(namespace: argparse.Namespace) -> Cluster:
    """What is asked of the cluster, fitted to its nodes where Slurm tells what they have; a --dry-run needs none."""
    cluster = read_cluster(namespace, [*KINDS, POINTS])
    try:
        if not namespace.dry_run or shutil.which("scontrol"):
            return fit_to_nodes(cluster, say)
    except UserError:
        if not namespace.dry_run or _answers():
            raise
    if assumed := unfitted(cluster):
        say(assumed)
    return cluster


def _answers() -> bool:
    """Whether there is a Slurm that answers."""
    try:
        require_slurm()
    except UserError:
        return False
    return True


def _joined(words: Sequence[str]) -> list[str]:
    """The words with `--sbatch KEY=VALUE` as one, so that it is not taken for a setting."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in ("--sbatch", "--srun"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _launch_sweep(namespace: argparse.Namespace, words: list[str], stages: Sequence[str]) -> int:
    """Submit what is left of a sweep, or with --dry-run show it."""
    if stages:
        fail("stage=: not for a sweep, whose points run every stage; leave it out")
    from maep.launch.monitor.sweep_status import print_sweep
    from maep.launch.submission.sweep_jobs import is_sweep_finished, preview_sweep, submit_sweep

    if namespace.dry_run:
        scripts = preview_sweep(namespace, words, _cluster(namespace))
        return _print_scripts(scripts) if scripts else 0
    require_slurm()
    cluster, memory = _cluster(namespace), JobMemory()
    while records := submit_sweep(namespace, words, cluster):
        run = Path(load_settings(records[0].config).run.dir)
        print_sweep(run)
        say(f"array {job_text(records[0])}; {command_name('slurm')} status {run} · logs {run} · cancel {run}")
        if not namespace.wait:
            return 0
        code = _wait(run, partial(_await, records[0], memory, partial(is_sweep_finished, run)))
        if code != ExitCode.FAILED or not (preempted := cancelled_by_preemption(records, memory)):
            return code
        say(f"{', '.join(preempted)}: preempted and cancelled by Slurm; what is left is submitted again")
    return 0


def _await(record: JobRecord, memory: JobMemory, is_finished: Callable[[], bool]) -> int:
    """Wait until Slurm will do nothing more for a job; 0 if it ended well, else 1. is_finished: as of `went_wrong`."""
    memory.states([record.job])
    while not memory.is_over(record.job):
        time.sleep(POLL)
        memory.states([record.job])
    return int(memory.went_wrong(record, is_finished))


def _grace(words: Sequence[str]) -> list[str]:
    """`--grace S` as the setting that it is short for."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--grace")
    try:
        seconds = parser.parse_known_args(words)[0].grace
    except argparse.ArgumentError as error:
        fail(str(error))
    return [f"compute.grace={seconds}"] if seconds is not None else []


def _settle(records: Sequence[JobRecord]) -> None:
    """Give Slurm a moment to say why a job does not start."""
    deadline = time.monotonic() + SETTLE
    jobs = [record.job for record in records]
    while time.monotonic() < deadline:
        states = [state for answers in job_states(jobs).values() for state in answers]
        if all(state.state != "PENDING" or state.reason != "None" for state in states):
            return
        time.sleep(SETTLE_POLL)


def _wait(run: Path, wait: Callable[[], int]) -> int:
    """What `wait` returns; Ctrl-C ends the waiting alone."""
    try:
        return wait()
    except KeyboardInterrupt:
        say(f"the jobs go on; {command_name('slurm')} status {run}")
        return ExitCode.INTERRUPTED


def _print_scripts(scripts: Sequence[tuple[Job, str]]) -> int:
    """Every batch script, then what the jobs may cost together."""
    table = Table(title="at most, if every job runs once until its time limit", title_justify="left")
    for name in ("stage", "size", "time limit", "node-hours", "GPU-hours"):
        table.add_column(name)
    for job, script in scripts:
        print(f"# --- {job.stage} ---\n{script}")
        table.add_row(job.stage, job.size, job.settings.time, f"{job.node_hours:.1f}", f"{job.gpu_hours:.1f}")
    nodes, gpus = (sum(getattr(job, name) for job, _ in scripts) for name in ("node_hours", "gpu_hours"))
    table.add_section()
    table.add_row("together", "", "", f"{nodes:.1f}", f"{gpus:.1f}")
    console.print(table)
    return 0


def _source_lines(settings: Settings, stage: str) -> list[str]:
    """What was understood of the images; raises UserError where the shards are all that was asked for."""
    from maep.data.images.build import describe_source

    try:
        return describe_source(settings)
    except UserError as problem:
        if stage == "shards":
            raise
        return [f"warning: {problem}"]


def _parser(verb: str, description: str) -> Parser:
    prog = f"{command_name('slurm')} {verb}"
    parser = Parser(prog=prog, description=description)
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name below runs/")
    return parser


def _status(words: Sequence[str]) -> int:
    namespace = _parser("status", "How a run, or a sweep, stands.").parse_args(words)
    run = find_run(namespace.run)
    if (run / "sweep.json").is_file():
        from maep.launch.monitor.sweep_status import print_sweep

        print_sweep(run)
    else:
        print_status(run)
    return 0


def _cancel(words: Sequence[str]) -> int:
    namespace = _parser("cancel", "Cancel every job of a run.").parse_args(words)
    run = find_run(namespace.run)
    require_slurm()
    records = [record for jobs in live_jobs(run, warn).values() for record, _ in jobs]
    if not records:
        say(f"{run}: no job is queued or running")
        return 0
    # The last stage first, so that none begins while those before it end.
    problem = cancel([record.job for record in sorted(records, key=lambda r: -[*KINDS, POINTS].index(r.stage))])
    if problem:
        fail(f"{run}: {problem}")
    say("cancelled: " + ", ".join(f"{record.stage} {job_text(record)}" for record in records))
    say(f"what they have finished stays; the same {command_name('slurm')} command goes on from there")
    return 0


def _logs(words: Sequence[str]) -> int:
    parser = _parser("logs", "The output of a run's newest job.")
    parser.add_argument("--stage", help="of this stage's newest job")
    parser.add_argument("--rank", type=int, help="of this process; the first if left out")
    parser.add_argument("--worker", type=int, help="of this worker of an array; all if left out")
    parser.add_argument("--lines", type=int, default=40, help="the last so many; 0: all")
    namespace = parser.parse_args(words)
    for line in show_logs(find_run(namespace.run), namespace.stage, namespace.rank, namespace.worker, namespace.lines):
        print(printable(line))
    return 0
