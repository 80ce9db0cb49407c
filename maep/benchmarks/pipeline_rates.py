"""Measure this machine on a configuration: `maep bench cfg=cifar10 [--seconds 3] [--batch 64]`.

Every rate stands beside the machine's own limit, measured in the same run: a large matrix product for arithmetic,
plain files for shards and checkpoints. Writes run.dir/bench.json.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from maep.attacks.gradient import AttackSpec, attack
from maep.benchmarks.bench_report import BENCH, CHECKPOINT_SAVE, LOADER, BenchReport, BenchRow
from maep.config.command_line import command_line
from maep.config.schema import Settings
from maep.data.pairs import PairDataset, pair_loader
from maep.data.shard_manifest import CleanManifest
from maep.data.shards import ShardSet, ShardWriter, seal_shard_set, shard_name
from maep.evaluation.reporting.provenance import environment
from maep.models.classifiers import load_classifier
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier
from maep.runtime.console import console
from maep.runtime.device import prepare_device
from maep.storage.manifests import CheckpointManifest
from maep.training.checkpointing.async_saver import Saver
from maep.training.checkpointing.directory import Retention, load_checkpoint
from maep.training.checkpointing.training_state import TrainingState
from maep.training.distributed.world import DTYPES
from maep.training.ema import Average
from maep.training.module import TrainingModule

MATMUL = 2048  # rows: large enough that a CPU reaches its peak, small enough for a few repetitions a second
MATMUL_ON_GPU = 4 * MATMUL  # a GPU needs more work than that to fill all its units
CLASSES = 10
SHARD_IMAGES = 1000  # images a shard, as data.shard_images has it
ATTACKED = 16  # images: the figure is a rate, and wide classifiers take seconds a batch on a CPU


def seconds_of(work: Callable[[], Any], budget: float) -> float:
    """Median seconds of `work`, after one warm-up, over repetitions that fill `budget` seconds (at least 3)."""
    work()
    synchronize()
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < budget:
        started = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def synchronize() -> None:
    """Wait for the accelerator's work, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_peak(dtype: torch.dtype, device: str, budget: float) -> float:
    """FLOP/s of a square matrix product: what this machine's arithmetic can do."""
    size = MATMUL_ON_GPU if device == "cuda" else MATMUL
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, budget)


