"""Measure the evaluation on this machine: `maep bench-evaluation cfg=cifar10_cpu … [--images 64]`.

How much the driver adds to plain pyautoattack, what surrogates, a second worker and the cache save, and the memory
that purifying takes. The classifier is the configured one (classifier.weights); purifiers have the configured size and
random weights. Writes run.dir/evaluation_bench.json.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from maep.cli.bench import require_default_purifier
from maep.config.command_line import above_zero, at_least_one, command_line
from maep.data.images.build import check_source
from maep.runtime.errors import fail
from maep.storage.atomic import require_writable


def main(arguments: Sequence[str]) -> int:
    """Parse, measure; exit code 2 for bad input."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--images", type=at_least_one, default=64, help="images that are attacked")
    options.add_argument("--seconds", type=above_zero, default=5.0, help="time spent on the purifier's forward")
    options.add_argument("--out", type=Path, help="where to write; default run.dir/evaluation_bench.json")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    options.add_argument("--attack", help=argparse.SUPPRESS)
    options.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    namespace, settings = command_line(__doc__ or "", arguments, options=options)
    require_default_purifier(settings, "bench-evaluation")
    path = namespace.out or Path(settings.run.dir) / "evaluation_bench.json"
    require_writable(path.parent, "--out" if namespace.out else "run.dir")
    if path.is_dir():
        fail(f"--out {path}: is a directory; name a file")
    check_source(settings)
    from maep.benchmarks.script_attacks import attack_on_request

    if namespace.attack:
        attack_on_request(settings, namespace.attack)
        return 0
    from maep.benchmarks.evaluation_rates import measure, purify_and_measure, work_as

    if namespace.worker:
        work_as(settings, namespace.worker)
        return 0
    if namespace.memory:
        purify_and_measure(settings, namespace.memory)
        return 0
    return measure(settings, namespace.images, namespace.seconds, path)
