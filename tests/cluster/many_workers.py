"""Evaluation by 64 workers: `python -m tests.cluster.many_workers [WORKERS]`; writes tests/reports/many_workers.json.

All is real, on the Slurm of this folder: claims, attacks, records, the merge. The model alone stands in for one that
takes long: a gradient of it sleeps for a known time, so that two cores are enough for 64 workers. Each node starts 16,
which are copies of one process, as importing torch 64 times would take minutes here: 3 GB in all, 1.5 of 12 WORKERS.

What a worker does from the start signal to its last chunk is taken apart by the kernel's own counters: asleep in the
model, on a core, waiting for a core (two serve all 64 here). The rest is what it waited for: locks, claims of others,
the disk. Two sizes of the set show whether that grows.
"""

import gc
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maep.benchmarks.bench_report import BenchReport, BenchRow
from maep.benchmarks.linked_sets import CLASSES, photographs, write_linked_set
from maep.config.schema import Settings
from maep.data.shards import ShardSet
from maep.evaluation.reporting.provenance import environment
from maep.evaluation.scoring.chunk_record import read_records
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.metrics import psnr
from maep.evaluation.scoring.plan import read_plan
from maep.evaluation.workers import evaluate_all
from maep.runtime.device import prepare_device
from maep.storage.atomic import write_json
from tests.cluster.cluster import Cluster
from tests.cluster.configuration import NODES
from tests.tiny import ROOT

REPORT = ROOT / "tests" / "reports" / "many_workers.json"
SIZES = (12_500, 50_000)
WORKERS, CHUNK, SIDE = 64, 25, 8  # 2,000 chunks in all, as many images as a large classifier attacks at once; pixels
ATTACK = 2.0  # seconds that an attack of a chunk takes; AutoAttack on ImageNet takes minutes
PATIENCE = 40.0  # seconds of silence after which a worker counts as dead: 64 share two cores here
SHARD = 500  # images a shard


class SleepingClassifier(nn.Module):
    """A linear classifier whose gradients take long: a forward pass of a whole chunk that asks for one sleeps first.

    Notes at each call for a chunk how the calling thread has spent its time so far. The checks of the defense itself,
    which one worker makes of single images, are neither slowed nor noted.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.slept = seconds, 0.0
        self.spent = Spent.now(self.slept)
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, len(CLASSES)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of images [N, 3, H, W]."""
        if len(images) == CHUNK:
            if images.requires_grad:
                started = time.perf_counter()
                time.sleep(self.seconds)
                self.slept += time.perf_counter() - started
            self.spent = Spent.now(self.slept)
        logits: Tensor = self.network(images)
        return logits


@dataclass(frozen=True)
class Spent:
    """Seconds of a thread until now: by the clock, asleep in the model, on a core, and waiting for one."""

    clock: float
    model: float
    core: float
    queue: float

    @classmethod
    def now(cls, model: float) -> "Spent":
        """Of the calling thread. model: seconds asleep there."""
        core, queue, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
        return cls(time.monotonic(), model, core / 1e9, queue / 1e9)

    def since(self, start: "Spent") -> "Spent":
        """The difference."""
        return Spent(*(mine - other for mine, other in zip(asdict(self).values(), asdict(start).values(), strict=True)))

    @property
    def waiting(self) -> float:
        """What is left: seconds in which the thread wanted no core and the model none of it."""
        return max(0.0, self.clock - self.model - self.core - self.queue)


# --- a worker ---


def evaluation_of(directory: Path, images: int) -> Evaluation:
    """The evaluation in a directory with its set."""
    settings = Settings()
    settings.run.name, settings.run.dir, settings.run.cache = "many", str(directory / "run"), str(directory / "cache")
    settings.compute.claim_timeout, settings.compute.threads = PATIENCE, 1
    plan = settings.evaluation
    plan.images, plan.chunk_images, plan.batch_size = images, CHUNK, CHUNK
    plan.attacks, plan.threat_models, plan.eps = ["fgsm"], ["oblivious"], [4 / 255]
    plan.check_images = plan.figure_images = 1
    defense = Defense(nn.Identity(), SleepingClassifier(ATTACK), "identity", "sleeping")
    return Evaluation(settings, defense, ShardSet(directory / "test"), directory / "run" / "evaluation" / "none")


