"""Classifiers: what is attacked and defended. All take images in [0, 1] and return logits."""

from typing import TYPE_CHECKING, Any

from maep.models.classifiers.weights_identity import classifier_identity

if TYPE_CHECKING:
    from maep.models.classifiers.factory import build_classifier, load_classifier
    from maep.models.classifiers.normalized import Normalized

__all__ = ["Normalized", "build_classifier", "classifier_identity", "load_classifier"]
SOURCES = {"Normalized": "normalized", "build_classifier": "factory", "load_classifier": "factory"}


def __getattr__(name: str) -> Any:
    """Import a network when it is asked for: what only names a classifier must not import torch."""
    if name not in SOURCES:
        raise AttributeError(f"module 'maep.models.classifiers' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"maep.models.classifiers.{SOURCES[name]}"), name)
