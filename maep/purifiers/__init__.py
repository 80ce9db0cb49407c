"""Purifiers: images in, images out, the perturbation removed.

registry.py lists the kinds, one file each; base.py says what a kind is, serialization.py how it lies on disk.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maep.purifiers.adapter import merge_adapter
    from maep.purifiers.base import Purifier
    from maep.purifiers.mae import MAEPurifier
    from maep.purifiers.serialization import load_purifier, read_purifier, save_purifier

__all__ = ["MAEPurifier", "Purifier", "load_purifier", "merge_adapter", "read_purifier", "save_purifier"]
SOURCES = {
    "MAEPurifier": "mae",
    "Purifier": "base",
    "load_purifier": "serialization",
    "merge_adapter": "adapter",
    "read_purifier": "serialization",
    "save_purifier": "serialization",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: reading the registry's names must not import torch."""
    if name not in SOURCES:
        raise AttributeError(f"module 'maep.purifiers' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"maep.purifiers.{SOURCES[name]}"), name)
