"""Settings that were given and change nothing, as another one decides: said, since who gave them believes otherwise.

None of them is refused: a sweep switches what decides, and a configuration brings what an argument replaces.
"""

from collections.abc import Iterator
from dataclasses import fields
from functools import cache

from maep.config.schema import RobustSettings, Settings
from maep.runtime.console import say

READ_BY_OTHERS = ("classifiers", "teacher")  # of robust: refused by themselves where no training reads them


def unread_settings(settings: Settings) -> Iterator[str]:
    """A line for each, with what decides in its place."""
    data, attack = settings.data, settings.attack
    if data.shards and data.root:
        yield f"data.root={data.root}: without effect: data.shards={data.shards} are used"
    if attack.shards and attack.online:
        yield f"attack.shards={attack.shards}: without effect: attack.online=true makes the adversarial images"
    for name in ("pretrain", "finetune"):
        train = getattr(settings, name)
        if train.steps and train.epochs != type(train)().epochs:
            yield (
                f"{name}.epochs={train.epochs:g}: without effect: {name}.steps={train.steps} is its length; set "
                f"{name}.steps=null to train by epochs"
            )
    if "whole" not in (settings.pretrain.attacked, settings.finetune.attacked):
        names = [item.name for item in fields(settings.robust) if item.name not in READ_BY_OTHERS]
        given = [name for name in names if getattr(settings.robust, name) != getattr(RobustSettings(), name)]
        if given:
            named = ", ".join(f"robust.{name}" for name in given)
            yield f"{named}: without effect: read by trainings against the whole alone (pretrain.attacked=whole)"


@cache
def _say_once(line: str) -> None:
    say(line)


def say_unread(settings: Settings) -> None:
    """Say them, each line once in a process: points of a sweep share most of theirs."""
    for line in unread_settings(settings):
        _say_once(line)
