"""What jobs will read, asked for before they wait in a queue for hours."""

from collections.abc import Iterable, Sequence

from maep.config.schema import Settings
from maep.pipeline.execution import check_inputs
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail


def check_what_is_read(runs: Iterable[tuple[Settings, Sequence[str]]], *, on_paper: bool = False) -> None:
    """Raise UserError for what jobs would be given, hours after they were queued, and could not use.

    runs: settings, and the stages that are due. Images may lie where the nodes alone see them: that they are not seen
    here is said, and no more. on_paper: for a cluster that need not be here, so that all is only said, and of images
    nothing: they may be many, and a command that shows a run says itself what it finds.
    """
    said = set()
    for settings, stages in runs:
        for stage in stages:
            if stage == "shards" and on_paper:
                continue
            try:
                check_inputs([stage], settings)
            except UserError as problem:
                if stage != "shards" and not on_paper:
                    fail(f"{problem}; nothing was submitted")
                if str(problem) not in said:
                    say(f"warning: on this machine: {problem}")
                said.add(str(problem))
