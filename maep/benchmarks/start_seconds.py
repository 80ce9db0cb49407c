"""Seconds from a process's start to its first training step, with everything in place, on one core; and of commands.

A command that has nothing to do, such as a run in which all is finished, should cost next to nothing.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from maep.attacks.gradient import AttackSpec
from maep.benchmarks.bench_report import BenchRow
from maep.benchmarks.linked_sets import CLASSES, write_linked_set
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data.adversarial import attack_identity
from maep.data.shard_manifest import AdversarialManifest
from maep.data.shards import ShardSet
from maep.models.classifiers import build_classifier, classifier_identity
from maep.pipeline.execution import run_pipeline
from maep.runtime.errors import fail
from maep.runtime.exits import ExitCode
from maep.storage.atomic import atomic_file
from maep.storage.tensor_files import save_file

MOST = 15.0  # seconds: a requeued job is to train within seconds, whatever the size of its set
MOST_OF_HELP, MOST_OF_FINISHED = 0.5, 2.0  # CPU seconds of `maep --help`, and of a run with everything finished
COMMANDS = 3  # times that each is run, for a median
PATIENCE = 600.0  # seconds: after which a start has failed
STEPS = (1, 2)  # the first run ends after one step; the second, which is timed, goes on from its checkpoint
# A model that a CPU trains in milliseconds: the start is what counts.
SMALL = (
    "classifier.arch=cifar_resnet8", "model.patch_size=4", "model.encoder_width=32", "model.encoder_depth=2",
    "model.encoder_heads=2", "model.decoder_width=32", "model.decoder_depth=1", "model.decoder_heads=2",
    "model.refine_width=0", "model.refine_depth=0", "model.stem_width=0", "model.stem_depth=0",
    "pretrain.batch_size=16", "pretrain.steps=3", "pretrain.log_every=1", "compute.device=cpu", "compute.threads=1",
)  # fmt: skip

# What a run of all stages adds to that, as little as there can be of it.
WHOLE = (
    "finetune.method=none", "evaluation.images=8", "evaluation.chunk_images=8", "evaluation.batch_size=8",
    "evaluation.attacks=[fgsm]", "evaluation.threat_models=[oblivious]", "evaluation.check_images=1",
    "evaluation.figure_images=1",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """Seconds to the first step: of CPU in all processes of the training, and by the clock."""

    cpu: float
    wall: float


def _cpu_seconds(root: int) -> float:
    """Spent so far by a process, its children that have ended, and all that are its descendants now."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile, and its parent has its time
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            number = int(stat.parent.name)
            parents[number], ticks[number] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {root}
    while children := {process for process, parent in parents.items() if parent in family} - family:
        family |= children
    return sum(ticks.get(process, 0) for process in family) / os.sysconf("SC_CLK_TCK")


def _launch_nothing(name: str, _settings: Settings) -> None:
    raise RuntimeError(f"{name}: there is nothing to train before the training that is timed")


