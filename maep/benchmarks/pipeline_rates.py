"""What `maep bench` measures of a machine on a configuration.

Every rate stands beside the machine's own limit, measured in the same run: a large matrix product for arithmetic,
plain files for shards and checkpoints. Writes run.dir/bench.json.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.benchmarks.bench_report import BENCH, CHECKPOINT_SAVE, LOADER, BenchReport, BenchRow, SpokenRows
from maep.benchmarks.compute_rates import CLASSES, ENDLESS, ComputeBench, Variant
from maep.benchmarks.device_clock import seconds_of, synchronize
from maep.benchmarks.official_mae import FEW, beside_mae
from maep.benchmarks.shared_cores import side_by_side, train_on_request
from maep.config.implementations import OBJECTIVES
from maep.config.schema import Settings
from maep.data.adversarial import ShardAttack
from maep.data.pairs import PREFETCH, PairDataset, pair_loader
from maep.data.shard_manifest import CleanManifest
from maep.data.shards import ShardSet, ShardWriter, seal_shard_set, shard_name, to_float
from maep.evaluation.reporting.provenance import environment
from maep.models.classifiers import load_classifier
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.runtime.console import console
from maep.runtime.cores import worker_count
from maep.runtime.device import prepare_device
from maep.runtime.errors import fail
from maep.storage.manifests import CheckpointManifest
from maep.training.checkpointing.async_saver import Saver
from maep.training.checkpointing.directory import Retention, load_checkpoint
from maep.training.checkpointing.training_state import TrainingState
from maep.training.ema import Average

SHARD_IMAGES = 1000  # images a shard, as data.shard_images has it
FEWEST = 8  # images of the attack stage: wide classifiers take seconds an image on a CPU
ON_CPU = 64  # images a training step there: an accelerator takes the configured batch at once
SECONDS = {"cuda": 1.0, "cpu": 3.0}  # on each figure: a GPU's are of milliseconds, a CPU's of seconds


class Bench:
    """The measurements of one configuration; each adds a row (name, rate, unit, limit, ratio).

    mae: a checkout of facebookresearch/mae, whose training step is measured too.
    """

    def __init__(
        self, settings: Settings, batch: int, budget: float, device: str, scratch: Path, mae: Path | None = None
    ) -> None:
        self.settings, self.batch, self.budget, self.device, self.mae = settings, batch, budget, device, mae
        self.shards, self.checkpoints = scratch / "shards", scratch / "checkpoints"
        self.rows = SpokenRows[BenchRow]()
        self.compute = ComputeBench(settings, device, batch, budget, self.rows)

    def run(self) -> None:
        """All of them, in the order in which they need one another."""
        self.writing()
        pairs = self.pairs()
        for variant in dict.fromkeys((Variant(), Variant.of(self.settings.compute))):
            self.compute.training(pairs, self.checkpoints.parent / str(variant), variant)
        for variant in self.compute.variants():
            self.compute.attack(variant)
            self.compute.purification(variant)
        self.adversarial_shards()
        self.loader(pairs)
        self.checkpoint(self.checkpoints)
        if self.device == "cpu":
            self.rows.append(side_by_side(self.settings, self.batch, self.budget, self.shards.parent))
            if self.mae:
                for batch in dict.fromkeys((FEW, self.batch)):
                    for row in beside_mae(self.settings, batch, self.budget, self.shards.parent, self.mae):
                        self.rows.append(row)

    def add(self, name: str, rate: float, unit: str, limit: str, ratio: float) -> None:
        """One row; ratio is the share of the machine's limit that is reached."""
        self.rows.append(BenchRow(name, rate, unit, limit, ratio))

    def writing(self) -> None:
        """Writing shards, of pixels that no encoding makes smaller."""
        shape = (2 * SHARD_IMAGES, self.settings.model.image_size, self.settings.model.image_size, 3)
        images = np.random.default_rng(self.settings.run.seed).integers(0, 256, shape, dtype=np.uint8)
        plain_write, _ = _plain_files(self.shards, images.nbytes, self.budget / 4)
        started = time.perf_counter()
        for which in ("clean", "adversarial"):
            _write_shards(self.shards / which, images, self.settings.data.encoding)
        rate = 2 * images.nbytes / 1e6 / (time.perf_counter() - started)
        self.add("shard writing", rate, "MB/s of pixels", f"plain file {plain_write:.0f} MB/s", rate / plain_write)

    def adversarial_shards(self) -> None:
        """The attack stage on some of the shards, beside the attack alone on images in memory."""
        settings, seed = self.settings, self.settings.run.seed
        steps = AttackSpec.of(settings.attack).steps
        rate = next(row.rate for row in self.rows if row.name.startswith("attack step")) / steps
        whole = ShardSet(self.shards / "clean")
        count = min(len(whole), max(FEWEST, int(2 * self.budget * rate)))
        _write_shards(self.shards / "few", np.stack(whole.images(range(count))), settings.data.encoding)
        few = ShardSet(self.shards / "few")
        model = load_classifier(settings.classifier, CLASSES, None).to(self.device)
        timeout, path = settings.compute.claim_timeout, self.shards / "attacked"
        stage = ShardAttack(settings.attack, seed, timeout, few, "bench", model, torch.device(self.device), path)
        size = settings.attack.batch_size
        batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
        inputs = [tuple(tensor.to(self.device) for tensor in few.batch(batch)) for batch in batches]

        def bare() -> None:
            for batch, (images, labels) in zip(batches, inputs, strict=True):
                attack(model, to_float(images), labels, stage.spec, batch, seed)
            synchronize()

        bare_rate = count / seconds_of(bare, self.budget)
        started = time.perf_counter()
        stage.run((0, 1), shared=False)
        rate = count / (time.perf_counter() - started)
        self.add("adversarial shards", rate, "images/s", f"attack alone {bare_rate:.1f} images/s", rate / bare_rate)

    def pairs(self) -> PairDataset:
        """Of the shards that were written; the clean ones alone for a training that makes its own second images."""
        model, seed = self.settings.model, self.settings.run.seed
        alone = self.settings.attack.online or not OBJECTIVES[self.settings.objective.name].attacks
        clean, adversarial = ShardSet(self.shards / "clean"), None if alone else ShardSet(self.shards / "adversarial")
        return PairDataset(clean, adversarial, self.settings.pretrain, model.image_size, model.patch_size, seed)

    def loader(self, pairs: PairDataset) -> None:
        """Reading pairs through the training loader, and how much faster it is than training."""
        train, workers = self.compute.train_settings(), worker_count(self.settings.data.workers)
        loader = pair_loader(pairs, train, first=0, last=ENDLESS, rank=0, world=1, workers=workers)
        batches = iter(loader)
        for _ in range(1 + PREFETCH * workers):  # those that were ready when the first one came
            next(batches)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < self.budget or not count:
            count += len(next(batches).clean)
        rate = count / (time.perf_counter() - started)
        batches.close()
        images = 1 if pairs.adversarial is None else 2  # that a pair takes from shards
        pixels = images * 3 * self.settings.model.image_size**2
        _, plain_read = _plain_files(self.shards, len(pairs.clean) * pixels, self.budget / 4)
        limit = f"plain file {plain_read:.0f} MB/s"
        megabytes = rate * pixels / 1e6
        self.add(
            f"shard reading ({'pairs' if images == 2 else 'clean images'})",
            megabytes,
            "MB/s of pixels",
            limit,
            megabytes / plain_read,
        )
        training = max(row.rate for row in self.rows if row.name.startswith("training step"))
        self.add(LOADER, rate, "pairs/s", f"training takes {training:.0f}/s", rate / training)

    def checkpoint(self, directory: Path) -> None:
        """Saving and loading the training state of the configured model, SHA-256 and fsync included."""
        torch.manual_seed(0)
        model = MaskedAutoencoder(self.settings.model).to(self.device)
        parameters = dict(model.named_parameters())
        optimizer = torch.optim.AdamW(model.parameters())
        size = self.settings.model.image_size
        images = torch.rand(self.batch, 3, size, size, device=self.device)
        model(images[:2]).mean().backward()
        optimizer.step()
        state = TrainingState(parameters, optimizer, Average(parameters, 0.99))
        saver = Saver(directory, state, Retention(last=2), timeout=60.0)
        try:
            self._saving(saver, state, lambda: model(images))
        finally:
            saver.finish()  # stopped in the middle of a save: what it writes to is about to be removed

    def _saving(self, saver: Saver, state: TrainingState, forward: Callable[[], object]) -> None:
        """Rows of a saver: training goes on during a save, and what it waits for is measured with a forward pass."""
        directory, steps, blocked = saver.directory, itertools.count(1), list[float]()

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
        plain_write, plain_read = _plain_files(directory, size, self.budget / 4)
        seconds = seconds_of(save, self.budget / 2)
        rate, limit = size / 1e6 / seconds, f"plain file {plain_write:.0f} MB/s"
        self.add(CHECKPOINT_SAVE, rate, "MB/s", limit, rate / plain_write)
        blocked.clear()
        seconds_of(lambda: save(forward), self.budget / 2)
        waited = statistics.median(blocked)
        limit = f"a save takes {1000 * seconds:.0f} ms"
        self.add("training blocked by a save", 1000 * waited, "ms", limit, waited / seconds)
        last = saver.good
        assert last is not None
        rate = (
            size / 1e6 / seconds_of(lambda: load_checkpoint(last, state, CheckpointManifest(step=0)), self.budget / 2)
        )
        self.add("checkpoint load", rate, "MB/s", f"plain file {plain_read:.0f} MB/s", rate / plain_read)