def work(directory: Path, images: int, workers: int, node: int) -> int:
    """Be the workers of one node, of `workers` in all; returns the exit code."""
    evaluation = evaluation_of(directory, images)
    prepare_device(evaluation.settings.compute)
    psnr(*evaluation.images(range(1))[:1] * 2)  # imports what takes seconds and 200 MB, once for all
    gc.collect()
    gc.freeze()  # or each copy's collector would touch, and so copy, all of its memory
    share = workers // len(NODES)
    children = [start_worker(evaluation, directory, node * share + number, workers) for number in range(share)]
    return int(any(os.waitpid(child, 0)[1] for child in children))


def start_worker(evaluation: Evaluation, directory: Path, number: int, workers: int) -> int:
    """A copy of this process, which waits for the start signal and is worker `number` of `workers`; returns its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        (directory / f"ready-{number}").touch()
        while not (directory / "go").exists():
            time.sleep(0.05)
        model = evaluation.defense.classifier
        assert isinstance(model, SleepingClassifier)
        start = Spent.now(0.0)
        evaluate_all([evaluation], (number, workers))
        write_json(directory / f"spent-{number}.json", asdict(model.spent.since(start)))
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)  # a child must not go on as its parent


# --- all of them ---


def run_workers(cluster: Cluster, directory: Path, images: int, workers: int) -> list[Spent]:
    """How each of `workers` spent its time on a set of `images`, made below `directory`."""
    write_linked_set(directory / "test", images // SHARD, photographs(SHARD, SIDE, 0), "raw")
    words = [f"--nodes={len(NODES)}", "--ntasks-per-node=1", "--time=30", f"--chdir={ROOT}", sys.executable, "-m"]
    command = [*words, "tests.cluster.many_workers", str(directory), str(images), str(workers)]
    with (directory / "log").open("wb") as log:
        launched = cluster.start(["srun", *command], stdout=log, stderr=log)
        cluster.wait_for(lambda: len(list(directory.glob("ready-*"))) == workers, 300, "all workers")
        (directory / "go").touch()
        if launched.wait():
            raise RuntimeError((directory / "log").read_text()[-2000:])
    return [Spent(**json.loads(path.read_text())) for path in sorted(directory.glob("spent-*.json"))]


def rows_of(images: int, spent: Sequence[Spent], merge: float) -> list[BenchRow]:
    """What the workers of a set took. merge: seconds to read all records."""
    chunks, name = images // CHUNK, f"{images:,} images"
    wall = max(each.clock for each in spent)
    shares = [each.waiting / each.clock for each in spent]
    each_chunk = 1000 * sum(one.core for one in spent) / chunks
    ideal = chunks * ATTACK / len(spent)
    return [
        BenchRow(
            f"waiting of a worker, {name}", 100 * statistics.median(shares), "% of its time",
            f"the most of {len(spent)} workers {100 * max(shares):.1f} %", statistics.median(shares),
        ),
        BenchRow(
            f"claims, {name}", 2 * chunks / wall, "claims/s",
            f"{wall:.1f} s; the attacks alone {ideal:.1f} s", ideal / wall,
        ),
        BenchRow(
            f"CPU a chunk, {name}", each_chunk, "ms", f"an attack {1000 * ATTACK:.0f} ms", each_chunk / 1000 / ATTACK
        ),
        BenchRow(f"merge, {name}", merge, "CPU s", f"{chunks:,} records", merge / chunks),
    ]  # fmt: skip


def measure(cluster: Cluster, base: Path, sizes: Sequence[int], workers: int) -> list[BenchRow]:
    """The rows of all sizes."""
    rows = []
    for images in sizes:
        directory = base / str(images)
        spent = run_workers(cluster, directory, images, workers)
        evaluation, started = evaluation_of(directory, images), time.process_time()
        records = read_records(read_plan(evaluation.settings, evaluation.directory), evaluation.directory)
        assert sum(len(chunks) for chunks in records.values()) == images // CHUNK
        rows += rows_of(images, spent, time.process_time() - started)
        for row in rows[-4:]:
            print(f"{row.name}: {row.rate:.3g} {row.unit} ({row.limit})", flush=True)
    return rows


def main(workers: int) -> int:
    """Measure, print, write the report. workers: a multiple of the nodes."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        cluster = Cluster.up()
        try:
            rows = measure(cluster, Path(scratch), SIZES, workers)
        finally:
            cluster.down()
    command = environment(["-m", "tests.cluster.many_workers", *sys.argv[1:]])
    BenchReport(command, CHUNK, tuple(rows), workers, 0, time.perf_counter() - started).write(REPORT)
    print(REPORT.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) == 2 else WORKERS))
    sys.exit(work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(os.environ["SLURM_PROCID"])))
