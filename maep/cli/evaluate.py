"""`maep evaluate --model MODULE:FUNCTION --data SHARDS evaluation.attacks=[…]`: judge any classifier or defence.

FUNCTION is called without arguments and returns an nn.Module in eval mode, images [N, 3, H, W] in [0, 1] to logits;
MODULE is looked for in the current directory, too. SHARDS is a shard set (shards/build.py makes them). The report goes
to run.dir, default runs/FUNCTION, with robustbench.json beside it.
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from maep.config.load import command_line
from maep.runtime.errors import UserError, fail


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Raises UserError for bad input, before anything is written."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--model", metavar="MODULE:FUNCTION", help="what returns the nn.Module to judge")
    options.add_argument("--data", metavar="SHARDS", help="shard set with the images")
    named = [word.partition(":")[2] for flag, word in itertools.pairwise(arguments) if flag == "--model"]
    first = [f"run.name={named[-1]}"] if named and named[-1] else []
    given, settings = command_line(__doc__ or "", [*first, *arguments], options=options)
    if not given.model or not given.data:
        fail("evaluate: give --model MODULE:FUNCTION and --data SHARDS")

    from maep.evaluation.any_model import evaluate
    from maep.training.distributed.world import prepare_device

    model = load_callable(given.model)
    model = model.to(prepare_device(settings.compute)) if isinstance(model, nn.Module) else model
    evaluate(model, given.data, name=settings.run.name, settings=settings)
    return 0


def load_callable(name: str) -> nn.Module:
    """What `module:function` returns. Raises UserError if there is no such module or function, or it raises."""
    module, _, function = name.partition(":")
    if not module or not function:
        fail(f"--model {name}: expected MODULE:FUNCTION, such as mydefence:make_model")
    sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--model {name}: cannot be imported: {error}") from error
    if isinstance(make, nn.Module):
        return make
    if not callable(make):
        fail(f"--model {name}: is {type(make).__name__}; expected a function without arguments")
    made: nn.Module = make()
    return made
