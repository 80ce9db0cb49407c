"""Evaluation of any model: resumable, on any number of workers, and reported with what speaks against its numbers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maep.evaluation.any_model import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    """Import the entry point when it is asked for: parts of this package are imported by what it imports."""
    if name == "evaluate":
        from maep.evaluation.any_model import evaluate

        return evaluate
    raise AttributeError(f"module 'maep.evaluation' has no attribute {name!r}")
