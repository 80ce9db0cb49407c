"""The table of `launch/slurm.py --plan`: a training on several numbers of nodes, by the model in `cost_model`."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from maep.config.schema import Settings
from maep.data.images.build import clean_shards_path
from maep.data.shards import ShardSet
from maep.launch.estimate.cost_model import GPUS, Constant, Constants, Cost, Workload, cost
from maep.launch.monitor.status import duration, screen
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.runtime.errors import fail
from maep.storage.atomic import MANIFEST, read_json
from maep.training.schedule import total_steps

BENCH = Path(__file__).resolve().parents[3] / "tests" / "reports" / "bench.json"
BENCH_WORKERS = 2  # data.workers of that benchmark
IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "digits": 1_438}
STAGES = (None, 1, 2, 3)
STEP = ("compute ms", "collectives ms", "not hidden ms", "loader ms", "step ms", "images/s", "efficiency")
DEFAULT_NODES = "1,4,16,64"


def print_plan(settings: Settings, options: argparse.Namespace) -> int:
    """Print cost and memory on every number of nodes asked for, then every constant with its source."""
    counts = node_counts(options.nodes or DEFAULT_NODES)
    work, machine = workload(settings), with_measured(Constants(), settings)
    zero, page = settings.compute.zero_stage, screen()
    page.print(f"{settings.run.name}: {work.parameters / 1e6:.1f} million parameters, {work.flops / 1e9:.2f} GFLOP "
               f"forward an image, {work.steps} steps of {work.batch} images, ZeRO stage {_named(zero)}")  # fmt: skip
    page.print(_strong(work, machine, counts, zero))
    page.print(_weak(work, machine, counts, zero))
    page.print(_stages(work, machine, counts))
    page.print(_constants(machine))
    if settings.attack.online:
        page.print("Not in it: the attack that the trainer makes itself (attack.online).")
    return 0


def node_counts(text: str) -> list[int]:
    """`1,4,16` as numbers. Raises UserError for anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text) or 0 in (counts := [int(word) for word in text.split(",")]):
        fail(f"--nodes {text}: with --plan, expected numbers above 0, such as 1,4,16,64")
    return counts


def workload(settings: Settings) -> Workload:
    """What the configuration's pretraining asks for."""
    config, train = settings.model, settings.pretrain
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    patches = (config.image_size // config.patch_size) ** 2
    shown = patches - round(train.mask_ratio * patches) + config.class_token
    channels = shown * config.encoder_width * config.encoder_depth
    channels += (patches + config.class_token) * config.decoder_width * config.decoder_depth
    return Workload(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops=model.flops(config.image_size, train.mask_ratio),
        blocks=config.encoder_depth + config.decoder_depth,
        channels=channels,
        image_bytes=3 * settings.data.image_size**2,
        batch=train.batch_size,
        steps=total_steps(train, training_images(settings)),
        save_every=train.save_every,
        workers=settings.data.workers,
        bf16=settings.compute.precision != "fp32",
    )


def training_images(settings: Settings) -> int:
    """Training images: those of the shards where they are built, else the data set's known number."""
    path = clean_shards_path(settings) / "train" if settings.data.root or settings.data.shards else None
    if path is not None and (not isinstance(path, Path) or (path / MANIFEST).is_file()):
        return len(ShardSet(path))
    known = IMAGES.get(settings.data.name)
    if settings.data.train_limit or known:
        return min(settings.data.train_limit or known or 0, known or settings.data.train_limit or 0)
    if settings.pretrain.steps:
        return settings.pretrain.batch_size
    fail(f"data.name={settings.data.name}: its number of images is not known; set data.train_limit or pretrain.steps")


def with_measured(machine: Constants, settings: Settings) -> Constants:
    """The constants, those replaced that launch/bench.py measured: for this run, or the project's own report."""
    path = next((p for p in (Path(settings.run.dir) / "bench.json", BENCH) if p.is_file()), None)
    if path is None:
        return machine
    rows = {row["name"]: row for row in read_json(path)["rows"]}
    found: dict[str, Constant] = {}
    if "loader" in rows:
        seconds = BENCH_WORKERS / (2 * rows["loader"]["rate"])
        found["read"] = Constant(seconds, machine.read.unit, f"{path.name}: loader", measured=True)
    if "checkpoint save" in rows:
        rate = rows["checkpoint save"]["rate"] * 1e6
        found["write"] = Constant(rate, machine.write.unit, f"{path.name}: checkpoint save", measured=True)
    return replace(machine, **found)


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
    whole = _table(f"The whole: {work.steps} steps, a save every {work.save_every}", names)
    one = cost(work, machine, 1, zero)
    for nodes in counts:
        if nodes * GPUS > work.batch:
            steps.add_row(str(nodes), str(nodes * GPUS), "", "more GPUs than images a step")
            continue
        it = cost(work, machine, nodes, zero)
        seconds = work.steps * it.step + work.steps / work.save_every * it.blocked
        steps.add_row(str(nodes), str(nodes * GPUS), f"{it.batch_per_gpu:g}", *_step(it, work.batch),
                      f"{one.step / it.step / nodes:.2f}")  # fmt: skip
        whole.add_row(str(nodes), duration(seconds), f"{seconds / 3600 * nodes * GPUS:.1f}",
                      f"{it.blocked * 1e3:.2f}", f"{it.background:.2f}", f"{it.memory / 1e9:.1f}")  # fmt: skip
    return Group(steps, whole)


def _step(it: Cost, batch: int) -> list[str]:
    times = (it.compute, it.communication, it.exposed, it.loader, it.step)
    return [*(f"{seconds * 1e3:.2f}" for seconds in times), f"{batch / it.step:.0f}"]


def _weak(work: Workload, machine: Constants, counts: Sequence[int], zero: int | None) -> Table:
    """The images a GPU as on one node, so that the global batch grows."""
    table = _table("A step, as many images a GPU as on one node (weak scaling)", ["nodes", "batch", *STEP])
    one = cost(work, machine, 1, zero)
    for nodes in counts:
        batch = work.batch * nodes
        it = cost(replace(work, batch=batch), machine, nodes, zero)
        table.add_row(str(nodes), str(batch), *_step(it, batch), f"{one.step / it.step:.2f}")
    return table


def _stages(work: Workload, machine: Constants, counts: Sequence[int]) -> Table:
    """What ZeRO changes: collectives in ms and memory in GB of a GPU."""
    columns = [f"{what}, {_named(stage)}" for stage in STAGES for what in ("ms", "GB")]
    table = _table("By ZeRO stage: collectives and memory of a GPU", ["nodes", *columns])
    for nodes in counts:
        costs = [cost(work, machine, nodes, stage) for stage in STAGES]
        cells = [text for it in costs for text in (f"{it.communication * 1e3:.2f}", f"{it.memory / 1e9:.1f}")]
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
