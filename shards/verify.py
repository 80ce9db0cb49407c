"""Check every shard against its manifest: `python shards/verify.py PATH [PATH…]`."""

import argparse
import sys
from pathlib import Path

from maep.data.shards import find_shard_sets, read_manifest, shard_problems
from maep.errors import exit_code
from maep.progress import say


def check(path: Path) -> int:
    """Print the problems of one shard set, or that it is whole; returns how many there are."""
    problems = shard_problems(path)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        manifest = read_manifest(path)
        say(f"{path}: whole, {manifest['count']} images in {len(manifest['shards'])} shards")
    return len(problems)


def main() -> int:
    """Exit code 2 when any file differs from its manifest."""
    parser = argparse.ArgumentParser(description="Check shard sets against their manifests.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a shard set or a folder of them")
    sets = [found for path in parser.parse_args().paths for found in find_shard_sets(path)]
    return 2 if sum(map(check, sets)) else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
