"""`maep evaluate --model MODULE:FUNCTION --data SHARDS evaluation.attacks=[…]`: evaluate any classifier or defense.

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

from maep.config.command_line import command_line
from maep.runtime.errors import UserError, fail


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Raises UserError for bad input, before anything is written."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--model", metavar="MODULE:FUNCTION", help="what returns the nn.Module to evaluate")
    options.add_argument("--data", metavar="SHARDS", help="shard set with the images")
    functions = [word.partition(":")[2] for flag, word in itertools.pairwise(arguments) if flag == "--model"]
    run_name = [f"run.name={functions[-1]}"] if functions and functions[-1] else []
    namespace, settings = command_line(__doc__ or "", [*run_name, *arguments], options=options)
    if not namespace.model or not namespace.data:
        fail("evaluate: give --model MODULE:FUNCTION and --data SHARDS")

    from maep.evaluation.any_model import evaluate
    from maep.runtime.device import prepare_device

    model = load_callable(namespace.model)
    device = prepare_device(settings.compute.device, settings.compute.threads)
    model = model.to(device) if isinstance(model, nn.Module) else model
    evaluate(model, namespace.data, name=settings.run.name, settings=settings)
    return 0


def load_callable(name: str) -> nn.Module:
    """What `module:function` returns. Raises UserError if there is no such module or function, or it raises."""
    module, _, function = name.partition(":")
    if not module or not function:
        fail(f"--model {name}: expected MODULE:FUNCTION, such as mydefense:make_model")
    sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--model {name}: cannot be imported: {error}") from error
    if isinstance(make, nn.Module):
        return make
    if not callable(make):
        fail(f"--model {name}: is {type(make).__name__}; expected a function without arguments")
    model: nn.Module = make()
    return model
