"""maep: train, attack, evaluate and ship adversarial purifiers (arXiv 2501.16904)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maep.models.purified import PurifiedClassifier
    from maep.purifiers import load_purifier

__version__ = "0.2.0"
__all__ = ["PurifiedClassifier", "__version__", "load_purifier"]


def __getattr__(name: str) -> Any:
    """Import the library's two entry points when they are asked for; commands start faster without."""
    if name == "PurifiedClassifier":
        from maep.models.purified import PurifiedClassifier

        return PurifiedClassifier
    if name == "load_purifier":
        from maep.purifiers import load_purifier

        return load_purifier
    raise AttributeError(f"module 'maep' has no attribute {name!r}")
