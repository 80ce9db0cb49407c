"""Clean shards to adversarial shards: `python shards/attack.py cfg=cifar10 [--worker i/n]`."""

import argparse
import re
import sys

from maep.config import command_line
from maep.errors import exit_code, fail


def worker(text: str) -> tuple[int, int]:
    """`i/n` as (i, n), 0 <= i < n. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        fail(f"--worker {text}: expected i/n with i from 0 to n-1, such as 0/4")
    return int(match[1]), int(match[2])


def main() -> None:
    """Attack one share of the clean training shards; builds neither those nor the classifier."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--worker", default="0/1", metavar="i/n", help="take only the shards i, i+n, …")
    namespace, settings = command_line(
        "Turn clean training shards into adversarial ones.", sys.argv[1:], options=options, default_cfg="digits"
    )
    share = worker(namespace.worker)
    # Imported only now: a mistyped argument is answered without waiting for every library.
    from maep.data.adversarial import make_adversarial_shards

    make_adversarial_shards(settings, share)


if __name__ == "__main__":
    sys.exit(exit_code(main))
