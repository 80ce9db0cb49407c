"""The tables of `maep slurm --plan`: a training on several numbers of nodes, by the model in `cost_model`."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from maep.benchmarks.bench_report import BENCH, CHECKPOINT_SAVE, LOADER, BenchReport
from maep.config.implementations import OBJECTIVES
from maep.config.schema import Settings
from maep.launch.command_name import command_name
from maep.launch.estimate.cost_model import BACKWARD, GPUS, Constant, Constants, Cost, Workload, cost
from maep.launch.estimate.data_sizes import training_steps
from maep.launch.estimate.training_count import StepCount, count_training
from maep.launch.monitor.screen import duration, screen
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers.registry import DEFAULT
from maep.runtime.cores import MOST_WORKERS
from maep.runtime.errors import fail

ZERO_STAGES = (None, 1, 2, 3)
STEP = ("compute ms", "collectives ms", "not hidden ms", "loader ms", "step ms", "images/s", "efficiency")
DEFAULT_NODES = "1,4,16,64"
ONE_PASS = ("mae", "purification", "mlm", "maep", "nim")  # objectives that ask the network once, and nobody else
MEASURABLE = ("read", "write")  # constants that `maep bench` measures


def print_plan(settings: Settings, options: argparse.Namespace) -> int:
    """Print cost and memory on every number of nodes asked for, then every constant with its source.

    options: nodes, such as 1,4,16, and bench, the path of a bench.json. Raises UserError if that cannot be read.
    """
    # Imported only now: a submission asks for `workload` alone, and need not wait for all that attacks import.
    from maep.launch.estimate.whole_costs import count_trainings, print_costs

    counts = node_counts(options.nodes or DEFAULT_NODES)
    bench = bench_path(settings, options.bench)
    machine = with_measured(Constants(), bench) if bench else Constants()
    trainings, page = count_trainings(settings), screen()
    if "pretrain" in trainings:
        _print_training(workload(settings, trainings["pretrain"]), settings, machine, counts)
    else:
        page.print(f"{settings.run.name}: {_untrained(settings)}; nothing of it depends on --nodes", highlight=False)
    print_costs(settings, trainings, machine, page)
    page.print(_constants(machine))
    page.print(_sources(machine, bench), highlight=False)
    return 0


def _untrained(settings: Settings) -> str:
    if settings.evaluation.purifier:
        return f"evaluation.purifier={settings.evaluation.purifier} is judged as it is, no purifier is trained"
    return f"purifier.kind={settings.purifier.kind} has no weights to train"


def _print_training(work: Workload, settings: Settings, machine: Constants, counts: Sequence[int]) -> None:
    zero, page = settings.compute.zero_stage, screen()
    page.print(
        f"{settings.run.name}: {work.parameters / 1e6:.3g} million parameters, {work.step_flops / 1e9:.4g} GFLOP "
        f"an image and step, {work.steps} steps of {work.batch} images, ZeRO stage {_named(zero)}"
    )
    page.print(_strong(work, machine, counts, zero))
    page.print(_weak(work, machine, counts, zero))
    page.print(_stages(work, machine, counts))


def node_counts(text: str) -> list[int]:
    """`1,4,16` as numbers. Raises UserError for anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text) or 0 in (counts := [int(word) for word in text.split(",")]):
        fail(f"--nodes {text}: with --plan, expected numbers above 0, such as 1,4,16,64")
    return counts


def workload(settings: Settings, step: StepCount | None = None) -> Workload:
    """What the configuration's pretraining asks for. step: one of it, if it was counted already.

    Raises UserError where the number of its images is not known.
    """
    train = settings.pretrain
    own = _transformer(settings) if _is_plain(settings) else _counted(step or count_training(settings, train))
    return Workload(
        **own,
        image_bytes=3 * settings.data.image_size**2,
        batch=train.batch_size,
        steps=training_steps(settings, train),
        save_every=train.save_every,
        workers=MOST_WORKERS if settings.data.workers is None else settings.data.workers,  # of a GPU's many cores
        bf16=settings.compute.precision != "fp32",
    )


def _is_plain(settings: Settings) -> bool:
    """Whether a step is one forward and backward pass of the paper's network."""
    objective = settings.objective.name
    is_attacked = settings.attack.online and OBJECTIVES[objective].attacks
    return settings.purifier.kind == DEFAULT and objective in ONE_PASS and not is_attacked


def _transformer(settings: Settings) -> dict[str, Any]:
    """The paper's network, in the mean of steps that hide patches and steps that do not; memory is the larger's."""
    config, train = settings.model, settings.pretrain
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    share = train.mask_until if train.mask_ratio else 0.0
    masked, whole = (model.flops(config.image_size, ratio) for ratio in (train.mask_ratio, 0.0))
    patches = (config.image_size // config.patch_size) ** 2
    hidden = round(train.mask_ratio * patches) if share == 1 else 0
    visible = patches - hidden + config.class_token
    channels = visible * config.encoder_width * config.encoder_depth
    channels += (patches + config.class_token) * config.decoder_width * config.decoder_depth
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": share * masked + (1 - share) * whole,
        "blocks": config.encoder_depth + config.decoder_depth,
        "channels": channels,
    }


