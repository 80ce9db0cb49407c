"""The library's own commands: `maep VERB …`, also `python -m maep VERB …`."""

import importlib
import sys
from collections.abc import Sequence

from maep.config import nearest
from maep.errors import exit_code, fail

VERBS = {
    "purify": "purify an image, a folder or a shard: maep purify IN OUT run.dir=…",
    "evaluate": "judge any classifier or defence: maep evaluate --model MODULE:FUNCTION --data SHARDS",
    "compare": "one table and figure over several reports: maep compare RUN RUN …",
    "paper": "one page over all tables of the paper, from the sweeps run: maep paper [DIRECTORY]",
    "checkpoint": "list, verify, export or convert checkpoints: maep checkpoint list RUN",
}


def run(arguments: Sequence[str]) -> int:
    """Run one verb; returns its exit code. Raises UserError for an unknown one."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: maep VERB …\n" + "\n".join(f"  {name:<10} {text}" for name, text in VERBS.items()))
        return 0 if arguments else 2
    if verb not in VERBS:
        fail(f"{verb}: unknown verb{nearest(verb, list(VERBS))}; choose one of {', '.join(VERBS)}")
    code: int = importlib.import_module(f"maep.{verb}").main(rest)
    return code


def command() -> int:
    """The entry point: exit code 2 and one line for bad input."""
    return exit_code(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(command())
