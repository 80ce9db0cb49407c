"""The commands: `maep VERB …`, also `python -m maep VERB …` and the scripts in launch/ and shards/."""

import importlib
import sys
from collections.abc import Sequence

from maep.runtime.errors import exit_code, fail, nearest
from maep.runtime.openmp import share_cores
from maep.runtime.version import __version__

# verb: (module whose `main` it is, one line of help)
VERBS = {
    "run": ("maep.cli.run", "the pipeline on this machine: maep run cfg=digits"),
    "slurm": ("maep.cli.slurm", "the pipeline on a cluster: maep slurm --nodes 4 cfg=imagenet; status|cancel|logs RUN"),
    "shards": ("maep.cli.shard_commands", "clean and adversarial shards: maep shards build|attack|verify …"),
    "purify": ("maep.cli.purify", "purify an image, a folder or a shard: maep purify IN OUT run.dir=…"),
    "evaluate": (
        "maep.cli.evaluate",
        "judge any model: maep evaluate --model MODULE:FUNCTION --data SHARDS",
    ),
    "certify": ("maep.cli.certify", "certificates by randomised smoothing: maep certify cfg=NAME certify.sigma=[0.25]"),
    "compare": ("maep.cli.compare", "one table and figure over several reports: maep compare RUN RUN …"),
    "paper": ("maep.cli.paper", "one page over all tables of the paper, from the sweeps run: maep paper [DIRECTORY]"),
    "checkpoint": ("maep.cli.checkpoint", "list, verify, export or convert checkpoints: maep checkpoint list RUN"),
    "bench": ("maep.cli.bench", "this machine beside its own limits: maep bench cfg=cifar10"),
    "bench-loader": ("maep.cli.bench_loader", "reading shard sets of any size, and starts, beside webdataset"),
    "bench-evaluation": ("maep.cli.bench_evaluation", "the evaluation beside plain pyautoattack"),
}


def run(arguments: Sequence[str]) -> int:
    """Run one verb; returns its exit code. Raises UserError for an unknown one."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: maep VERB …\n" + "\n".join(f"  {name:<16} {text}" for name, (_, text) in VERBS.items()))
        return 0 if arguments else 2
    if verb == "--version":
        print(f"maep {__version__}")
        return 0
    if verb not in VERBS:
        fail(f"{verb}: unknown verb{nearest(verb, list(VERBS))}; choose one of {', '.join(VERBS)}")
    from maep.config.command_line import at_home  # only now, when a Ctrl-C is waited for: it takes most of a start

    code: int = importlib.import_module(VERBS[verb][0]).main(at_home(rest))
    return code


def command(*verb: str) -> int:
    """The entry point, of a script with its verb: exit code 2 and one line for bad input."""
    share_cores()
    return exit_code(lambda: run([*verb, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(command())