def _plain_files(directory: Path, size: int, budget: float) -> tuple[float, float]:
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
    return megabytes / seconds_of(write, budget), megabytes / seconds_of(path.read_bytes, budget)


def _write_shards(directory: Path, images: np.ndarray, encoding: str) -> None:
    for number, first in enumerate(range(0, len(images), SHARD_IMAGES)):
        with ShardWriter(directory / shard_name(number), encoding) as writer:
            for index in range(first, min(first + SHARD_IMAGES, len(images))):
                writer.write(index, images[index], 0)
    seal_shard_set(directory, CleanManifest(classes=tuple(map(str, range(CLASSES)))))


def measure(settings: Settings, batch: int | None, budget: float | None, mae: Path | None) -> int:
    """Run the measurements, print the table, write bench.json; returns the exit code.

    batch, budget, mae: as the options of `maep bench`; None for what the device's kind has, and for no comparison.
    """
    started = time.perf_counter()
    device = prepare_device(settings.compute, trains=True).type
    if mae and device != "cpu":
        fail(f"--mae: the two steps are compared by seconds of CPU; set compute.device=cpu in place of {device}")
    batch = batch or (ON_CPU if device == "cpu" else settings.pretrain.batch_size)
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        bench = Bench(settings, batch, budget or SECONDS[device], device, Path(scratch), mae)
        bench.run()
    report = BenchReport(
        environment(sys.argv, settings.compute.device), batch, tuple(bench.rows),
        worker_count(settings.data.workers), settings.run.seed,
        time.perf_counter() - started,
    )  # fmt: skip
    table = Table("what", "rate", "unit", "limit in the same run", "share of it")
    for row in report.rows:
        table.add_row(row.name, f"{row.rate:.1f}", row.unit, row.limit, f"{row.ratio:.2f}")
    console.print(table)
    path = Path(settings.run.dir) / BENCH
    report.write(path)
    print(path)
    return 0


def train_beside(settings: Settings, batch: int, scratch: Path) -> int:
    """Be a training beside another, of the shards in `scratch`, as its parent asks; returns the exit code."""
    prepare_device(settings.compute, trains=True)
    pairs = Bench(settings, batch, 0.0, "cpu", scratch).pairs()
    train_on_request(settings, pairs, batch, scratch / str(os.getpid()))
    return 0
