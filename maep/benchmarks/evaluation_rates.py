"""What `maep bench-evaluation` measures of the evaluation on a machine.

How much the driver adds to plain pyautoattack, what attacking a bf16 or compiled surrogate saves, what a second worker
brings, what the cache of adversarial images saves for a second purifier, how long a report reads the records of a large
test set, how near the purifier's forward on 49 tiles comes to the machine's matrix product, and the memory that
purifying takes. Everything is compared with something measured in the same run.
"""

import os
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
from maep.benchmarks.bench_report import SpokenRows
from maep.benchmarks.device_clock import beside_matmul, synchronize
from maep.benchmarks.script_attacks import beside_torchattacks
from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import build_shards, clean_split
from maep.evaluation.audit.purification_cost import PeakMemory
from maep.evaluation.reporting.provenance import environment
from maep.evaluation.reporting.rows import combine
from maep.evaluation.scoring.chunk_record import read_records, record_path
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation, prepare
from maep.evaluation.scoring.plan import PlannedTask, read_plan
from maep.evaluation.scoring.reduced_model import SurrogateSettings
from maep.evaluation.scoring.score import score_chunk
from maep.evaluation.scoring.tasks import Task
from maep.evaluation.stage import evaluate_run
from maep.models.classifiers import classifier_identity, load_classifier
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier, save_purifier
from maep.runtime.console import console
from maep.runtime.device import prepare_device
from maep.runtime.errors import fail
from maep.storage.atomic import write_json

SIDE, TILES = 224, 49  # an ImageNet image, and its tiles of 32 x 32
FEW, MANY = 8, 32  # images purified: if memory grew with their number, four times as many would show it
SURROGATES_BY = "pgd-20"  # the attack whose time is nearly all forward and backward passes
ROUNDS = 3  # of both drivers in turn, for a median
CHUNKS = 16  # for the two workers to share: the last one alone costs a sixteenth at most
RECORDS, MERGE = 10_000, 10.0  # of chunks, as 50,000 images under a dozen attacks have; CPU seconds for all of them
MORE = 4  # as many images for the workers as for the rest, so that starting and leaving count little
PATIENCE = 6.0  # seconds of silence after which a worker counts as dead, and a fraction of it before one leaves


@dataclass(frozen=True)
class Row:
    """One figure. ratio: value over what it is compared with, as `what` says; target: what the project set itself."""

    name: str
    what: str
    ratio: float
    target: str

    def line(self) -> str:
        """As it is said when it has been measured."""
        return f"{self.name}: {self.what} ({self.ratio:.3g}; {self.target})"

    def to_json(self) -> dict[str, object]:
        """As the report has it."""
        return {"name": self.name, "what": self.what, "ratio": self.ratio, "wanted": self.target}


