"""Shards made and checked: `maep shards build|attack|verify …`, also `python shards/build.py …`."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from maep.config.command_line import Parser, command_line
from maep.runtime.console import say, say_error
from maep.runtime.errors import ExitCode, fail, nearest


def main(arguments: Sequence[str]) -> int:
    """Dispatch on the sub-verb. Raises UserError for an unknown one."""
    actions = {"build": _build, "attack": _attack, "verify": _verify}
    action, *words = arguments or [""]
    if action in ("-h", "--help"):
        print(f"usage: maep shards {'|'.join(actions)} …")
        return 0
    if action not in actions:
        what = f"maep shards {action}".rstrip()
        fail(f"{what}: choose one of {', '.join(actions)}{nearest(action, list(actions))}")
    return actions[action](words)


def _build(arguments: Sequence[str]) -> int:
    """Build what is missing of the clean shards and print where they are."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--dry-run", action="store_true", help="say what was understood of data.root, write nothing")
    namespace, settings = command_line(
        "Turn images into clean shards.", arguments, options=options, default_cfg="digits"
    )
    # Imported only now, as below: a mistyped argument is answered without waiting for every library.
    from maep.data.images.build import build_shards, check_source, describe_source

    if namespace.dry_run:
        for line in describe_source(settings):
            say(line)
        return 0
    check_source(settings)
    say(f"clean shards: {build_shards(settings)}")
    return 0


def _attack(arguments: Sequence[str]) -> int:
    """Attack one share of the clean training shards; builds neither those nor the classifier."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--worker", default="0/1", metavar="i/n", help="take only the shards i, i+n, …")
    namespace, settings = command_line(
        "Turn clean training shards into adversarial ones.", arguments, options=options, default_cfg="digits"
    )
    share = worker(namespace.worker)
    from maep.data.adversarial import make_adversarial_shards

    make_adversarial_shards(settings, share)
    return 0


def worker(text: str) -> tuple[int, int]:
    """`i/n` as (i, n), 0 <= i < n. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        fail(f"--worker {text}: expected i/n with i from 0 to n-1, such as 0/4")
    return int(match[1]), int(match[2])


def _verify(arguments: Sequence[str]) -> int:
    """Exit code 2 when any file differs from its manifest."""
    parser = Parser(prog="maep shards verify", description="Check shard sets against their manifests.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a shard set or a folder of them")
    paths = parser.parse_args(arguments).paths
    from maep.data.shards import find_shard_sets

    sets = [shard_set for path in paths for shard_set in find_shard_sets(path)]
    return ExitCode.BAD_INPUT if sum(map(_check, sets)) else 0


def _check(path: Path) -> int:
    """Print the problems of one shard set, or that it is whole; returns how many there are."""
    from maep.data.shards import read_manifest, shard_problems

    problems = shard_problems(path)
    for problem in problems:
        say_error(problem)
    if not problems:
        manifest = read_manifest(path)
        say(f"{path}: whole, {manifest.count} images in {len(manifest.shards)} shards")
    return len(problems)
