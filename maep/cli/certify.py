"""`maep certify cfg=NAME certify.sigma=[0.25]`: what no attacker can change, by randomised smoothing.

Certifies a run's purifiers before its classifier, or with purifier=PATH one from elsewhere. Any number of processes may
share the work: `--worker i/n` on each, or `maep slurm stage=certify`. Stopped and called again, it goes on.
"""

import argparse
from collections.abc import Sequence

from maep.cli.shard_commands import worker
from maep.config.command_line import command_line
from maep.runtime.console import say
from maep.runtime.errors import fail


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Raises UserError for bad input, before anything is written."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--worker", default="", metavar="i/n", help="share the chunks with other processes")
    namespace, settings = command_line(__doc__ or "", arguments, options=options)
    share = worker(namespace.worker) if namespace.worker else None
    if not settings.certify.sigma:
        fail("certify.sigma: name the deviations of the noise, such as certify.sigma=[0.25]")

    from maep.cli.run import train_here
    from maep.evaluation.reporting.certificates import attacked_table, certificate_rows, certificate_table
    from maep.evaluation.reporting.report import purifier_name
    from maep.evaluation.stage import purifiers_of
    from maep.pipeline.execution import run_pipeline, work_on_stage
    from maep.runtime.console import console

    if share is None:
        run_pipeline(settings, "certify", train_here)
    elif not work_on_stage("certify", settings, share):
        return 0
    names = {label: purifier_name(settings, label) for label in purifiers_of(settings)}
    rows = certificate_rows(settings, names)
    console.print(certificate_table(rows))
    if any(row.attacked for row in rows):
        console.print(attacked_table(rows))
    say(f"certificates: {settings.run.dir}/certificates")
    return 0
