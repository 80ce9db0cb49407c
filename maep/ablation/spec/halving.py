"""Successive halving: points that do badly at a rung, some steps into their pretraining, are stopped there.

halving: {keep: 0.5, at: [300, 600], by: robust_accuracy}

At each rung every point that is left pauses, its purifier so far is judged on the test images as a finished one is,
and the best `keep` of them go on from their checkpoints; learning rate and mask follow the full length throughout.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maep.config.load import nearest
from maep.runtime.errors import fail

# Of a report's numbers those of which more is better.
BY = (
    "robust_accuracy", "clean_accuracy", "average_accuracy", "psnr_adversarial", "psnr_clean", "ssim_adversarial",
    "ssim_clean",
)  # fmt: skip
FIELDS = ("keep", "at", "by")


@dataclass(frozen=True)
class Halving:
    """keep: share of the points that go on after a rung, rounded up; at: steps of the rungs; by: what decides."""

    keep: float
    at: tuple[int, ...]
    by: str = BY[0]


def read_halving(file: Path, tree: Any) -> Halving | None:
    """The rule as a sweep's file has it, None if it has none. Raises UserError, naming the file, for a bad one."""
    if tree is None:
        return None
    where = f"{file}: halving"
    if not isinstance(tree, dict):
        fail(f"{where}: expected keys: {', '.join(FIELDS)}")
    for key in tree:
        if key not in FIELDS:
            fail(f"{where}.{key}: unknown key{nearest(str(key), FIELDS)}; choose among {', '.join(FIELDS)}")
    keep, at, by = tree.get("keep", 0.5), tree.get("at"), tree.get("by", BY[0])
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep < 1:
        fail(f"{where}.keep: {keep}: expected a share above 0 and below 1")
    if not isinstance(at, list) or not at or not all(type(step) is int and step > 0 for step in at):
        fail(f"{where}.at: {at}: expected steps of the pretraining, such as [300, 600]")
    if sorted(set(at)) != at:
        fail(f"{where}.at: {at}: expected rising steps")
    if by not in BY:
        fail(f"{where}.by: {by}: choose one of {', '.join(BY)}")
    return Halving(float(keep), tuple(at), by)
