"""What points of a sweep have in common: done once, by whichever point comes first, and reused by the others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from maep.ablation.grid.points import Point
from maep.config.identity import READS, decisive_settings
from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.evaluation.scoring.tasks import attacks_of
from maep.pipeline.stages import STAGES, stages_of
from maep.purifiers.registry import DEFAULT, purifier_class
from maep.runtime.digests import digest

TRAININGS = ("pretrain", "finetune")
DATA = ("data",)
CLASSIFIER = (*DATA, "classifier", "robust.classifiers", "run.seed")
PAIRS = (*CLASSIFIER, "attack")
# A chunk and its batches are attacked as one: their composition is part of the attacked images.
IMAGES = ("evaluation.images", "evaluation.chunk_images", "evaluation.batch_size", "evaluation.norm")


@dataclass(frozen=True)
class Reuse:
    """A kind of work: points ask for it `requests` times, and `distinct` of these differ, so that many are done."""

    kind: str
    requests: int
    distinct: int


def _key(settings: Settings, parts: Iterable[str]) -> str:
    """Digest of the settings in these sections, or with these keys, that results depend on."""
    return digest(decisive_settings(settings, "point", parts))


def _pair_sources(settings: Settings) -> list[Settings]:
    """The settings whose images, classifier and attack make the pairs of each training."""
    names = [name for name in stages_of(settings) if name in TRAININGS and not STAGES[name].idle(settings)]
    return [source_settings(settings, getattr(settings, name)) for name in names]


def _pretrainings(settings: Settings) -> list[str]:
    return [pretraining_key(settings)] if "pretrain" in stages_of(settings) else []


def _shards(settings: Settings) -> list[str]:
    return [_key(source, DATA) for source in (settings, *_pair_sources(settings))]


def _classifiers(settings: Settings) -> list[str]:
    sources = (settings, *_pair_sources(settings))
    return [_key(source, CLASSIFIER) for source in sources if not STAGES["classifier"].idle(source)]


def _pairs(settings: Settings) -> list[str]:
    return [_key(source, PAIRS) for source in _pair_sources(settings) if not STAGES["attack"].idle(source)]


def _attacked(settings: Settings) -> list[str]:
    """Test images attacked through the undefended classifier, a set for each attack and budget."""
    from maep.attacks.threat_models import threat_model

    evaluation, base = settings.evaluation, _key(settings, (*CLASSIFIER, *IMAGES))
    threats = [name for name in evaluation.threat_models if not threat_model(name).uses_purifier]
    return [
        digest([base, name, eps])
        for threat in threats
        for name in attacks_of(evaluation, threat)
        for eps in evaluation.eps
    ]


def pretraining_key(settings: Settings) -> str:
    """Digest of all settings that the pretrained network depends on, 64 hex digits; of kinds that use one in different
    ways, such as diffpure and gdmp, the same.

    Whether its pairs are the run's own or taken from a source with the same settings makes no difference.
    """
    own = replace(settings, pretrain=replace(settings.pretrain, source=None, source_set=[]))
    return digest([_network_key(own), _key(source_settings(settings, settings.pretrain), PAIRS)])


def _network_key(settings: Settings) -> str:
    kind, reads = settings.purifier.kind, READS["pretrain"]
    network = None if kind == DEFAULT else purifier_class(kind).shared_network(settings)
    if network is None:
        return _key(settings, reads)
    return digest([_key(settings, [name for name in reads if name != "purifier"]), network])


def reuse_between(points: Sequence[Point]) -> list[Reuse]:
    """What the points ask for, and how much of it differs: that much is done if nothing has been yet."""
    kinds: dict[str, Callable[[Settings], list[str]]] = {
        "clean shards": _shards, "classifiers trained": _classifiers, "training images attacked": _pairs,
        "test images attacked": _attacked, "pretrainings": _pretrainings,
    }  # fmt: skip
    work = []
    for kind, keys_of in kinds.items():
        keys = [key for point in points for key in dict.fromkeys(keys_of(point.settings))]
        work.append(Reuse(kind, len(keys), len(set(keys))))
    return work
