"""Measure reading at any size: `maep bench-loader [--shards 50,1000,10000] [--starts 50,1000] [--seconds 5]`.

The same images in sets of more and more shards: what it takes to open them, to order them, to keep their indexes, and
how many pairs a second they give, and how many images a build of shards writes; beside webdataset's sequential reading
of the same shards, and its writing; the seconds from a process's start to its first training step, and of commands that
have nothing to do. Rates are per second of CPU of one process, alternated, so that what else
runs on the machine matters little. Writes run.dir/bench_loader.json.
"""

import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from rich.table import Table

from maep.benchmarks.bench_report import BenchReport, BenchRow, SpokenRows
from maep.benchmarks.linked_sets import CLASSES, photographs, write_linked_set
from maep.benchmarks.start_seconds import Starts
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.config.training_settings import TrainSettings
from maep.data.image_encoding import SUFFIXES
from maep.data.images.build import build_shards
from maep.data.order import sample_at
from maep.data.pairs import PairDataset, pair_loader
from maep.data.shards import ShardSet
from maep.evaluation.reporting.provenance import environment
from maep.runtime.console import console
from maep.runtime.errors import fail

LOADER_BENCH = "bench_loader.json"
SHARD_IMAGES = 1000  # images a shard, as data.shard_images has it
# A tar is linked once for each shard, and ext4 has 65,000 links of a file.
MOST_SHARDS = 64_000
SIDE, PATCH, BATCH = 32, 2, 256  # CIFAR's, and the paper's purifier on it
STREAMED = 4  # shards that webdataset reads in a round; it reads one like the other
ROUNDS = 5  # of every rate, in turns; the medians are given
# Of reading: a machine's rate may change by a tenth from one second to the next, so many short ones are compared.
READING_ROUNDS = 15
APART = 1000  # batches from a round's first sample to the next one's: each reads others
ENCODINGS = ("png", "raw")


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def resident_bytes() -> int:
    """Memory of this process, mapped files that it has touched included."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match is not None
    return 1024 * int(match[1])


class LoaderBench:
    """Rows for sets of several sizes, written below `scratch`."""

    def __init__(self, seed: int, sizes: Sequence[int], budget: float, scratch: Path) -> None:
        self.seed, self.sizes, self.budget, self.scratch = seed, sizes, budget, scratch
        self.images = photographs(SHARD_IMAGES, SIDE, seed)
        self.rows = SpokenRows[BenchRow]()

    def run(self) -> None:
        """All measurements of both encodings; of the sets' sizes, which are alike, those of the first alone."""
        for encoding in ENCODINGS:
            paths = {n: self.scratch / f"{encoding}-{n}" for n in self.sizes}
            for n, path in paths.items():
                write_linked_set(path, n, self.images, encoding)
            sets = {n: self._opened(n, path, report=encoding == ENCODINGS[0]) for n, path in paths.items()}
            self._rates(encoding, sets, paths[self.sizes[0]])
        self._building()

    def _add(self, name: str, rate: float, unit: str, limit: str, ratio: float) -> None:
        self.rows.append(BenchRow(name, rate, unit, limit, ratio))

    def _opened(self, shards: int, path: Path, *, report: bool) -> ShardSet:
        """A set as a training has it: its indexes in one file, which the first opening makes."""
        first = cpu_seconds(lambda: ShardSet(path).prepare())
        before = resident_bytes()
        opened: list[ShardSet] = []
        seconds = cpu_seconds(lambda: opened.append(ShardSet(path)))
        ordering = cpu_seconds(lambda: sample_at(0, len(opened[0]), self.seed))
        if report:
            name, millions = f"{shards:,} shards", len(opened[0]) / 1e6
            memory = (resident_bytes() - before) / 1e6
            self._add(f"opening, {name}", seconds, "s", f"the first time {first:.2f} s", seconds / first)
            self._add(f"order of an epoch, {name}", ordering, "s", f"{millions:g} million samples", ordering / millions)
            if millions >= 1:  # below, the interpreter's own allocations are larger
                per_million = memory / millions
                self._add(f"memory, {name}", per_million, "MB a million samples", "at most 40", per_million / 40)
        return opened[0]

    def _rates(self, encoding: str, sets: dict[int, ShardSet], streamed: Path) -> None:
        """Pairs/s of every size and images/s of webdataset, in turns; compared round by round."""
        urls = sorted(map(str, streamed.glob("shard-*.tar")))[:STREAMED]
        pairs: dict[int, list[float]] = {n: [] for n in sets}
        images: list[float] = []
        for number in range(READING_ROUNDS):
            images.append(self._streaming_rate(urls, encoding))
            for n, shards in sets.items():
                pairs[n].append(self._pair_rate(shards, number * APART))
        stream, smallest = statistics.median(images), min(sets)
        for n, rates in pairs.items():
            rate = statistics.median(rates)
            name = f"pair loader, {n:,} shards, {encoding}"
            if n == smallest:
                limit, ratio = f"webdataset {stream:.0f} images/s, one after another", 2 * rate / stream
            else:
                alone = statistics.median(pairs[smallest])
                limit = f"{smallest} shards {alone:.0f} pairs/s"
                ratio = statistics.median(one / other for one, other in zip(rates, pairs[smallest], strict=True))
            self._add(name, rate, "pairs/s", limit, ratio)

    def _pair_rate(self, shards: ShardSet, first: int) -> float:
        """Of the training loader in this process, random order, flips and masks included. first: batch."""
        dataset = PairDataset(shards, shards, TrainSettings(batch_size=BATCH), SIDE, PATCH, self.seed)
        batches = iter(
            pair_loader(dataset, dataset.settings, first=first, last=first + 10**6, rank=0, world=1, workers=0)
        )
        next(batches)
        count, started = 0, time.process_time()
        while time.process_time() - started < self.budget / READING_ROUNDS:
            count += len(next(batches).clean)
        return count / (time.process_time() - started)

    def _building(self) -> None:
        """Shards of a folder of PNG files, by the build stage and by webdataset's writer with Pillow, in turns."""
        folder = write_folder(self.scratch / "images", self.images)
        ours, theirs = list[float](), list[float]()
        for number in range(ROUNDS):
            scratch = self.scratch / f"built-{number}"
            ours.append(len(self.images) / cpu_seconds(partial(build_with_maep, folder, scratch / "cache")))
            theirs.append(len(self.images) / cpu_seconds(partial(build_with_webdataset, folder, scratch)))
        rate, other = statistics.median(ours), statistics.median(theirs)
        limit = f"webdataset.ShardWriter with Pillow {other:.0f} images/s"
        self._add("shard build", rate, "images/s", limit, rate / other)

    def _streaming_rate(self, urls: list[str], encoding: str) -> float:
        """Of webdataset on the same shards, as its documentation reads them, decoding included."""
        samples = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple(SUFFIXES[encoding], "cls")
        count, started = 0, time.process_time()
        while time.process_time() - started < self.budget / READING_ROUNDS:
            count += sum(1 for _ in samples)
        return count / (time.process_time() - started)


