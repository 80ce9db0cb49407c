"""Which adversarial shards belong to a configuration, and where they are; `maep.data.adversarial` makes them."""

from dataclasses import asdict
from pathlib import Path

from maep.attacks.attack_spec import AttackSpec
from maep.config.data_settings import AttackSettings
from maep.config.schema import Settings
from maep.data.shard_manifest import AdversarialManifest
from maep.data.shards import ShardSet
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.remote import Location, location


def attack_identity(attack: AttackSettings, seed: int, clean: ShardSet, classifier_identity: str) -> str:
    """64 hex digits of all that the adversarial images depend on."""
    return digest(
        {
            "classifier": classifier_identity,
            "images": clean.identity,
            "shards": [shard.count for shard in clean.manifest.shards],
            "attack": asdict(AttackSpec.of(attack)),
            "seed": seed,
            "batch_size": attack.batch_size,
        }
    )


def adversarial_path(settings: Settings, clean: ShardSet, classifier_identity: str) -> Location:
    """Where the adversarial shards of a configuration are or will be."""
    if settings.attack.shards:
        return location(settings.attack.shards)
    return default_path(settings, clean, classifier_identity)


def default_path(settings: Settings, clean: ShardSet, classifier_identity: str) -> Path:
    """Where they are made, in run.cache."""
    identity = attack_identity(settings.attack, settings.run.seed, clean, classifier_identity)
    return Path(settings.run.cache) / "adversarial" / f"{settings.data.name}-{identity[:8]}"


def check_adversarial(adversarial: ShardSet, clean: ShardSet, classifier_identity: str, settings: Settings) -> None:
    """Raise UserError if the shards were made for another classifier, attack or image set than configured."""
    manifest, path = adversarial.manifest, adversarial.path
    remedy = "unset attack.shards or name others"
    if not isinstance(manifest, AdversarialManifest):
        fail(f"{path}: not adversarial shards; {remedy}")
    if manifest.clean_identity != clean.identity:
        fail(f"{path}: made from another image set than {clean.path}; {remedy}")
    if manifest.classifier_identity != classifier_identity:
        fail(f"{path}: made for another classifier than classifier.arch={settings.classifier.arch}; {remedy}")
    for name, value in asdict(AttackSpec.of(settings.attack)).items():
        actual = manifest.attack.get(name)
        if actual != value:
            fail(f"{path}: made for another attack: made with attack.{name}={actual}, configured is {value}; {remedy}")
