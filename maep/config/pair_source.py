"""Where a training's pairs come from: the run's own data set, or another one (transfer, Sec. 4.4)."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

from maep.config.load import layers_of, load_settings
from maep.config.schema import Settings
from maep.config.training_settings import TrainSettings

TRAININGS = ("pretrain", "finetune")


def source_settings(settings: Settings, train: TrainSettings) -> Settings:
    """The settings with the images, classifier and attack of `train.source`; the same object if none is named.

    Raises UserError for a source that does not exist or whose words are bad.
    """
    if not train.source:
        return settings
    other = _source(train.source, tuple(train.source_set), repr(layers_of(train.source)))
    return replace(settings, **{name: deepcopy(getattr(other, name)) for name in ("data", "classifier", "attack")})


# Asked several times for each point of a sweep. content: of the files, so that one that was edited is read again.
@lru_cache(maxsize=64)
def _source(name: str, words: tuple[str, ...], content: str) -> Settings:
    return load_settings(name, words)


def source_facts(settings: Settings, trainings: Sequence[str] = TRAININGS) -> dict[str, Settings]:
    """`{section: settings}` of those of the trainings whose pairs come from elsewhere."""
    found = {name: source_settings(settings, getattr(settings, name)) for name in trainings}
    return {name: source for name, source in found.items() if source is not settings}
