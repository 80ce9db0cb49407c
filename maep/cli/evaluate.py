"""`maep evaluate --model MODULE:FUNCTION --data SHARDS evaluation.attacks=[…]`: evaluate any classifier or defense.

FUNCTION is called without arguments and returns an nn.Module in eval mode, images [N, 3, H, W] in [0, 1] to logits;
MODULE is looked for in the current directory, too. SHARDS is a shard set (shards/build.py makes them). The report goes
to run.dir, default runs/NAME, with robustbench.json beside it; NAME is FUNCTION unless --name says another.

`maep evaluate --robustbench RUN [--to DIRECTORY]` writes what RobustBench asks for of a finished run's purifier: its
entry, a loader and the weights, default RUN/robustbench.
"""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maep.config.command_line import command_line
from maep.runtime.errors import EarlyEnd, UserError, fail

if TYPE_CHECKING:  # help and bad input are answered without importing torch
    from torch import nn


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Raises UserError for bad input, before anything is written."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--model", metavar="MODULE:FUNCTION", help="what returns the nn.Module to evaluate")
    options.add_argument("--data", metavar="SHARDS", help="shard set with the images")
    options.add_argument("--name", help="name of the model in reports, and of its run (default FUNCTION)")
    options.add_argument("--robustbench", metavar="RUN", help="write RobustBench's submission of a run's purifier")
    options.add_argument("--to", metavar="DIRECTORY", help="where to (default RUN/robustbench); must not exist")
    namespace, settings = command_line(__doc__ or "", [*_run_name(arguments), *arguments], options=options)
    if namespace.robustbench or namespace.to:
        return _submit(namespace, options.parse_known_args(arguments)[1])
    if not namespace.model or not namespace.data:
        fail("evaluate: give --model MODULE:FUNCTION and --data SHARDS")

    if settings.evaluation.purifier:
        fail(f"purifier={settings.evaluation.purifier}: a model is judged as it is; leave it out, or judge a purifier "
             "with maep run stage=evaluate")  # fmt: skip

    from torch import nn

    from maep.evaluation.any_model import evaluate
    from maep.runtime.device import prepare_device

    model = load_callable(namespace.model)
    device = prepare_device(settings.compute)
    model = model.to(device) if isinstance(model, nn.Module) else model
    evaluate(model, namespace.data, name=settings.run.name, settings=settings)
    return 0


def _submit(namespace: argparse.Namespace, words: Sequence[str]) -> int:
    """Write the submission of a run. words: the arguments that are no options."""
    if not namespace.robustbench or namespace.model or namespace.data or namespace.name:
        fail("evaluate: --robustbench RUN and --to DIRECTORY go together, without --model, --data and --name")
    if words:
        fail(f"evaluate: {words[0]}: a submission is of a run as it was judged; leave it out")
    from maep.evaluation.reporting.robustbench_submission import write_submission
    from maep.runtime.console import say

    run = Path(namespace.robustbench)
    target = write_submission(run, Path(namespace.to) if namespace.to else run / "robustbench")
    say(f"robustbench: {target} (the authors' fields of its model_info are to be filled in)")
    return 0


def _run_name(arguments: Sequence[str]) -> list[str]:
    """run.name=NAME, from --name or else from the function's; a run.name= among the arguments comes later and wins."""
    options = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    options.add_argument("--model", default="")
    options.add_argument("--name", default="")
    try:
        namespace, _ = options.parse_known_args([word for word in arguments if word not in ("-h", "--help")])
    except argparse.ArgumentError as error:
        fail(f"evaluate: {error}")
    name = namespace.name or namespace.model.partition(":")[2]
    return [f"run.name={name}"] if name else []


def load_callable(name: str) -> "nn.Module":
    """What `module:function` returns. Raises UserError if there is no such module or function, or it raises."""
    from torch import nn

    module, _, function = name.partition(":")
    if not module or not function:
        fail(f"--model {name}: expected MODULE:FUNCTION, such as mydefense:make_model")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), function)
    except EarlyEnd:
        raise
    except SystemExit as end:
        raise _left(f"--model {name}: its module", end) from None
    except Exception as error:  # a stranger's module may raise anything while it is imported
        raise UserError(_line(f"--model {name}: cannot be imported", error)) from error
    if isinstance(make, nn.Module):
        return make
    if not callable(make):
        fail(f"--model {name}: is {type(make).__name__}; expected a function without arguments")
    try:
        model: nn.Module = make()
    except EarlyEnd:
        raise
    except SystemExit as end:
        raise _left(f"--model {name}: {function}()", end) from None
    except Exception as error:
        raise UserError(_line(f"--model {name}: {function}() raised", error)) from error
    return model


def _left(what: str, end: SystemExit) -> BaseException:
    """What to raise where a stranger's code ends the process; SIGTERM, which comes as the same, still does."""
    return end if end.code == 128 + signal.SIGTERM else UserError(f"{what} ended the process (exit code {end.code})")


def _line(what: str, error: Exception) -> str:
    """One line of what a stranger's code raised."""
    kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
    return " ".join(f"{what}: {kind}{error}".split())
