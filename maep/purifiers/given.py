"""A purifier from elsewhere, by its path: what names it, and how a run uses it."""

from functools import cache

from maep.attacks.attack_state import tensors_sha256
from maep.config.identity import decisive_fields
from maep.config.schema import Settings
from maep.purifiers.base import Purifier
from maep.purifiers.registry import purifier_class
from maep.purifiers.serialization import load_purifier
from maep.runtime.digests import digest


def use_facts(settings: Settings) -> dict[str, object]:
    """How a run uses a purifier, apart from what its weights are."""
    return decisive_fields(settings.purify, "records") | purifier_class(settings.purifier.kind).use_facts(settings)


def used_identity(settings: Settings, path: str) -> str:
    """Digest of everything the output of a purifier from elsewhere depends on, used as the settings say."""
    return digest([given_identity(path), use_facts(settings)])


@cache
def given_identity(path: str) -> str:
    """Digest of a purifier's model and weights, wherever it lies and however it is stored.

    Raises UserError if there is none.
    """
    return function_identity(load_purifier(path))


def function_identity(purifier: Purifier) -> str:
    """Digest of all that a purifier's output depends on, except how it is used (`PurifySettings`)."""
    return digest([purifier.identity_facts(), tensors_sha256(purifier.state_dict())])