def flops_of(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Forward FLOPs an image, counted on one."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:1])
    return float(counter.get_total_flops())


class Bench:
    """The measurements of one configuration; each adds a row (name, rate, unit, limit, ratio)."""

    def __init__(self, settings: Settings, batch: int, budget: float) -> None:
        self.settings, self.batch, self.budget = settings, batch, budget
        self.device = prepare_device(settings.compute.device, settings.compute.threads)
        self.rows: list[BenchRow] = []
        size = settings.model.image_size
        rng = np.random.default_rng(settings.run.seed)
        self.pixels = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        self.images = torch.from_numpy(self.pixels).permute(0, 3, 1, 2).float().div(255).to(self.device)

    def add(self, name: str, rate: float, unit: str, limit: str, ratio: float) -> None:
        """One row; ratio is the share of the machine's limit that is reached."""
        self.rows.append(BenchRow(name, rate, unit, limit, ratio))

    def training(self, precision: str, compiled: bool) -> None:
        """Forward, backward and AdamW of the configured model at r = 0, where every patch is seen."""
        torch.manual_seed(0)
        model = MaskedAutoencoder(self.settings.model).to(self.device)
        module = TrainingModule(model, self.settings.objective, precision)
        if compiled:
            module.compile()
        optimizer = torch.optim.AdamW(model.parameters())

        def step() -> None:
            optimizer.zero_grad()
            module(self.images, self.images, None)[0].mean().backward()
            optimizer.step()

        peak = matmul_peak(DTYPES[precision], self.device, self.budget / 4)
        rate = self.batch / seconds_of(step, self.budget)
        name = f"training step, {precision}{', compiled' if compiled else ''}"
        achieved = 3 * rate * model.flops(self.settings.model.image_size, 0.0)
        self.add(name, rate, "images/s", f"{precision} matmul {peak / 1e9:.0f} GFLOP/s", achieved / peak)

    def attack(self) -> None:
        """One PGD step (forward and backward to the input) of the configured classifier."""
        size = self.settings.data.image_size
        images = torch.rand(min(self.batch, ATTACKED), 3, size, size, device=self.device)
        classifier = load_classifier(self.settings.classifier, CLASSES, None).to(self.device).requires_grad_(False)
        labels = torch.zeros(len(images), dtype=torch.long, device=self.device)
        spec = replace(AttackSpec.of(self.settings.attack), steps=1)
        keys = list(range(len(images)))
        peak = matmul_peak(torch.float32, self.device, self.budget / 4)
        rate = len(images) / seconds_of(lambda: attack(classifier, images, labels, spec, keys, 0), self.budget)
        share = 2 * rate * flops_of(classifier, images) / peak
        limit = f"fp32 matmul {peak / 1e9:.0f} GFLOP/s"
        self.add(f"attack step ({self.settings.classifier.arch})", rate, "images/s", limit, share)

    def purification(self) -> None:
        """The purifier's forward, as at test time."""
        model = MaskedAutoencoder(self.settings.model).to(self.device)
        purifier = MAEPurifier(model, self.settings.purify).eval().requires_grad_(False)
        peak = matmul_peak(torch.float32, self.device, self.budget / 4)
        rate = self.batch / seconds_of(lambda: purifier(self.images), self.budget)
        achieved = rate * self.settings.purify.passes * model.flops(self.settings.model.image_size, 0.0)
        self.add("purification", rate, "images/s", f"fp32 matmul {peak / 1e9:.0f} GFLOP/s", achieved / peak)

    def shards(self, directory: Path) -> None:
        """Writing a shard, reading pairs through the training loader, and how much faster it is than training."""
        count = 2 * SHARD_IMAGES
        images = np.random.default_rng(0).integers(0, 256, (count, *self.pixels.shape[1:]), dtype=np.uint8)
        plain_write, plain_read = _plain_files(directory, images.nbytes)
        started = time.perf_counter()
        for which in ("clean", "adversarial"):
            _write_shards(directory / which, images)
        megabytes = 2 * images.nbytes / 1e6
        rate = megabytes / (time.perf_counter() - started)
        self.add("shard writing", rate, "MB/s of pixels", f"plain file {plain_write:.0f} MB/s", rate / plain_write)
        dataset = self._pairs(directory)
        train = self.settings.pretrain
        last = max(4, 4 * count // train.batch_size)
        workers = self.settings.data.workers
        loader = pair_loader(dataset, train, first=0, last=last, rank=0, world=1, workers=workers)
        batches = iter(loader)
        next(batches)  # the first waits for the workers to start
        started = time.perf_counter()
        pairs = sum(len(batch.clean) for batch in batches) / (time.perf_counter() - started)
        rate = pairs * 2 * images[0].nbytes / 1e6
        limit = f"plain file {plain_read:.0f} MB/s"
        self.add("shard reading (pairs)", rate, "MB/s of pixels", limit, rate / plain_read)
        training = max(row.rate for row in self.rows if row.name.startswith("training step"))
        self.add(LOADER, pairs, "pairs/s", f"training takes {training:.0f}/s", pairs / training)

    def _pairs(self, directory: Path) -> PairDataset:
        model = self.settings.model
        clean, adversarial = ShardSet(directory / "clean"), ShardSet(directory / "adversarial")
        return PairDataset(clean, adversarial, self.settings.pretrain, model.image_size, model.patch_size, 0)

    def checkpoint(self, directory: Path) -> None:
        """Saving and loading the training state of the configured model, SHA-256 and fsync included.

        Training goes on during a save: what it waits for is measured with a forward pass between, as in training.
        """
        torch.manual_seed(0)
        model = MaskedAutoencoder(self.settings.model).to(self.device)
        parameters = dict(model.named_parameters())
        optimizer = torch.optim.AdamW(model.parameters())
        model(self.images[:2]).mean().backward()
        optimizer.step()
        state = TrainingState(parameters, optimizer, Average(parameters, 0.99))
        saver, steps = Saver(directory, state, Retention(last=2), timeout=60.0), itertools.count(1)
        blocked: list[float] = []

        def save(between: Callable[[], object] = lambda: None) -> None:
            saver.save(CheckpointManifest(step=next(steps)))
            between()
            saver.before_update()
            saver.finish()
            blocked.append(saver.metrics()["save_blocked_seconds"])

        save()
        path = saver.good
        assert path is not None
        size = sum(p.stat().st_size for p in path.iterdir())
        plain_write, plain_read = _plain_files(directory, size)
        seconds = seconds_of(save, self.budget / 2)
        rate, limit = size / 1e6 / seconds, f"plain file {plain_write:.0f} MB/s"
        self.add(CHECKPOINT_SAVE, rate, "MB/s", limit, rate / plain_write)
        blocked.clear()
        seconds_of(lambda: save(lambda: model(self.images)), self.budget / 2)
        waited = statistics.median(blocked)
        limit = f"a save takes {1000 * seconds:.0f} ms"
        self.add("training blocked by a save", 1000 * waited, "ms", limit, waited / seconds)
        last = saver.good
        assert last is not None
        rate = (
            size / 1e6 / seconds_of(lambda: load_checkpoint(last, state, CheckpointManifest(step=0)), self.budget / 2)
        )
        self.add("checkpoint load", rate, "MB/s", f"plain file {plain_read:.0f} MB/s", rate / plain_read)


def _plain_files(directory: Path, size: int) -> tuple[float, float]:
    """MB/s of writing (with fsync) and reading (page cache) a plain file of `size` bytes."""
    content, path = os.urandom(min(size, 2**24)), directory / "plain"
    directory.mkdir(parents=True, exist_ok=True)
    times = max(1, size // len(content))

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(times):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())

    megabytes = times * len(content) / 1e6
    return megabytes / seconds_of(write, 0.5), megabytes / seconds_of(path.read_bytes, 0.5)


def _write_shards(directory: Path, images: np.ndarray) -> None:
    for number, first in enumerate(range(0, len(images), SHARD_IMAGES)):
        with ShardWriter(directory / shard_name(number)) as writer:
            for index in range(first, min(first + SHARD_IMAGES, len(images))):
                writer.write(index, images[index], 0)
    seal_shard_set(directory, CleanManifest(classes=("0",)))


def main(arguments: Sequence[str]) -> int:
    """Run the measurements, print the table, write bench.json."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--seconds", type=float, default=3.0, help="time spent on each figure")
    options.add_argument("--batch", type=int, default=64, help="images a training step")
    namespace, settings = command_line(__doc__ or "", arguments, options=options)
    bench = Bench(settings, namespace.batch, namespace.seconds)
    bench.training("fp32", compiled=False)
    if settings.compute.precision != "fp32" or settings.compute.compile:
        bench.training(settings.compute.precision, settings.compute.compile)
    bench.attack()
    bench.purification()
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        bench.shards(Path(scratch) / "shards")
        bench.checkpoint(Path(scratch) / "checkpoints")
    table = Table("what", "rate", "unit", "limit in the same run", "share of it")
    for row in bench.rows:
        table.add_row(row.name, f"{row.rate:.1f}", row.unit, row.limit, f"{row.ratio:.2f}")
    console.print(table)
    path = Path(settings.run.dir) / BENCH
    BenchReport(environment(sys.argv), namespace.batch, tuple(bench.rows), settings.data.workers).write(path)
    print(path)
    return 0
