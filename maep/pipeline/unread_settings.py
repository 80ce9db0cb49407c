"""Settings that a command gives and that change nothing, as another one decides: said, since who gave them believes
otherwise.

None of them is refused: a sweep switches what decides. Of what a configuration brings and a later one replaces, such as
its epochs, nothing is said.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields

from maep.config.schema import RobustSettings, Settings
from maep.runtime.console import say

READ_BY_OTHERS = ("classifiers", "teacher")  # of robust: refused by themselves where no training reads them


def unread_settings(settings: Settings) -> Iterator[str]:
    """A line for each that is not its default, with what decides in its place; it begins with the settings' names."""
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


def say_unread(settings: Settings, words: Sequence[str]) -> None:
    """Say those that are among a command's `key=value` words."""
    given = {word.partition("=")[0] for word in words}
    for line in unread_settings(settings):
        if given & set(re.findall(r"[a-z0-9_.]+", line.partition(": without effect")[0])):
            say(line)
