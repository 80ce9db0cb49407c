"""Classifiers: what is attacked and defended. All take images in [0, 1] and return logits."""

from maep.models.classifiers.factory import build_classifier, classifier_identity, load_classifier
from maep.models.classifiers.normalized import Normalized

__all__ = ["Normalized", "build_classifier", "classifier_identity", "load_classifier"]
