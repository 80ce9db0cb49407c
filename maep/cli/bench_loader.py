"""Measure reading at any size: `maep bench-loader [--shards 50,1000,10000] [--starts 50,1000] [--seconds 5]`.

The same images in sets of more and more shards: what it takes to open them, to order them, to keep their indexes, and
how many pairs a second they give, and how many images a build of shards writes; beside webdataset's sequential reading
of the same shards, and its writing; the seconds from a process's start to its first training step, and of commands that
have nothing to do. Rates are per second of CPU of one process, alternated, so that what else
runs on the machine matters little. Writes run.dir/bench_loader.json.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from maep.config.command_line import above_zero, command_line
from maep.storage.atomic import require_writable


def main(arguments: Sequence[str]) -> int:
    """Parse, measure; exit code 2 for bad input."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--shards", default="50,1000,10000", help="sizes of the sets, in shards of 1,000 images")
    options.add_argument("--starts", default="50,1000", help="sizes of the sets from which a training is started")
    options.add_argument("--seconds", type=above_zero, default=5.0, help="CPU time spent on each rate")
    namespace, settings = command_line(__doc__ or "", arguments, options=options, default_cfg="digits")
    require_writable(Path(settings.run.dir), "run.dir")
    from maep.benchmarks.loader_rates import show

    return show(settings, namespace.shards, namespace.starts, namespace.seconds)
