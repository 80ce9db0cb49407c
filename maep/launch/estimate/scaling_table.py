"""The table of `maep slurm --plan`: a training on several numbers of nodes, by the model in `cost_model`."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from maep.benchmarks.bench_report import BENCH, CHECKPOINT_SAVE, LOADER, BenchReport
from maep.config.schema import Settings
from maep.data.images.build import clean_shards_path
from maep.data.shards import ShardSet
from maep.launch.command_name import command_name
from maep.launch.estimate.cost_model import GPUS, Constant, Constants, Cost, Workload, cost
from maep.launch.monitor.screen import duration, screen
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers.registry import DEFAULT
from maep.runtime.cores import MOST_WORKERS
from maep.runtime.errors import fail
from maep.storage.sealed import MANIFEST
from maep.training.schedule import held_out_images, total_steps

# Training images of the data sets that come in one size; of others the shards, or data.train_limit, must tell.
IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "digits": 1_438}
ZERO_STAGES = (None, 1, 2, 3)
STEP = ("compute ms", "collectives ms", "not hidden ms", "loader ms", "step ms", "images/s", "efficiency")
DEFAULT_NODES = "1,4,16,64"
MEASURABLE = ("read", "write")  # constants that `maep bench` measures


def print_plan(settings: Settings, options: argparse.Namespace) -> int:
    """Print cost and memory on every number of nodes asked for, then every constant with its source.

    options: nodes, such as 1,4,16, and bench, the path of a bench.json. Raises UserError if that cannot be read.
    """
    counts = node_counts(options.nodes or DEFAULT_NODES)
    bench = bench_path(settings, options.bench)
    work, machine = workload(settings), with_measured(Constants(), bench) if bench else Constants()
    zero, page = settings.compute.zero_stage, screen()
    page.print(f"{settings.run.name}: {work.parameters / 1e6:.1f} million parameters, {work.flops / 1e9:.2f} GFLOP "
               f"forward an image, {work.steps} steps of {work.batch} images, ZeRO stage {_named(zero)}")  # fmt: skip
    page.print(_strong(work, machine, counts, zero))
    page.print(_weak(work, machine, counts, zero))
    page.print(_stages(work, machine, counts))
    page.print(_constants(machine))
    page.print(_sources(machine, bench), highlight=False)
    if settings.attack.online:
        page.print("Not in it: the attack that the trainer makes itself (attack.online).")
    return 0


def node_counts(text: str) -> list[int]:
    """`1,4,16` as numbers. Raises UserError for anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text) or 0 in (counts := [int(word) for word in text.split(",")]):
        fail(f"--nodes {text}: with --plan, expected numbers above 0, such as 1,4,16,64")
    return counts


def workload(settings: Settings) -> Workload:
    """What the configuration's pretraining asks for. Raises UserError for another network than the paper's."""
    if settings.purifier.kind != DEFAULT:
        fail(f"purifier.kind={settings.purifier.kind}: costs are estimated for purifier.kind={DEFAULT} alone")
    config, train = settings.model, settings.pretrain
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    patches = (config.image_size // config.patch_size) ** 2
    visible = patches - round(train.mask_ratio * patches) + config.class_token
    channels = visible * config.encoder_width * config.encoder_depth
    channels += (patches + config.class_token) * config.decoder_width * config.decoder_depth
    return Workload(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops=model.flops(config.image_size, train.mask_ratio),
        blocks=config.encoder_depth + config.decoder_depth,
        channels=channels,
        image_bytes=3 * settings.data.image_size**2,
        batch=train.batch_size,
        steps=total_steps(train, max(1, training_images(settings) - held_out_images(train, settings.robust))),
        save_every=train.save_every,
        workers=MOST_WORKERS if settings.data.workers is None else settings.data.workers,  # of a GPU's many cores
        bf16=settings.compute.precision != "fp32",
    )


def training_images(settings: Settings) -> int:
    """Training images: those of the shards where they are built, else the data set's known number."""
    path = clean_shards_path(settings) / "train" if settings.data.root or settings.data.shards else None
    if path is not None and (not isinstance(path, Path) or (path / MANIFEST).is_file()):
        return len(ShardSet(path))
    sizes = [size for size in (settings.data.train_limit, IMAGES.get(settings.data.name)) if size]
    if sizes:
        return min(sizes)
    if settings.pretrain.steps:
        return settings.pretrain.batch_size
    fail(f"data.name={settings.data.name}: its number of images is not known; set data.train_limit or pretrain.steps")


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
