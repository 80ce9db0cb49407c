"""Successive halving: points that do badly at a rung, some steps into their pretraining, are stopped there.

halving: {keep: 0.5, at: [300, 600], by: robust_accuracy}

At each rung every point that still runs pauses, its purifier so far is evaluated on the test images as a finished one
is, and the best `keep` of them go on from their checkpoints; learning rate and mask follow the full length throughout.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from maep.runtime.errors import fail, nearest

# Of a report's numbers those of which more is better.
BY = (
    "robust_accuracy", "clean_accuracy", "average_accuracy", "psnr_adversarial", "psnr_clean", "ssim_adversarial",
    "ssim_clean",
)  # fmt: skip
KEEP = 0.5  # the half that gives halving its name


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
    source, keys = f"{file}: halving", [item.name for item in fields(Halving)]
    if not isinstance(tree, dict):
        fail(f"{source}: expected keys: {', '.join(keys)}")
    for key in tree:
        if key not in keys:
            fail(f"{source}.{key}: unknown key{nearest(str(key), keys)}; choose among {', '.join(keys)}")
    rule: Mapping[str, Any] = {"keep": KEEP, "at": None, "by": BY[0], **tree}
    _check(source, **rule)
    return Halving(float(rule["keep"]), tuple(rule["at"]), rule["by"])


def _check(source: str, keep: Any, at: Any, by: Any) -> None:
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep < 1:
        fail(f"{source}.keep: {keep}: expected a share above 0 and below 1")
    if not isinstance(at, list) or not at or not all(type(step) is int and step > 0 for step in at):
        fail(f"{source}.at: {at}: expected steps of the pretraining, such as [300, 600]")
    if sorted(set(at)) != at:
        fail(f"{source}.at: {at}: expected rising steps")
    if by not in BY:
        fail(f"{source}.by: {by}: choose one of {', '.join(BY)}")
