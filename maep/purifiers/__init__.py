"""Purifiers: images in, images out, the perturbation removed."""

from maep.purifiers.mae import MAEPurifier, Purifier
from maep.purifiers.serialization import load_purifier, merge_adapter, read_purifier, save_purifier

__all__ = ["MAEPurifier", "Purifier", "load_purifier", "merge_adapter", "read_purifier", "save_purifier"]
