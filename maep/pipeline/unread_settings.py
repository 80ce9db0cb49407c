"""Settings that a person gives and that change nothing, as another one decides: said, since who gave them believes
otherwise.

Given are those in a command's words and in files of one's own. None of them is refused: a sweep switches what decides.
Nothing is said of what the configurations that come with maep bring, such as epochs, nor of what a later layer replaces
by writing what decides.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from maep.config.implementations import WITHOUT_GRADIENT
from maep.config.load import Writing, writings
from maep.config.schema import Settings
from maep.runtime.console import say

READ_BY_OTHERS = ("classifiers", "teacher")  # of robust: refused by themselves where no training reads them


@dataclass(frozen=True)
class Unread:
    """Settings without effect. names: theirs; deciders: of those that decide in their place; reason: why, in words.

    by: of those that a person may not know to have brought it about: it is said to who writes them, too.
    """

    names: tuple[str, ...]
    deciders: tuple[str, ...]
    reason: str
    by: tuple[str, ...] = ()

    def given(self, written: Mapping[str, Writing]) -> list[str]:
        """Those that a person wrote, or brought about, and that no later layer replaced."""
        last = max((written[name].layer if name in written else -1 for name in self.deciders), default=-1)
        mine = {name: writing.layer for name, writing in written.items() if writing.is_users}
        brought = any(name in mine for name in self.by)
        return [name for name in self.names if brought or mine.get(name, -2) >= last]

    def line(self, settings: Settings, names: Sequence[str]) -> str:
        """What is said of some of them: one with its value."""
        named = ", ".join(names) if len(names) > 1 else f"{names[0]}={_value_of(settings, names[0])}"
        return f"{named}: without effect: {self.reason}"


def unread_settings(settings: Settings) -> Iterator[Unread]:
    """All that these settings have no use for, whoever wrote them and whether anybody did."""
    data, attack = settings.data, settings.attack
    if data.shards and data.root:
        yield Unread(("data.root",), ("data.shards",), f"data.shards={data.shards} are used")
    if attack.shards and attack.online:
        yield Unread(("attack.shards",), ("attack.online",), "attack.online=true makes the adversarial images")
    classifier = settings.classifier
    if late := [f"{each:g}" for each in classifier.milestones if each >= classifier.epochs]:
        why = f"{', '.join(late)} not before the end, classifier.epochs={classifier.epochs}"
        yield Unread(("classifier.milestones",), (), why, by=("classifier.epochs",))
    for name in ("pretrain", "finetune"):
        if steps := getattr(settings, name).steps:
            why = f"{name}.steps={steps} is its length; set {name}.steps=null to train by epochs"
            yield Unread((f"{name}.epochs",), (f"{name}.steps",), why)
    if settings.evaluation.exact_gradients and set(settings.evaluation.threat_models) <= set(WITHOUT_GRADIENT):
        why = f"evaluation.threat_models=[{', '.join(settings.evaluation.threat_models)}] follow no gradient of its own"
        yield Unread(("evaluation.exact_gradients",), ("evaluation.threat_models",), why)
    if "whole" not in (settings.pretrain.attacked, settings.finetune.attacked):
        names = tuple(f"robust.{item.name}" for item in fields(settings.robust) if item.name not in READ_BY_OTHERS)
        why = "read by trainings against the whole alone (pretrain.attacked=whole)"
        yield Unread(names, ("pretrain.attacked", "finetune.attacked"), why)


def say_unread(settings: Settings, cfg: str, words: Sequence[str]) -> None:
    """Say those that a command's `key=value` words, or files of the person who gives it, bring."""
    written = writings(cfg, words)
    for unread in unread_settings(settings):
        if names := unread.given(written):
            say(unread.line(settings, names))


def say_unread_of_points(points: Sequence[tuple[Settings, Mapping[str, Writing]]]) -> None:
    """Of a sweep: say those that none of its points has a use for, among those to which a person gives them.

    points: the settings of each, and who wrote them.
    """
    lines: dict[str, str] = {}
    read: set[str] = set()
    for settings, written in points:
        unread = {name: each for each in unread_settings(settings) for name in each.given(written)}
        lines = {name: each.line(settings, [name]) for name, each in unread.items()} | lines
        read |= {name for name, writing in written.items() if writing.is_users} - unread.keys()
    for name, line in lines.items():
        if name not in read:
            say(line)


def _value_of(settings: Settings, name: str) -> object:
    section, _, key = name.partition(".")
    value = getattr(getattr(settings, section), key)
    return f"{value:g}" if isinstance(value, float) else value