def write_folder(folder: Path, images: np.ndarray) -> Path:
    """PNG files in a folder a class; returns the folder. images: uint8 [N, H, W, 3]."""
    for index, image in enumerate(images):
        path = folder / CLASSES[index % len(CLASSES)] / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def build_with_maep(folder: Path, cache: Path) -> None:
    """The build stage in this process: looks at all files first, checks each image, hashes what it writes."""
    words = [
        f"data.root={folder}", "data.format=folders", "data.test_fraction=0", f"data.image_size={SIDE}",
        "data.workers=0", f"run.cache={cache}",
    ]  # fmt: skip
    build_shards(load_settings(None, words))


def build_with_webdataset(folder: Path, target: Path) -> None:
    """As its documentation has it: each file opened, decoded and encoded by Pillow."""
    with webdataset.ShardWriter(str(target / "%05d.tar"), maxcount=SHARD_IMAGES, verbose=0) as writer:
        for path in sorted(folder.glob("*/*.png")):
            image = Image.open(path).convert("RGB")
            writer.write({"__key__": path.stem, "png": image, "cls": int(path.parent.name)})


def numbers(option: str, text: str) -> list[int]:
    """`50,1000` as numbers, growing, none above `MOST_SHARDS`. Raises UserError for anything else."""
    if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", text):
        fail(f"{option} {text}: expected numbers above 0, such as 50,1000")
    sizes = sorted({int(word) for word in text.split(",")})
    if sizes[-1] > MOST_SHARDS:
        fail(f"{option} {text}: {sizes[-1]} shards are more than {MOST_SHARDS}, for which a file system has links")
    return sizes


def measure(settings: Settings, sizes: Sequence[int], starts: Sequence[int], budget: float) -> BenchReport:
    """The rows of all measurements, in a scratch directory below the working directory."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        bench = LoaderBench(settings.run.seed, sizes, budget, Path(scratch))
        bench.run()
        timed = Starts(settings.run.seed, bench.images, Path(scratch))
        for row in itertools.chain(timed.rows(starts), timed.commands(starts[0])):
            bench.rows.append(row)
    report = BenchReport(environment(sys.argv), BATCH, tuple(bench.rows), 0, settings.run.seed)
    return replace(report, seconds=time.perf_counter() - started)


def show(settings: Settings, shards: str, starts: str, seconds: float) -> int:
    """Run the measurements, print the table, write bench_loader.json; the sizes as the command line has them."""
    report = measure(settings, numbers("--shards", shards), numbers("--starts", starts), seconds)
    table = Table("what", "rate", "unit", "beside", "ratio")
    for row in report.rows:
        rate = f"{row.rate:.3g}" if row.rate < 100 else f"{row.rate:.0f}"
        table.add_row(row.name, rate, row.unit, row.limit, f"{row.ratio:.2f}")
    console.print(table)
    path = Path(settings.run.dir) / LOADER_BENCH
    report.write(path)
    print(path)
    return 0
