"""Measure this machine on a configuration: `maep bench cfg=cifar10 [--seconds 3] [--batch 64] [--mae DIR]`.

Training, attack, purification, shards, loader and checkpoints, each beside the machine's own limit in the same run. On
an accelerator also in the configured precision, and the share of time that the device idles. Writes run.dir/bench.json.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from maep.config.command_line import above_zero, at_least_one, command_line
from maep.config.schema import Settings
from maep.purifiers.registry import DEFAULT
from maep.runtime.errors import fail
from maep.storage.atomic import require_writable


def require_default_purifier(settings: Settings, verb: str) -> None:
    """Raise UserError for another kind, whose place in the figures the masked autoencoder would take."""
    if settings.purifier.kind != DEFAULT:
        fail(f"purifier.kind={settings.purifier.kind}: {verb} measures {DEFAULT} alone; name its configuration")


def main(arguments: Sequence[str]) -> int:
    """Parse, measure; exit code 2 for bad input."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--seconds", type=above_zero, help="time spent on each figure (1 on a GPU, 3 on a CPU)")
    options.add_argument("--batch", type=at_least_one, help="images a training step (pretrain.batch_size; 64 on a CPU)")
    options.add_argument(
        "--mae", type=Path, help="a checkout of facebookresearch/mae, whose step is measured beside ours"
    )
    options.add_argument("--beside", type=Path, help=argparse.SUPPRESS)  # be a training that is measured beside another
    namespace, settings = command_line(__doc__ or "", arguments, options=options)
    require_default_purifier(settings, "bench")
    # Imported only now: help and a mistyped setting are answered without torch.
    from maep.benchmarks.pipeline_rates import measure, train_beside

    require_writable(Path(settings.run.dir), "run.dir")
    if namespace.mae:
        from maep.benchmarks.official_mae import require_checkout, train_official_on_request

        require_checkout(namespace.mae)
        if namespace.beside:
            train_official_on_request(settings, namespace.batch, namespace.mae)
            return 0
    if namespace.beside:
        return train_beside(settings, namespace.batch, namespace.beside)
    return measure(settings, namespace.batch, namespace.seconds, namespace.mae)
