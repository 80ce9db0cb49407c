"""Where a training's pairs come from: the run's own data set, or another one (transfer, Sec. 4.4)."""

from dataclasses import replace

from maep.config.load import load_settings
from maep.config.schema import Settings, TrainSettings


def source_settings(settings: Settings, train: TrainSettings) -> Settings:
    """The settings with the images, classifier and attack of `train.source`; the same object if none is named.

    Raises UserError for a source that does not exist or whose words are bad.
    """
    if not train.source:
        return settings
    other = load_settings(train.source, train.source_set)
    return replace(settings, data=other.data, classifier=other.classifier, attack=other.attack)


def source_facts(settings: Settings) -> dict[str, Settings]:
    """`{section: settings}` of the trainings whose pairs come from elsewhere."""
    found = {name: source_settings(settings, getattr(settings, name)) for name in ("pretrain", "finetune")}
    return {name: source for name, source in found.items() if source is not settings}
