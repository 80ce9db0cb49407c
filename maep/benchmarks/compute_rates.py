"""What the device's arithmetic reaches: a training step, an attack's step, purification, each beside a matrix product.

On an accelerator also in the configured precision, compiled where the training is, and the share of time that it idles.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Self

import torch
from accelerate.state import AcceleratorState
from torch import nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.benchmarks.bench_report import BenchRow
from maep.benchmarks.device_clock import Work, beside_matmul, busy_seconds
from maep.benchmarks.host_reads import host_reads
from maep.config.implementations import OBJECTIVES
from maep.config.schema import ComputeSettings, Settings
from maep.config.training_settings import TrainSettings
from maep.data.pairs import PairBatch, PairBatches, PairDataset, pair_loader
from maep.evaluation.scoring.reduced_model import SurrogateSettings
from maep.models.classifiers import load_classifier
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier
from maep.runtime.console import say
from maep.runtime.cores import worker_count
from maep.runtime.operations import counted
from maep.storage.manifests import CheckpointManifest
from maep.training.distributed.world import DTYPES
from maep.training.inputs import adversary_of, asked_settings, asks_classifiers
from maep.training.loop import Trainer, TrainingJob
from maep.training.robust import Adversary

CLASSES = 10
ATTACKED = 16  # images on a CPU: the figure is a rate, and wide classifiers take seconds a batch there
ENDLESS = 10**6  # steps of a training that is measured and left: more than any measurement takes


@dataclass(frozen=True)
class Variant:
    """How the device computes. precision: fp32, bf16 or fp16; compile, cuda_graphs: as `ComputeSettings` has them."""

    precision: str = "fp32"
    compile: bool = False
    cuda_graphs: bool = False

    @classmethod
    def of(cls, compute: ComputeSettings) -> Self:
        """As the training is configured."""
        return cls(compute.precision, compute.compile, compute.cuda_graphs)

    def __str__(self) -> str:
        return self.precision + ", compiled" * self.compile + ", CUDA graphs" * self.cuda_graphs

    @property
    def suffix(self) -> str:
        """Of a row's name; fp32 as it is goes without saying."""
        return "" if self == Variant() else f", {self}"

    @property
    def surrogate(self) -> SurrogateSettings:
        """As attacks and purifiers have it: of half precisions, bf16 alone."""
        return SurrogateSettings("fp32" if self.precision == "fp32" else "bf16", self.compile)