class Bench:
    """The measurements of one configuration, in a scratch directory; every attack is `autoattack-standard`."""

    def __init__(self, settings: Settings, images: int, scratch: Path) -> None:
        self.settings, self.images, self.scratch = settings, images, scratch
        if SIDE // settings.model.image_size != 7 or settings.purify.overlap:
            fail("bench-evaluation purifies 49 tiles without overlap; set model.image_size=32 purify.overlap=0")
        self.device = prepare_device(settings.compute)
        settings.data.shards = str(Path(str(build_shards(settings))).resolve())
        count = len(clean_split(settings, "test"))
        if images > count:
            fail(f"--images {images}: there are {count} test images")
        settings.classifier.weights = str(self._trained_classifier().resolve())
        plan = settings.evaluation
        plan.images, plan.chunk_images, plan.batch_size = images, images, images
        plan.attacks, plan.threat_models, plan.eps = ["autoattack-standard"], ["oblivious"], plan.eps[:1]
        plan.check_images = plan.figure_images = 1
        self.rows = SpokenRows[Row]()

    def _trained_classifier(self) -> Path:
        """Weights that are given, or that the classifier stage left in the run's own cache, before that is another."""
        path = classifier_weights(self.settings)
        if not path.exists():
            fail(
                f"classifier.weights: not set, and {path} is not there; train it first, with maep run stage=classifier"
            )
        return path

    def evaluation(self, name: str, seed: int = 0) -> Evaluation:
        """A purifier of random weights before the classifier; `name` is that of its run directory and its cache."""
        settings, test = self.settings, clean_split(self.settings, "test")
        settings.run.dir, settings.run.cache = str(self.scratch / name), str(self.scratch / name / "cache")
        weights = classifier_weights(settings)
        classifier = load_classifier(settings.classifier, len(test.classes), weights).to(self.device)
        identity = classifier_identity(settings.classifier, weights)
        defense = Defense(self.purifier(seed).to(self.device), classifier, f"random-{seed}", identity)
        return Evaluation(settings, defense, test, self.scratch / name / "purifier")

    def purifier(self, seed: int = 0) -> MAEPurifier:
        """Of the configured size."""
        torch.manual_seed(seed)
        return MAEPurifier(MaskedAutoencoder(self.settings.model), self.settings.purify).eval().requires_grad_(False)

    def driver(self) -> None:
        """AutoAttack by our driver, its states saved, and by pyautoattack itself, in turn; the images must be equal."""
        ours, plain = list[float](), list[float]()
        for number in range(ROUNDS):
            evaluation = self.evaluation(f"driver-{number}")
            chunk = evaluation.attacks.undefended(prepare(evaluation)[0])
            images, labels = evaluation.images(chunk.task.ids)
            seed = chunk.task.seed(self.settings.run.seed)
            task = chunk.task
            attacker = AutoAttack(chunk.model, norm=task.norm, eps=task.eps, seed=seed, device=self.device)
            if not number:
                chunk.model(images)
            run = attacker.run_standard_evaluation
            seconds, (expected, _) = timed(partial(run, images, labels, batch_size=self.images))
            plain.append(seconds)
            seconds, state = timed(partial(chunk.make, images, labels, _ignore))
            ours.append(seconds)
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
            tasks = prepare(evaluation)
            seconds.append(timed(partial(_score_all, evaluation, tasks))[0])
        what = f"attacked {seconds[0]:.2f} s, from the cache {seconds[1]:.2f} s for {self.images} images"
        self.rows.append(Row("second purifier", what, seconds[0] / seconds[1], "at least 50"))

    def merge(self, count: int = RECORDS) -> None:
        """What a report does with the records of one combination: reads and checks all, and makes one row of them."""
        evaluation = self.evaluation("merge")
        (task, *_), directory = prepare(evaluation), evaluation.directory
        score_chunk(evaluation, task, _ignore)
        first, plan = record_path(directory, task), read_plan(self.settings, directory)
        tasks = tuple(PlannedTask(replace(task, chunk=number), plan.tasks[0].identity) for number in range(count))
        for planned in tasks[1:]:
            os.link(first, record_path(directory, planned.task))  # the same bytes under all names
        started = time.process_time()
        ((folder, records),) = read_records(replace(plan, tasks=tasks), directory).items()
        combine(self.settings, "random", plan, directory / folder, records)
        seconds = time.process_time() - started
        what = f"{seconds:.1f} s of CPU for {count:,} records of {task.count} images"
        self.rows.append(Row("merge of records", what, seconds / MERGE, f"at most 1: {MERGE:g} s"))

    def surrogates(self) -> None:
        """PGD through purifier and classifier, attacking the model itself and its surrogates, once all is compiled."""
        configured, exact = self.settings.evaluation, SurrogateSettings()
        seconds, survivors = dict[SurrogateSettings, float](), dict[SurrogateSettings, int]()
        plan = replace(configured, attacks=[SURROGATES_BY], threat_models=["adaptive"], adaptive_images=self.images)
        variants = (SurrogateSettings("bf16"), SurrogateSettings(compile=True), SurrogateSettings("bf16", compile=True))
        for kind in (exact, *variants):
            self.settings.evaluation = replace(plan, precision=kind.precision, compile=kind.compile)
            evaluation = self.evaluation(f"surrogate-{len(seconds)}")
            chunk = evaluation.attacks.defended(prepare(evaluation)[0])
            attack = partial(chunk.make, *evaluation.images(chunk.task.ids), _ignore)
            first, _ = timed(attack)
            seconds[kind], state = timed(attack)
            survivors[kind] = int(state.robust.sum())
            if kind == exact:
                continue
            times = f"{seconds[kind]:.2f} s, by the model itself {seconds[exact]:.2f} s; the first time {first:.1f} s"
            what = f"{times}; {survivors[kind]} and {survivors[exact]} of {self.images} images survived"
            gain = seconds[exact] / seconds[kind]
            self.rows.append(Row(f"{SURROGATES_BY} by a {kind} surrogate", what, gain, "above 1"))
        self.settings.evaluation = configured

    def workers(self) -> None:
        """The evaluate stage by one worker and by two, one thread each, from their start signal to the last's end."""
        seconds, plan = dict[int, float](), self.settings.evaluation
        plan.images = min(MORE * self.images, len(clean_split(self.settings, "test")))
        plan.chunk_images = plan.batch_size = max(1, plan.images // CHUNKS)
        self.settings.compute.claim_timeout = PATIENCE
        for count in (1, 2):
            settings, run = self.settings, self.scratch / f"workers-{count}"
            settings.run.dir, settings.run.cache = str(run), str(run / "cache")
            settings.compute.threads, settings.finetune.method = 1, "none"
            save_purifier(self.purifier().with_options(settings.purify), run / "purifier")
            (run / "config.yaml").write_text(to_yaml(settings), encoding="utf-8")
            seconds[count] = self._run_workers(run, count)
        what = f"one worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s for {plan.images} images, one thread each"
        self.rows.append(Row("two workers", what, seconds[1] / seconds[2], "at least 1.6"))

    def _run_workers(self, run: Path, count: int) -> float:
        command = [sys.executable, "-m", "maep", "bench-evaluation", f"cfg={run / 'config.yaml'}"]
        workers = [
            subprocess.Popen(
                [*command, "--worker", f"{number}/{count}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for number in range(count)
        ]
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
        purifier.settings.batch_tiles = max(purifier.settings.batch_tiles, TILES)
        seconds, peak = beside_matmul(lambda: purifier(image), torch.float32, self.device.type, budget)
        flops = TILES * purifier.settings.passes * purifier.model.flops(self.settings.model.image_size, 0.0)
        what = f"{seconds * 1e3:.0f} ms, {flops / seconds / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s (fp32 matmul)"
        self.rows.append(Row("purifier on 49 tiles", what, flops / seconds / peak, "at least 0.7"))

    def scripts(self, budget: float) -> None:
        """PGD-20 of the classifier as a script has it from this library and from torchattacks."""
        config = self.scratch / "attacked.yaml"
        config.write_text(to_yaml(self.settings), encoding="utf-8")
        rates = beside_torchattacks(config, budget)
        if rates is not None:
            what = f"{rates[0]:.1f} images/s of one core through the library, torchattacks {rates[0] / rates[1]:.1f}"
            self.rows.append(Row("pgd-20 beside torchattacks", what, rates[1], "at least 1"))

    def memory(self) -> None:
        """The most that a process which purifies few images of 224 x 224 takes, all in all, and one with four times."""
        (self.scratch / "config.yaml").write_text(to_yaml(self.settings), encoding="utf-8")
        few, many = (self._memory_of(count) for count in (FEW, MANY))
        with PeakMemory() as tensors, torch.no_grad():
            self.purifier()(torch.rand(1, 3, SIDE, SIDE))
        process = f"process {few / 1e6:.0f} MB for {FEW} images of {SIDE} x {SIDE}, {many / 1e6:.0f} MB for {MANY}"
        what = f"{process}; tensors of one {tensors.peak / 1e6:.0f} MB"
        self.rows.append(Row("peak memory of purifying", what, many / few, "1, whatever the number"))

    def _memory_of(self, count: int) -> float:
        words = [sys.executable, "-m", "maep", "bench-evaluation", f"cfg={self.scratch / 'config.yaml'}"]
        words += ["--memory", str(count)]
        return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def _ignore(_state: AttackState) -> None:
    """Nobody watches."""


def _score_all(evaluation: Evaluation, tasks: Sequence[Task]) -> None:
    for task in tasks:
        score_chunk(evaluation, task, _ignore)


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
    page = Table("what", "figures", "ratio", "wanted")
    for row in rows:
        page.add_row(row.name, row.what, f"{row.ratio:.3g}", row.target)
    return page


def measure(settings: Settings, images: int, budget: float, path: Path) -> int:
    """Run the measurements, print the table, write the report to `path`; returns the exit code.

    images: attacked; budget: seconds spent on the purifier's forward.
    """
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(settings, images, Path(scratch))
        bench.tiles(budget)
        bench.memory()
        bench.scripts(budget)
        bench.driver()
        bench.surrogates()
        bench.cache()
        bench.merge()
        bench.workers()
    console.print(table(bench.rows))
    facts = {"schema": 1, "environment": environment(sys.argv, settings.compute.device), "images": images}
    write_json(path, {**facts, "rows": [row.to_json() for row in bench.rows]})
    print(path)
    return 0