class Starts:
    """Trainings on linked sets of `images`, below `scratch`."""

    def __init__(self, seed: int, images: np.ndarray, scratch: Path) -> None:
        self.seed, self.images, self.scratch = seed, images, scratch.resolve()

    def rows(self, sizes: Sequence[int]) -> list[BenchRow]:
        """One row a size, each beside the first size's; in CPU seconds, which are what one free core would take."""
        taken = {shards: self._seconds(shards) for shards in sizes}
        first = taken[sizes[0]].cpu
        return [
            BenchRow(
                f"first step after start, {shards:,} shards", start.cpu, "CPU s",
                f"at most {MOST:g} s; {sizes[0]} shards {first:.1f} s; by the clock {start.wall:.1f} s",
                start.cpu / first,
            )
            for shards, start in taken.items()
        ]  # fmt: skip

    def commands(self, shards: int) -> list[BenchRow]:
        """CPU seconds of the help, and of a run on the set of a start in which every stage is finished."""
        words = [*self._words(self.scratch / f"start-{shards}"), *WHOLE, "stage=all"]
        self._run(words)
        return [
            _command_row("maep --help", [sys.executable, "-m", "maep", "--help"], MOST_OF_HELP),
            _command_row("a finished run", [sys.executable, "-m", "maep", "run", *words], MOST_OF_FINISHED),
        ]

    def _seconds(self, shards: int) -> "Start":
        """Of a training that goes on from its first step."""
        directory = self.scratch / f"start-{shards}"
        words = self._prepare(directory, shards)
        for stage in ("shards", "classifier", "attack"):
            run_pipeline(load_settings("digits", words[1:]), stage, _launch_nothing)
        self._run([*words, "stage=pretrain", f"pretrain.pause_at={STEPS[0]}"])
        metrics = directory / "run" / "metrics.jsonl"
        before = len(metrics.read_text(encoding="utf-8").splitlines())
        started = time.perf_counter()
        process = self._started([*words, "stage=pretrain", f"pretrain.pause_at={STEPS[1]}"])
        try:
            while len(metrics.read_text(encoding="utf-8").splitlines()) == before:
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    fail(f"{directory}: the training ended before its first step")
                time.sleep(0.02)
            return Start(_cpu_seconds(process.pid), time.perf_counter() - started)
        finally:
            process.communicate()

    def _prepare(self, directory: Path, shards: int) -> list[str]:
        """Both sets and a classifier; returns the settings of a run on them."""
        weights, words = directory / "classifier.safetensors", self._words(directory)
        settings = load_settings("digits", words[1:])
        for split, count in (("train", shards), ("test", 1)):
            write_linked_set(directory / "clean" / split, count, self.images, "png")
        torch.manual_seed(self.seed)
        network = build_classifier(settings.classifier, len(CLASSES)).network
        with atomic_file(weights) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary)
        clean = ShardSet(directory / "clean" / "train")
        manifest = self._manifest(settings, clean, classifier_identity(settings.classifier, weights))
        write_linked_set(directory / "adversarial", shards, self.images, "png", manifest)
        return words

    def _words(self, directory: Path) -> list[str]:
        return [
            "cfg=digits", *SMALL, f"run.seed={self.seed}", f"run.dir={directory / 'run'}",
            f"run.cache={directory / 'cache'}", f"data.shards={directory / 'clean'}",
            f"attack.shards={directory / 'adversarial'}", f"classifier.weights={directory / 'classifier.safetensors'}",
        ]  # fmt: skip

    def _manifest(self, settings: Settings, clean: ShardSet, classifier: str) -> AdversarialManifest:
        """Of the clean images once more, as an attack with a budget of nothing would leave them."""
        return AdversarialManifest(
            dataset="linked", split="train", image_size=clean.manifest.image_size, classes=CLASSES,
            clean_identity=clean.identity, classifier_identity=classifier,
            attack=asdict(AttackSpec.of(settings.attack)),
            attack_identity=attack_identity(settings.attack, self.seed, clean, classifier), seed=self.seed,
            batch_size=settings.attack.batch_size, success_rate=0.0, clean_accuracy=0.0, adversarial_accuracy=0.0,
            eps_used=0.0,
        )  # fmt: skip

    def _started(self, words: Sequence[str]) -> "subprocess.Popen[str]":
        """The command on one of this process's cores."""
        core = min(os.sched_getaffinity(0))
        return subprocess.Popen(
            [sys.executable, "-m", "maep", "run", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip

    def _run(self, words: Sequence[str]) -> None:
        process = self._started(words)
        output = process.communicate()[0]
        if process.returncode not in (ExitCode.DONE, ExitCode.PAUSED):
            fail(f"{words[-1]}: {output.strip().splitlines()[-1]}")


def _command_row(name: str, command: Sequence[str], most: float) -> BenchRow:
    """Median CPU seconds of a command, its processes included."""
    taken = []
    for _ in range(COMMANDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    seconds = statistics.median(taken)
    return BenchRow(f"CPU of {name}", seconds, "CPU s", f"at most {most:g} s", seconds / most)
