"""Run the pipeline on this machine: `maep run cfg=digits [stage=…] [--nproc N]`.

A sweep is run point by point: `maep run cfg=ablation/table15 --scale cpu [--only 0,3-5] [--dry-run]`. From a checkout
also `python launch/local.py …`. With `--dry-run` nothing is run or written: it says what was understood of the images,
and which stages would run. `--nproc N` takes N processes of this machine: a training distributes over them, and they
share the attacks, the evaluation and the certificates; of a sweep, they are its trainings'. Processes that were started
by hand, also elsewhere, share a stage by `stage=evaluate --worker i/n` on each, 0 <= i < n.
"""

import argparse
from collections.abc import Callable, Sequence

from maep.ablation.grid.sweep import is_sweep
from maep.cli.shard_commands import worker
from maep.config.command_line import at_least_one, refuse_unheeded, split_arguments
from maep.config.load import load_settings, sweep_names
from maep.config.pair_source import TRAININGS
from maep.config.schema import Settings
from maep.launch.processes import spawn
from maep.pipeline.unread_settings import say_unread
from maep.runtime.console import say
from maep.runtime.errors import fail


def main(arguments: Sequence[str]) -> int:
    """Parse, resolve, run; exit codes as in maep.runtime.exits."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--nproc", type=at_least_one, default=1, help="processes that a training, or a shared stage, runs on here"
    )
    options.add_argument("--scale", help="of a sweep: paper, or cpu for a small version of the table")
    options.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    options.add_argument("--worker", default="", metavar="i/n", help="share the work of stage= with other processes")
    options.add_argument("--only", default="", metavar="I,J-K", help="of a sweep: only these points, counted from 0")
    stages = [word.partition("=")[2] for word in arguments if word.startswith("stage=")]
    words = [word for word in arguments if not word.startswith("stage=")]
    namespace, overrides = split_arguments(__doc__ or "", words, options=options)
    if not namespace.cfg:
        fail("cfg: name a configuration, such as cfg=digits")
    if namespace.dry_run:
        refuse_unheeded(options, namespace, "dry-run", unheeded=("nproc",))
    if is_sweep(namespace.cfg):
        if stages:
            fail(f"stage={stages[-1]}: a sweep runs every stage of its points; leave it out")
        if namespace.worker:
            fail(f"--worker {namespace.worker}: processes share a sweep's points without it; leave it out")
        return _run_sweep(namespace, overrides)
    for option in ("scale", "only"):
        if getattr(namespace, option):
            fail(f"--{option}: {namespace.cfg} is no sweep; choose one of {', '.join(sweep_names())}")
    settings = load_settings(namespace.cfg, overrides)
    say_unread(settings, namespace.cfg, overrides)
    return _run(namespace, settings, stages[-1] if stages else "all")


def _run(namespace: argparse.Namespace, settings: Settings, stage: str) -> int:
    share = worker(namespace.worker) if namespace.worker else None
    if share and (stage == "all" or namespace.dry_run or namespace.nproc > 1):
        fail(f"--worker {namespace.worker}: shares one stage, such as stage=evaluate, without --dry-run and --nproc")
    # Imported only now: a mistyped setting is answered without waiting for every library.
    from maep.pipeline.execution import check_inputs, describe, run_pipeline, work_on_stage
    from maep.pipeline.stages import SHARED, wanted_stages

    if share:
        work_on_stage(stage, settings, share)
        return 0
    if namespace.dry_run:
        for line in describe(settings, stage):
            say(line)
        check_inputs(wanted_stages(settings, stage), settings)
        return 0
    processes, several = namespace.nproc, (*TRAININGS, *SHARED)
    if processes > 1 and stage not in ("all", *several):
        say(f"--nproc {processes}: only {', '.join(several)} run on several processes; stage={stage} runs on one")
    share_out = None if processes == 1 else _spawner(processes)
    run_pipeline(settings, stage, _launcher(processes), share_out)
    return 0


def _run_sweep(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from maep.launch.sweeps.sweep_worker import run_sweep, show_sweep

    if namespace.dry_run:
        return show_sweep(namespace, overrides)
    return run_sweep(namespace, overrides, _launcher(namespace.nproc))


def _launcher(processes: int) -> Callable[[str, Settings], None]:
    """How a training stage is run: in this process, or on several."""
    return train_here if processes == 1 else _spawner(processes)


def _spawner(processes: int) -> Callable[[str, Settings], None]:
    return lambda name, settings: spawn(name, settings, processes)


def train_here(name: str, settings: Settings) -> None:
    """Run a training stage in this process."""
    from maep.training.worker import run_training

    run_training(name, settings)
