"""maep: train, attack, evaluate and ship adversarial purifiers (arXiv 2501.16904)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from maep.runtime.version import __version__

if TYPE_CHECKING:
    from maep.models.defended import DefendedClassifier
    from maep.models.purified import PurifiedClassifier
    from maep.purifiers import load_purifier

__all__ = ["DefendedClassifier", "PurifiedClassifier", "__version__", "load_purifier"]

# Imported when they are asked for: commands that need no torch start without it.
ENTRY_POINTS = {
    "DefendedClassifier": "maep.models.defended",
    "PurifiedClassifier": "maep.models.purified",
    "load_purifier": "maep.purifiers",
}


def __getattr__(name: str) -> Any:
    """One of the library's entry points."""
    if name in ENTRY_POINTS:
        return getattr(import_module(ENTRY_POINTS[name]), name)
    raise AttributeError(f"module 'maep' has no attribute {name!r}")
