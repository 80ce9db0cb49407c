"""What points of a sweep have in common: made once, by whichever point comes first, and found by the others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from maep.ablation.spec.points import Point
from maep.attacks.threat_models import threat_model
from maep.config.load import LEAVES
from maep.config.schema import Settings
from maep.evaluation.scoring.plan import attacks_of
from maep.pipeline.stages import STAGES, decisive_settings
from maep.storage.atomic import digest
from maep.training.source import source_settings

DATA = ("data",)
CLASSIFIER = (*DATA, "classifier", "run.seed")
PAIRS = (*CLASSIFIER, "attack")
IMAGES = ("evaluation.images", "evaluation.chunk_images", "evaluation.batch_size", "evaluation.norm")


@dataclass(frozen=True)
class Shared:
    """A kind of work: `wanted` times by the points, of which `different` are different."""

    kind: str
    wanted: int
    different: int


def _key(settings: Settings, parts: Iterable[str]) -> str:
    """Digest of the settings in these sections, or with these keys, that results depend on."""
    chosen = tuple(parts)
    return digest(decisive_settings(settings, [k for k in LEAVES if k in chosen or k.split(".")[0] in chosen]))


def _trained_on(settings: Settings) -> list[Settings]:
    """The settings whose images, classifier and attack make the pairs of each training."""
    trainings = [settings.pretrain] + ([] if STAGES["finetune"].idle(settings) else [settings.finetune])
    return [source_settings(settings, train) for train in trainings]


def _shards(settings: Settings) -> list[str]:
    return [_key(part, DATA) for part in (settings, *_trained_on(settings))]


def _classifiers(settings: Settings) -> list[str]:
    parts = (settings, *_trained_on(settings))
    return [_key(part, CLASSIFIER) for part in parts if not STAGES["classifier"].idle(part)]


def _pairs(settings: Settings) -> list[str]:
    return [_key(part, PAIRS) for part in _trained_on(settings) if not STAGES["attack"].idle(part)]


def _attacked(settings: Settings) -> list[str]:
    """Test images attacked through the classifier alone, a set for each attack and budget."""
    chosen = settings.evaluation
    threats = [name for name in chosen.threat_models if not threat_model(name).uses_purifier]
    base = _key(settings, (*CLASSIFIER, *IMAGES))
    return [
        digest([base, name, eps]) for threat in threats for name in attacks_of(chosen, threat) for eps in chosen.eps
    ]


def pretraining_key(settings: Settings) -> str:
    """Digest of all settings that the pretrained purifier depends on."""
    own = STAGES["pretrain"].reads
    return digest([_key(settings, own), *(_key(part, PAIRS) for part in _trained_on(settings)[:1])])


def shared_work(points: Sequence[Point]) -> list[Shared]:
    """What the points need, and how much of it is different: that much is made if nothing is there yet."""
    kinds: dict[str, Callable[[Settings], list[str]]] = {
        "clean shards": _shards, "classifiers trained": _classifiers, "training images attacked": _pairs,
        "test images attacked": _attacked, "pretrainings": lambda settings: [pretraining_key(settings)],
    }  # fmt: skip
    found = []
    for kind, keys_of in kinds.items():
        keys = [key for point in points for key in dict.fromkeys(keys_of(point.settings))]
        found.append(Shared(kind, len(keys), len(set(keys))))
    return found
