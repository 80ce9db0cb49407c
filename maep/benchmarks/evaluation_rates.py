"""Measure the evaluation on this machine: `python launch/bench_evaluation.py cfg=cifar10_cpu … [--images 64]`.

How much the driver adds to plain pyautoattack, what following a bf16 or compiled double saves, what a second worker
brings, what the cache of adversarial images saves for a second purifier, how near the purifier's forward on 49 tiles
comes to the machine's matrix product, and the memory that purifying takes. Everything is compared with something
measured in the same run. The classifier is the configured one (classifier.weights); purifiers have the configured size
and random weights. Writes run.dir/evaluation_bench.json.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from rich.table import Table

from maep.attacks.attack_state import AttackState
from maep.benchmarks.pipeline_rates import matmul_peak, seconds_of, synchronize
from maep.config.load import command_line, to_yaml
from maep.config.schema import Settings
from maep.data.images.build import build_shards, clean_split
from maep.evaluation.audit.purification_cost import PeakMemory
from maep.evaluation.reporting.provenance import environment
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import Task
from maep.evaluation.scoring.reduced_model import Speed
from maep.evaluation.scoring.score import Judge
from maep.evaluation.stage import evaluate_run
from maep.models.classifiers import classifier_identity, load_classifier
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier, save_purifier
from maep.runtime.console import console
from maep.runtime.device import prepare_device
from maep.storage.atomic import write_json
from maep.training.classifier import classifier_weights

SIDE, TILES = 224, 49
FEW, MANY = 8, 32
DOUBLES_BY = "pgd-20"
ROUNDS, CHUNKS = 3, 16
MORE = 4  # as many images for the workers as for the rest, so that starting and leaving count little
PATIENCE = 6.0  # seconds of silence after which a worker is taken for dead, and a fraction of it before one leaves


@dataclass(frozen=True)
class Row:
    """One figure. ratio: value over what it is compared with, as `what` says; wanted: what the project set itself."""

    name: str
    what: str
    ratio: float
    wanted: str


class Bench:
    """The measurements of one configuration, in a scratch directory; every attack is `autoattack-standard`."""

    def __init__(self, settings: Settings, images: int, scratch: Path) -> None:
        self.settings, self.images, self.scratch = settings, images, scratch
        self.device = prepare_device(settings.compute)
        settings.data.shards = str(Path(str(build_shards(settings))).resolve())
        chosen = settings.evaluation
        chosen.images, chosen.chunk_images, chosen.batch_size = images, images, images
        chosen.attacks, chosen.threat_models, chosen.eps = ["autoattack-standard"], ["oblivious"], chosen.eps[:1]
        chosen.check_images = chosen.figure_images = 1
        self.rows: list[Row] = []

    def evaluation(self, place: str, seed: int = 0) -> Evaluation:
        """A purifier of random weights before the classifier; `place` names its run directory and its cache."""
        settings, test = self.settings, clean_split(self.settings, "test")
        settings.run.dir, settings.run.cache = str(self.scratch / place), str(self.scratch / place / "cache")
        weights = classifier_weights(settings)
        classifier = load_classifier(settings.classifier, len(test.classes), weights).to(self.device)
        identity = classifier_identity(settings.classifier, weights)
        purifier = self.purifier(seed).to(self.device)
        return Evaluation(settings, purifier, classifier, identity, f"random-{seed}", test, self.scratch / place / "it")

    def purifier(self, seed: int = 0) -> MAEPurifier:
        """Of the configured size."""
        torch.manual_seed(seed)
        return MAEPurifier(MaskedAutoencoder(self.settings.model), self.settings.purify).eval().requires_grad_(False)

    def driver(self) -> None:
        """AutoAttack by our driver, its states saved, and by pyautoattack itself, in turn; the images must be equal."""
        ours, plain = list[float](), list[float]()
        for number in range(ROUNDS):
            evaluation = self.evaluation(f"driver-{number}")
            chunk = evaluation.attack_alone(evaluation.prepare()[0])
            images, labels = evaluation.images(chunk.task.ids)
            seed = chunk.task.seed(self.settings.run.seed)
            how: dict[str, Any] = {"norm": chunk.task.norm, "eps": chunk.task.eps, "seed": seed, "device": self.device}
            attacker = AutoAttack(chunk.model, **how)
            if not number:
                chunk.model(images)
            run = attacker.run_standard_evaluation
            taken, (expected, _) = timed(partial(run, images, labels, batch_size=self.images))
            plain.append(taken)
            taken, state = timed(partial(chunk.make, images, labels, _no_note))
            ours.append(taken)
            if not torch.equal(state.images, expected):
                raise RuntimeError("the driver and pyautoattack made different images")
        first, second = statistics.median(ours), statistics.median(plain)
        what = f"driver {first:.2f} s, pyautoattack {second:.2f} s for {len(images)} images, equal bit by bit"
        self.rows.append(Row("driver over pyautoattack", what, first / second, "at most 1.05"))

    def cache(self) -> None:
        """Records of a purifier whose oblivious images must be made, and of a second one, for which they are there."""
        evaluations = [self.evaluation("cache"), self.evaluation("cache", seed=1)]
        seconds = []
        for evaluation in evaluations:
            judge, tasks = Judge(evaluation), evaluation.prepare()
            seconds.append(timed(partial(_judge_all, judge, tasks))[0])
        what = f"attacked {seconds[0]:.2f} s, from the cache {seconds[1]:.2f} s for {self.images} images"
        self.rows.append(Row("second purifier", what, seconds[0] / seconds[1], "at least 50"))

    def doubles(self) -> None:
        """PGD through purifier and classifier, following the model itself and its doubles, once all is compiled."""
        plain, taken, standing = self.settings.evaluation, dict[Speed, float](), dict[Speed, int]()
        asked = replace(plain, attacks=[DOUBLES_BY], threat_models=["adaptive"], adaptive_images=self.images)
        for speed in (Speed(), Speed("bf16"), Speed(compile=True), Speed("bf16", compile=True)):
            self.settings.evaluation = replace(asked, precision=speed.precision, compile=speed.compile)
            evaluation = self.evaluation(f"double-{len(taken)}")
            chunk = evaluation.attack_through(evaluation.prepare()[0])
            attack = partial(chunk.make, *evaluation.images(chunk.task.ids), _no_note)
            first, _ = timed(attack)
            taken[speed], state = timed(attack)
            standing[speed] = int(state.robust.sum())
            if speed.is_exact:
                continue
            times = f"{taken[speed]:.2f} s, by the model itself {taken[Speed()]:.2f} s; the first time {first:.1f} s"
            what = f"{times}; {standing[speed]} and {standing[Speed()]} of {self.images} images stood"
            self.rows.append(Row(f"{DOUBLES_BY} by a {speed} double", what, taken[Speed()] / taken[speed], "above 1"))
        self.settings.evaluation = plain

    def workers(self) -> None:
        """The evaluate stage by one worker and by two, one thread each, from their start signal to the last's end."""
        taken, chosen = dict[int, float](), self.settings.evaluation
        chosen.images = min(MORE * self.images, len(clean_split(self.settings, "test")))
        chosen.chunk_images = chosen.batch_size = max(1, chosen.images // CHUNKS)
        self.settings.compute.claim_timeout = PATIENCE
        for count in (1, 2):
            settings, run = self.settings, self.scratch / f"workers-{count}"
            settings.run.dir, settings.run.cache = str(run), str(run / "cache")
            settings.compute.threads, settings.finetune.method = 1, "none"
            save_purifier(self.purifier().model, settings.purify, run / "purifier")
            (run / "config.yaml").write_text(to_yaml(settings))
            taken[count] = self._run_workers(run, count)
        what = f"one worker {taken[1]:.1f} s, two {taken[2]:.1f} s for {chosen.images} images, one thread each"
        self.rows.append(Row("two workers", what, taken[1] / taken[2], "at least 1.6"))

    def _run_workers(self, run: Path, count: int) -> float:
        command = [sys.executable, "-m", "maep", "bench-evaluation", f"cfg={run / 'config.yaml'}"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = [subprocess.Popen([*command, "--worker", f"{number}/{count}"], **pipes) for number in range(count)]
        for worker in workers:
            assert worker.stdout
            while worker.stdout.readline() != "ready\n":
                if worker.poll() is not None:
                    raise RuntimeError(f"a worker ended with {worker.returncode}")
        started = time.perf_counter()
        for worker in workers:
            assert worker.stdin
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            worker.communicate()
        if any(worker.returncode for worker in workers):
            raise RuntimeError(f"workers ended with {[worker.returncode for worker in workers]}")
        return time.perf_counter() - started

    def tiles(self, budget: float) -> None:
        """The purifier's forward on one image of 224 x 224: its 49 tiles in one batch."""
        purifier, image = self.purifier().to(self.device), torch.rand(1, 3, SIDE, SIDE, device=self.device)
        if SIDE // self.settings.model.image_size != 7 or self.settings.purify.overlap:
            raise RuntimeError("the figure is for 49 tiles of 32 x 32 without overlap")
        purifier.settings.batch_tiles = max(purifier.settings.batch_tiles, TILES)
        peak = matmul_peak(torch.float32, self.device, budget)
        seconds = seconds_of(lambda: purifier(image), budget)
        flops = TILES * purifier.settings.passes * purifier.model.flops(self.settings.model.image_size, 0.0)
        what = f"{seconds * 1e3:.0f} ms, {flops / seconds / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s (fp32 matmul)"
        self.rows.append(Row("purifier on 49 tiles", what, flops / seconds / peak, "at least 0.7"))

    def memory(self) -> None:
        """The most that a process which purifies few images of 224 x 224 takes, all in all, and one with four times."""
        (self.scratch / "config.yaml").write_text(to_yaml(self.settings))
        few, many = (self._memory_of(count) for count in (FEW, MANY))
        with PeakMemory() as tensors, torch.no_grad():
            self.purifier()(torch.rand(1, 3, SIDE, SIDE))
        process = f"process {few / 1e6:.0f} MB for {FEW} images of {SIDE} x {SIDE}, {many / 1e6:.0f} MB for {MANY}"
        what = f"{process}; tensors of one {tensors.peak / 1e6:.0f} MB"
        self.rows.append(Row("peak memory of purifying", what, many / few, "1, whatever the number"))

    def _memory_of(self, count: int) -> float:
        words = [
            sys.executable,
            "-m",
            "maep",
            "bench-evaluation",
            f"cfg={self.scratch / 'config.yaml'}",
            "--memory",
            str(count),
        ]
        return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def _no_note(_state: AttackState) -> None:
    """Nobody watches."""


def _judge_all(judge: Judge, tasks: Sequence[Task]) -> None:
    for task in tasks:
        judge.judge(task, _no_note)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of `work`, and what it returned."""
    started = time.perf_counter()
    result = work()
    synchronize()
    return time.perf_counter() - started, result


def work_as(settings: Settings, worker: str) -> None:
    """Be one of the workers: say that all is loaded, wait for the signal, do a share."""
    number, count = map(int, worker.split("/"))
    prepare_device(settings.compute)
    print("ready", flush=True)
    sys.stdin.readline()
    evaluate_run(settings, (number, count))


@torch.inference_mode()
def purify_and_measure(settings: Settings, count: int) -> None:
    """Print the most bytes that this process took, after purifying images one after another."""
    torch.manual_seed(0)
    prepare_device(settings.compute)
    purifier = MAEPurifier(MaskedAutoencoder(settings.model), settings.purify).eval()
    for _ in range(count):
        purifier(torch.rand(1, 3, SIDE, SIDE))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def table(rows: Sequence[Row]) -> Table:
    """The figures for the terminal."""
    made = Table("what", "figures", "ratio", "wanted")
    for row in rows:
        made.add_row(row.name, row.what, f"{row.ratio:.3g}", row.wanted)
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the measurements, print the table, write the report."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--images", type=int, default=64, help="images that are attacked")
    options.add_argument("--seconds", type=float, default=5.0, help="time spent on the purifier's forward")
    options.add_argument("--out", type=Path, help="where to write; default run.dir/evaluation_bench.json")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    options.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    namespace, settings = command_line(__doc__ or "", arguments, options=options)
    if namespace.worker:
        work_as(settings, namespace.worker)
        return 0
    if namespace.memory:
        purify_and_measure(settings, namespace.memory)
        return 0
    path = namespace.out or Path(settings.run.dir) / "evaluation_bench.json"
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(settings, namespace.images, Path(scratch))
        bench.tiles(namespace.seconds)
        bench.memory()
        bench.driver()
        bench.doubles()
        bench.cache()
        bench.workers()
    console.print(table(bench.rows))
    facts = {"schema": 1, "environment": environment(sys.argv), "images": namespace.images}
    write_json(path, {**facts, "rows": [vars(row) for row in bench.rows]})
    print(path)
    return 0