@dataclass
class ComputeBench:
    """The measurements of one configuration. batch: images a training step and a purification.

    budget: seconds spent on each figure. rows: what they add.
    """

    settings: Settings
    device: str
    batch: int
    budget: float
    rows: list[BenchRow] = field(default_factory=list)

    def variants(self) -> list[Variant]:
        """fp32 as it is, and on an accelerator what the training is configured to use.

        On a CPU bf16 can be a hundred times slower, and `maep bench-evaluation` has these figures.
        """
        configured = Variant.of(self.settings.compute)
        return [Variant()] if self.device == "cpu" else list(dict.fromkeys((Variant(), configured)))

    def _add(self, name: str, unit: str, work: Work, items: int, flops: float, variant: Variant) -> float:
        """A row of a rate, its ratio the share of the matrix product's FLOP/s; and one of idling. Returns the rate.

        items: done by one call of `work`. flops: of one item.
        """
        seconds, peak = beside_matmul(work, DTYPES[variant.precision], self.device, self.budget)
        rate = items / seconds
        limit = f"{variant.precision} matmul {peak / 1e9:.0f} GFLOP/s"
        self.rows.append(BenchRow(name, rate, unit, limit, rate * flops / peak))
        self._add_idle(name, work, seconds)
        return rate

    def _add_idle(self, name: str, work: Work, seconds: float) -> None:
        """How much of `seconds`, the time of a call, an accelerator waits; a CPU is device and host at once."""
        if self.device == "cpu":
            return
        try:
            busy = busy_seconds(work)
        except RuntimeError as error:
            say(f"warning: device idle, {name}: not measured: {error}")
            return
        share = max(0.0, 1 - busy / seconds)
        limit = f"busy {1000 * busy:.2f} of {1000 * seconds:.2f} ms"
        self.rows.append(BenchRow(f"device idle, {name}", 100 * share, "% of the time", limit, share))

    def training(self, pairs: PairDataset, directory: Path, variant: Variant) -> None:
        """The trainer's whole step on one batch, and the same with its loader.

        directory: for what a training writes; it saves nothing here.
        """
        settings, ratio = self.settings, self.settings.pretrain.mask_ratio
        torch.manual_seed(settings.run.seed)
        trainer = Trainer(self.job(pairs, directory, variant))
        flops = self._training_flops(trainer)
        batches = self.batches(pairs)
        try:
            same = repeat(next(batches))
            name = f"training step, r = {ratio:g}, {variant}{self.attacked}"
            self._add(name, "images/s", _advance(trainer, same), self.batch, flops, variant)
            plain = self.device == "cpu" and not variant.compile
            if plain:
                self._on_one_thread(name, trainer, same, flops, variant)
            name = f"training, r = {ratio:g}, {variant}{self.attacked}"
            self._add(name, "images/s", _advance(trainer, batches), self.batch, flops, variant)
            if plain:  # there all tensors look alike, so each read is seen
                self._waiting(trainer, next(batches))
        finally:
            batches.close()
            AcceleratorState._reset_state()  # the next variant may be of another precision, which it would refuse

    def _on_one_thread(
        self, name: str, trainer: Trainer, batch: Iterator[PairBatch], flops: float, variant: Variant
    ) -> None:
        """The same step and product on one of several threads: as each of a rank for every core has it."""
        threads = torch.get_num_threads()
        if threads == 1:
            return
        torch.set_num_threads(1)
        try:
            self._add(f"{name}, one thread", "images/s", _advance(trainer, batch), self.batch, flops, variant)
        finally:
            torch.set_num_threads(threads)

    def _waiting(self, trainer: Trainer, batch: PairBatch) -> None:
        """How often a step waits for its device, and into how many pieces compiling cuts it."""
        states = trainer.optimizer.optimizer.state.values()  # AdamW's counters are the host's own, as is the batch
        with host_reads([batch.epochs, batch.indices, *(state["step"] for state in states)]) as reads:
            trainer.advance(iter([batch]))
        count = len(reads.calls)
        self.rows.append(BenchRow("host reads a training step", count, "reads", "at most 1", count))
        breaks = trainer.graph_breaks(batch)
        self.rows.append(BenchRow("graph breaks a training step", breaks, "breaks", "none", breaks))

    def job(self, pairs: PairDataset, directory: Path, variant: Variant) -> TrainingJob:
        """A training of one batch a step, which never ends by itself. directory: for what it writes."""
        settings = self.settings
        compute = replace(
            settings.compute,
            precision=variant.precision,
            compile=variant.compile,
            cuda_graphs=variant.cuda_graphs,
            device=self.device,
            zero_stage=None,
        )
        return TrainingJob(
            label="bench", model=MaskedAutoencoder(settings.model), dataset=pairs, settings=self.train_settings(),
            objective=settings.objective, compute=compute, directory=directory / "checkpoints",
            metrics=directory / "metrics.jsonl", samples=directory / "samples", manifest=CheckpointManifest(step=0),
            workers=worker_count(settings.data.workers), adversary=self.adversary(),
        )  # fmt: skip

    def adversary(self) -> Adversary:
        """As the training has it, its classifiers of random weights.

        An attack on the whole is of all its steps from the first one on, and no held-out images stop a step.
        """
        settings, train = self._attacked_at_once(), self.train_settings()
        asked = asked_settings(settings, train) if asks_classifiers(settings, settings.objective) else []
        classifiers = tuple(load_classifier(each.classifier, CLASSES, None).to(self.device) for each in asked)
        return adversary_of(settings, train, settings.objective, classifiers)

    def _attacked_at_once(self) -> Settings:
        """The settings without a beginning of the training that differs from the rest of it."""
        robust = replace(self.settings.robust, clean_until=0.0, eps_ramp=0.0, check_every=0)
        return replace(self.settings, robust=robust)

    @property
    def attack_steps(self) -> int:
        """Of the attack that a training step makes itself; 0 where shards or noise bring the second images."""
        settings = self.settings
        online = settings.attack.online and OBJECTIVES[settings.objective.name].attacks
        return AttackSpec.of(settings.attack).steps if online else 0

    @property
    def attacked(self) -> str:
        """The end of a training row's name, where its figure is of an attack, too."""
        settings = self.settings
        whom = "the whole" if settings.pretrain.attacked == "whole" else "the classifier"
        return f", with {AttackSpec.of(settings.attack).name} on {whom}" if self.attack_steps else ""

    def _training_flops(self, trainer: Trainer) -> float:
        """Of one image: forward and backward of the network, of the classifier that judges, and of the attack.

        The backward to the images alone costs as much as a forward, that to the weights too costs two.
        """
        settings, job = self.settings, trainer.job
        size = settings.model.image_size
        network = float(job.model.flops(size, settings.pretrain.mask_ratio))  # type: ignore[operator]
        against = job.adversary.against
        asked = against.classifiers if against else job.adversary.classifiers
        classifier = 0.0
        if asked or self.attack_steps:
            model = asked[0] if asked else load_classifier(settings.classifier, CLASSES, None).to(self.device)
            classifier = flops_of(model, torch.rand(1, 3, size, size, device=self.device))
        judged = 2 * classifier * bool(job.adversary.classifiers)
        one_attack_step = 2 * (classifier + network * bool(against))
        return 3 * network + judged + self.attack_steps * one_attack_step

    def train_settings(self) -> TrainSettings:
        """As configured, but for its size; all at one masking ratio."""
        return replace(
            self.settings.pretrain, batch_size=self.batch, steps=ENDLESS, accumulation=1, mask_until=1.0, source=None
        )

    def batches(self, pairs: PairDataset) -> PairBatches:
        """What its loader delivers; to be closed."""
        workers = worker_count(self.settings.data.workers)
        loader = pair_loader(
            pairs, self.train_settings(), first=0, last=ENDLESS, rank=0, world=1, workers=workers,
            pin=self.device == "cuda",
        )  # fmt: skip
        return iter(loader)

    def attack(self, variant: Variant) -> None:
        """Steps of the configured attack (forward and backward to the input) on the configured classifier."""
        settings, size = self.settings, self.settings.data.image_size
        spec = AttackSpec.of(settings.attack)
        count, steps = (ATTACKED, 1) if self.device == "cpu" else (settings.attack.batch_size, spec.steps)
        images = torch.rand(count, 3, size, size, device=self.device)
        exact = load_classifier(settings.classifier, CLASSES, None).to(self.device).requires_grad_(False)
        classifier = variant.surrogate.reduced(variant.surrogate.parts(nn.Identity(), exact)[1])
        labels = torch.zeros(count, dtype=torch.long, device=self.device)
        spec, keys = replace(spec, steps=steps), list(range(count))
        name = f"attack step ({settings.classifier.arch}){variant.suffix}"
        flops = 2 * flops_of(exact, images)
        work = lambda: attack(classifier, images, labels, spec, keys, settings.run.seed)  # noqa: E731
        self._add(name, "images/s", work, count * steps, flops, variant)

    def purification(self, variant: Variant) -> None:
        """The purifier's forward, as at test time."""
        settings, size = self.settings, self.settings.model.image_size
        images = torch.rand(self.batch, 3, size, size, device=self.device)
        exact = MAEPurifier(MaskedAutoencoder(settings.model).to(self.device), settings.purify).eval()
        surrogate = variant.surrogate
        purifier = surrogate.reduced(surrogate.parts(exact.requires_grad_(False), nn.Identity())[0])
        flops = settings.purify.passes * exact.model.flops(size, 0.0)
        self._add(f"purification{variant.suffix}", "images/s", lambda: purifier(images), self.batch, flops, variant)


def _advance(trainer: Trainer, batches: Iterator[PairBatch]) -> Work:
    return lambda: trainer.advance(batches)


def flops_of(model: nn.Module, images: torch.Tensor) -> float:
    """Forward FLOPs an image, counted on one."""
    with counted() as operations, torch.no_grad():
        model(images[:1])
    return operations.flops