def _counted(step: StepCount) -> dict[str, Any]:
    return {"parameters": step.parameters, "flops": step.flops / BACKWARD, "blocks": 0, "channels": 0, "step": step}


def bench_path(settings: Settings, option: str | None) -> Path | None:
    """The bench.json to take measured rates from: the one named, else this run's own; None if there is none."""
    if option:
        return Path(option)
    path = Path(settings.run.dir) / BENCH
    return path if path.is_file() else None


def with_measured(machine: Constants, path: Path) -> Constants:
    """The constants, with what `maep bench` measured in place of what is assumed. Raises UserError as its reader."""
    bench = BenchReport.read(path)
    measured: dict[str, Constant] = {}
    if (pairs := bench.rate(LOADER)) is not None:
        seconds = max(bench.workers, 1) / (2 * pairs)  # a pair is two images
        measured["read"] = Constant(seconds, machine.read.unit, f"{path.name}: {LOADER}", measured=True)
    if (megabytes := bench.rate(CHECKPOINT_SAVE)) is not None:
        source = f"{path.name}: {CHECKPOINT_SAVE}"
        measured["write"] = Constant(megabytes * 1e6, machine.write.unit, source, measured=True)
    return replace(machine, **measured)


def _sources(machine: Constants, bench: Path | None) -> str:
    """Which of the constants that can be measured were not."""
    assumed = [name for name in MEASURABLE if not getattr(machine, name).measured]
    if not assumed:
        return f"{' and '.join(MEASURABLE)} were measured: {bench}"
    return (
        f"{' and '.join(assumed)} are assumed, not measured: run {command_name('bench')} with this configuration on a "
        f"node, or give --bench PATH of a {BENCH}"
    )


def _named(stage: int | None) -> str:
    return "none" if stage is None else str(stage)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _strong(work: Workload, machine: Constants, counts: Sequence[int], zero: int | None) -> Group:
    """The global batch as configured, shared out over more and more GPUs: a step, and the whole training."""
    steps = _table("A step, the batch as configured (strong scaling)", ["nodes", "GPUs", "images a GPU", *STEP])
    names = ["nodes", "time", "GPU-hours", "a save blocks ms", "goes on s", "memory a GPU, GB"]
    training = _table(f"The whole: {work.steps} steps, a save every {work.save_every}", names)
    on_one_node = cost(work, machine, 1, zero)
    for nodes in counts:
        if nodes * GPUS > work.batch:
            steps.add_row(str(nodes), str(nodes * GPUS), "", "more GPUs than images a step")
            continue
        step = cost(work, machine, nodes, zero)
        seconds = work.steps * step.step + work.steps / work.save_every * step.blocked
        steps.add_row(str(nodes), str(nodes * GPUS), f"{step.batch_per_gpu:g}", *_step(step, work.batch),
                      f"{on_one_node.step / step.step / nodes:.2f}")  # fmt: skip
        training.add_row(str(nodes), duration(seconds), f"{seconds / 3600 * nodes * GPUS:.1f}",
                      f"{step.blocked * 1e3:.2f}", f"{step.background:.2f}", f"{step.memory / 1e9:.1f}")  # fmt: skip
    return Group(steps, training)


def _step(step: Cost, batch: int) -> list[str]:
    times = (step.compute, step.communication, step.exposed, step.loader, step.step)
    return [*(f"{seconds * 1e3:.2f}" for seconds in times), f"{batch / step.step:.0f}"]


def _weak(work: Workload, machine: Constants, counts: Sequence[int], zero: int | None) -> Table:
    """The images a GPU as on one node, so that the global batch grows."""
    table = _table("A step, as many images a GPU as on one node (weak scaling)", ["nodes", "batch", *STEP])
    on_one_node = cost(work, machine, 1, zero)
    for nodes in counts:
        batch = work.batch * nodes
        step = cost(replace(work, batch=batch), machine, nodes, zero)
        table.add_row(str(nodes), str(batch), *_step(step, batch), f"{on_one_node.step / step.step:.2f}")
    return table


def _stages(work: Workload, machine: Constants, counts: Sequence[int]) -> Table:
    """What ZeRO changes: collectives in ms and memory in GB of a GPU."""
    columns = [f"{what}, {_named(stage)}" for stage in ZERO_STAGES for what in ("ms", "GB")]
    table = _table("By ZeRO stage: collectives and memory of a GPU", ["nodes", *columns])
    for nodes in counts:
        costs = [cost(work, machine, nodes, stage) for stage in ZERO_STAGES]
        cells = [text for step in costs for text in (f"{step.communication * 1e3:.2f}", f"{step.memory / 1e9:.1f}")]
        table.add_row(str(nodes), *cells)
    return table


def _constants(machine: Constants) -> Table:
    table = Table(title="Constants", title_justify="left", box=SIMPLE_HEAD)
    for name in ("name", "value", "unit", "", "source"):
        table.add_column(name)
    for item in fields(machine):
        constant = getattr(machine, item.name)
        table.add_row(item.name, f"{constant.value:.4g}", constant.unit, "measured" if constant.measured else "",
                      constant.source)  # fmt: skip
    return table
