"""The classifier stage: SGD on the clean shards, resumable anywhere, bit for bit on a CPU.

    run.cache/classifiers/ARCH-IDENTITY/            model.safetensors, manifest.json with the clean accuracy
    run.cache/classifiers/ARCH-IDENTITY.training/   step-000123/ checkpoints while it is under way

Order, crops and flips are keyed by (seed, epoch, sample index), so the step is the only state of the data.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from maep.config.data_settings import ClassifierSettings
from maep.config.schema import Settings
from maep.data.classifier_weights import PURIFIED, WEIGHTS, classifier_directory, initial_weights
from maep.data.labelled_batches import labelled_batches
from maep.data.loader_processes import LOADER_LOST, is_loader_loss
from maep.data.order import batch_at
from maep.data.shards import ShardSet, to_float
from maep.models.classifiers import Normalized, build_classifier
from maep.models.classifiers.factory import read_into
from maep.runtime.compiling import compile_in_place
from maep.runtime.console import progress_bar, say
from maep.runtime.cores import worker_count
from maep.runtime.device import Readback, fork_rng, prepare_device, upload, warn_of_slow_bf16
from maep.runtime.errors import NonFiniteLoss, PeerLost, Stopped, fail
from maep.runtime.randomness import keyed_rng
from maep.storage.locks import one_at_a_time
from maep.storage.manifests import StampedManifest
from maep.storage.sealed import MANIFEST, atomic_directory, problem_with
from maep.storage.tensor_files import save_file
from maep.training.adversarial_training import AdversarialTraining
from maep.training.batch_loss import BatchLoss, CrossEntropy, Progress
from maep.training.checkpointing.directory import Retention, checkpoint_path, newest_whole, prune
from maep.training.distributed.world import DTYPES
from maep.training.ema import Average
from maep.training.label_consistency import LabelConsistency
from maep.training.purified_training import PurifiedTraining
from maep.training.reconstruction_training import ReconstructionTraining
from maep.training.rotation_training import RotationTraining
from maep.training.signals import StopFlag

STATE = "state.safetensors"
SOAP, SOAP_ROTATION, SOAP_RECONSTRUCTION = "soap", "soap_rotation", "soap_reconstruction"  # of classifier.training
RETENTION = Retention(last=2)  # the fewest: one that is whole while the next is written
TEST_BATCH = 250  # images; a forward without gradients holds one layer at a time, less than a training step does
AVERAGING_WARMUP = 0.025  # share of the steps until which an average over steps is the weights (Wang et al. 2023)
EPOCHS_AT_ONCE = 2  # epochs whose draws are kept: a batch may straddle two


@dataclass(frozen=True, kw_only=True)
class ClassifierManifest(StampedManifest):
    """Of a trained classifier.

    settings: the section `classifier` it was trained with. precision: compute.precision. classes: names, by label.
    clean_accuracy: percent of the test_images images of the test split; None without any.
    """

    kind: str = "classifier"
    settings: Mapping[str, object]
    seed: int
    precision: str
    classes: tuple[str, ...]
    train_identity: str
    test_identity: str
    test_images: int = field(metadata={"low": 0})
    clean_accuracy: float | None = field(metadata={"low": 0, "high": 100})


@dataclass(frozen=True, kw_only=True)
class ClassifierCheckpoint(StampedManifest):
    """Of a classifier in training. step: done so far. scaler: state of the gradient scaler, empty unless fp16."""

    kind: str = "classifier checkpoint"
    step: int = field(metadata={"low": 0})
    scaler: Mapping[str, object] = field(default_factory=dict)


def train_classifier(settings: Settings, train: ShardSet, test: ShardSet) -> Path:
    """Train the configured classifier, or what is left of its training; returns its weights file.

    SGD with Nesterov momentum, a cosine schedule unless it has milestones, random crops and flips; on an accelerator in
    the configured precision. Killed anywhere and started again, it ends with the same weights. The accuracy on `test`
    goes into the manifest. Raises UserError for a damaged shard or an unwritable directory, Stopped after a signal,
    NonFiniteLoss, PeerLost when a process that loads images is killed, with everything up to then saved.
    """
    final = classifier_directory(settings, train)
    training = final.with_name(final.name + ".training")
    with one_at_a_time(training):
        if not (final / MANIFEST).is_file() or problem_with(final):
            for problem in [*train.check(), *test.check()]:
                fail(problem)
            train.prepare()
            run = _Training(settings, train, training)
            try:
                run.train()
            except RuntimeError as error:
                if is_loader_loss(error):
                    raise PeerLost(f"classifier: {LOADER_LOST}") from error
                raise
            run.finish(final, test)
        shutil.rmtree(training, ignore_errors=True)
    manifest = ClassifierManifest.read(final / MANIFEST)
    percent, images = manifest.clean_accuracy, manifest.test_images
    result = "no test images" if percent is None else f"{percent:.2f} % of {images} test images right"
    say(f"classifier: {settings.classifier.arch}, {result}, {final}")
    return final / WEIGHTS


# --- augmentation ---


@lru_cache(maxsize=EPOCHS_AT_ONCE)
def _draws(seed: int, epoch: int, count: int) -> np.ndarray:
    """Three numbers in [0, 1) for every sample of an epoch: row, column, flip; float32 [count, 3]."""
    return keyed_rng("classifier-augment", seed, epoch).random((count, 3), dtype=np.float32)


def augment(images: Tensor, draws: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Random crops of images padded with black, mirrored at random where `flip`.

    images: [N, 3, H, W], any type; draws: [N, 3] in [0, 1), which say where to crop and whether to mirror.
    padding: pixels on each side. Returns the same shape and type, in channels-last layout.
    """
    count, _, height, width = images.shape
    offsets = (draws[:, :2] * (2 * padding + 1)).long()
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    if flip:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    samples = torch.arange(count, device=images.device)[:, None, None]
    padded = F.pad(images, (padding,) * 4)
    return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def learning_rate(step: int, steps: int, settings: ClassifierSettings) -> float:
    """Of a 0-based step: a linear warm-up, then a cosine from `lr` to 0, or tenths of `lr` after `milestones`."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.milestones:
        # In whole numbers of steps: a product with the epochs may lie just below the milestone that it stands for.
        return settings.lr * 0.1 ** sum(step >= round(each * steps / settings.epochs) for each in settings.milestones)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# --- training ---


class _Training:
    """One training: its network, optimizer and step, saved and restored as a whole."""

    def __init__(self, settings: Settings, train: ShardSet, directory: Path) -> None:
        self.settings, self.classifier, self.train_set = settings, settings.classifier, train
        self.directory = directory
        self.device = prepare_device(settings.compute, trains=True)
        if settings.compute.precision == "fp16" and self.device.type == "cpu":
            fail("compute.precision=fp16: needs a CUDA device; choose bf16 or fp32")
        warn_of_slow_bf16("compute.precision", settings.compute.precision, self.device)
        self.count, self.batch_size = len(train), self.classifier.batch_size
        self.steps = math.ceil(self.classifier.epochs * self.count / self.batch_size)
        self.network = self._untrained()
        self.optimizer = self._sgd()
        self.batch_loss = self._batch_loss()
        self.average = self._average()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.compute.precision == "fp16")
        self.step = self._restore()

    def _untrained(self) -> Normalized:
        with fork_rng():
            torch.manual_seed(self.settings.run.seed)
            network = build_classifier(self.classifier, len(self.train_set.classes))
        if self.classifier.initial:
            read_into(network, self.classifier, initial_weights(self.classifier))
        network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.settings.compute.compile:
            compile_in_place(network, "compute.compile")
        return network

    def _batch_loss(self) -> BatchLoss:
        mode = self.classifier.training
        if mode == "standard":
            return CrossEntropy(self.network)
        if mode == SOAP:
            return LabelConsistency(self.network, self.classifier)
        if mode == SOAP_ROTATION:
            return RotationTraining(self.network, self.classifier)
        if mode == SOAP_RECONSTRUCTION:
            return ReconstructionTraining(self.network, self.classifier)
        if mode == PURIFIED:
            return PurifiedTraining(self.network, self.settings, self.device)
        if self.settings.compute.precision == "fp16":
            fail(f"classifier.training={mode}: needs gradients that fp16 loses; choose compute.precision=bf16 or fp32")
        return AdversarialTraining(self.network, self.classifier, len(self.train_set.classes), self.device)

    def _sgd(self) -> torch.optim.SGD:
        options = self.classifier
        return torch.optim.SGD(
            self.network.parameters(), lr=options.lr, momentum=options.momentum,
            weight_decay=options.weight_decay, nesterov=options.nesterov and options.momentum > 0,
            fused=self.device.type == "cuda" or None,
        )  # fmt: skip

    def _average(self) -> Average | None:
        """Of the parameters alone: batch norms' statistics are the network's, which needs no copy of them."""
        if self.classifier.averaging == "none":
            return None
        return Average(dict(self.network.network.named_parameters()), self.classifier.averaging_decay)

    def train(self) -> None:
        """All steps that are left. Raises Stopped between two of them after a signal, with a checkpoint saved."""
        batches = self._batches()
        self.network.train()
        with fork_rng(), StopFlag() as stop, progress_bar() as bar:
            row = bar.add_task("classifier", total=self.steps, completed=self.step, note="")
            started, first = time.perf_counter(), self.step
            while self.step < self.steps:
                loss = self._one_step(*next(batches))
                rate = (self.step - first) * self.batch_size / (time.perf_counter() - started)
                bar.update(row, completed=self.step, note=f"loss {loss:.3f} · {rate:.0f} images/s")
                if self._is_save_due() or stop.signum:
                    self._save()
                if stop.signum:
                    raise Stopped(stop.signum, self.step)

    def _pairs(self, step: int) -> list[tuple[int, int]]:
        """(epoch, sample index) of a step's samples."""
        return batch_at(step * self.batch_size, self.batch_size, self.count, self.settings.run.seed)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of the steps that are left."""
        # Made as it goes: ImageNet's ninety epochs as a list are 5 GB of numbers, and minutes.
        plan = ([index for _, index in self._pairs(step)] for step in range(self.step, self.steps))
        return labelled_batches(self.train_set, plan, self.device, worker_count(self.settings.data.workers))

    def _one_step(self, images: Tensor, labels: Tensor) -> float:
        """Augment, forward, backward, update; returns the loss, which is read once the backward pass is launched."""
        pairs = self._pairs(self.step)
        seed = self.settings.run.seed
        # Architectures with dropout draw from torch's generator; this makes the draw a function of the step.
        torch.manual_seed(int(keyed_rng("classifier-step", seed, self.step).integers(2**62)))
        draws = torch.from_numpy(np.stack([_draws(seed, epoch, self.count)[index] for epoch, index in pairs]))
        images, labels = (each.to(self.device, non_blocking=True) for each in (images, labels))
        draws = upload(draws, self.device)
        padding = self.classifier.crop_padding
        flip = self.classifier.flip and self.classifier.training != SOAP  # whose two views are mirrored each on its own
        inputs = to_float(augment(images, draws, padding=padding, flip=flip))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.classifier)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            at = Progress(seed, self.step, pairs[0][0], self.classifier.epochs)
            loss = self.batch_loss.begin(inputs, labels, at)
        reading = Readback(loss.detach()[None])
        self.scaler.scale(loss).backward()
        value = reading.tolist()[0]
        if not math.isfinite(value):
            self._stop_on(value, pairs)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.batch_loss.end()
        self.step += 1
        if self.average:
            self._take_in(self.average)
        return value

    def _take_in(self, average: Average) -> None:
        """The weights after the step just done, where it is one after which they are averaged."""
        if self.classifier.averaging == "steps":
            since = self.step - AVERAGING_WARMUP * self.steps  # a fraction of a step at first, as published
            if since >= 0:
                average.update(since)
            else:
                average.take(0.0)
        elif self._ends_epochs(1):
            is_first = (self.step - 1) * self.batch_size < self.count
            average.take(0.0 if is_first else average.decay)

    def _autocast(self) -> torch.autocast:
        precision = self.settings.compute.precision
        return torch.autocast(self.device.type, dtype=DTYPES[precision], enabled=precision != "fp32")

    def _stop_on(self, loss: float, pairs: list[tuple[int, int]]) -> None:
        samples = ", ".join(f"{index:09d} (epoch {epoch})" for epoch, index in pairs[:8])
        last = newest_whole(self.directory) or "none"
        raise NonFiniteLoss(
            f"classifier: the loss is {loss} at step {self.step}; samples {samples}, …; last good checkpoint: {last}; "
            f"a lower classifier.lr may help"
        )

    # checkpoints

    def _is_save_due(self) -> bool:
        """Whether the step just done completed another `save_every` epochs."""
        return self.step < self.steps and self._ends_epochs(self.classifier.save_every)

    def _ends_epochs(self, epochs: int) -> bool:
        """Whether the step just done completed another so many epochs; the last step does."""
        period = epochs * self.count
        done = self.step * self.batch_size
        return done // period > (done - self.batch_size) // period

    def _momentum(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((f"momentum/{name}", parameter) for name, parameter in self.network.network.named_parameters())

    def _lasting(self) -> dict[str, Tensor]:
        """What the loss keeps from step to step, and the average."""
        averaged = self.average.parts if self.average else {}
        lasting = {f"adversarial/{name}": tensor for name, tensor in self.batch_loss.tensors().items()}
        return lasting | {f"average/{name}": tensor for name, tensor in averaged.items()}

    def _save(self) -> None:
        tensors = {f"model/{name}": value for name, value in self.network.network.state_dict().items()}
        for name, parameter in self._momentum():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[name] = buffer
        tensors |= self._lasting()
        manifest = ClassifierCheckpoint(step=self.step, scaler=self.scaler.state_dict())
        with atomic_directory(checkpoint_path(self.directory, self.step), manifest) as temporary:
            save_file(_plain(tensors), temporary / STATE)
        prune(self.directory, RETENTION)

    def _restore(self) -> int:
        """Put back the newest whole checkpoint; returns its step, 0 without one."""
        newest = newest_whole(self.directory)
        if newest is None:
            return 0
        tensors = load_file(newest / STATE)
        model = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
        self.network.network.load_state_dict(model)
        for name, parameter in self._momentum():
            if name in tensors:
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(tensors[name])
        for name, tensor in self._lasting().items():
            tensor.copy_(tensors[name])
        saved = ClassifierCheckpoint.read(newest / MANIFEST)
        if saved.scaler:
            self.scaler.load_state_dict(dict(saved.scaler))
        say(f"classifier: goes on after step {saved.step} of {self.steps}")
        return saved.step

    def finish(self, final: Path, test: ShardSet) -> None:
        """Measure the clean accuracy and commit the weights: the average, where there is one."""
        if self.average:
            self.network.network.load_state_dict(self.average.parts, strict=False)  # buffers stay
        manifest = ClassifierManifest(
            settings=asdict(self.classifier), seed=self.settings.run.seed, precision=self.settings.compute.precision,
            classes=tuple(self.train_set.classes), train_identity=self.train_set.identity,
            test_identity=test.identity, test_images=len(test),
            clean_accuracy=accuracy(self.network, test, self.device),
        )  # fmt: skip
        with atomic_directory(final, manifest) as temporary:
            save_file(_plain(self.network.network.state_dict()), temporary / WEIGHTS)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the host and in the usual layout, as files hold them."""
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


@torch.no_grad()
def accuracy(classifier: nn.Module, shards: ShardSet, device: torch.device) -> float | None:
    """Percent of a set's images that a classifier gets right, in eval mode and fp32; None for an empty set."""
    classifier.eval()
    right = 0
    for start in range(0, len(shards), TEST_BATCH):
        images, labels = shards.batch(range(start, min(start + TEST_BATCH, len(shards))))
        right += int((classifier(to_float(images).to(device)).argmax(1).cpu() == labels).sum())
    return 100 * right / len(shards) if len(shards) else None
