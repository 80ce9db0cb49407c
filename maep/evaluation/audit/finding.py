"""The outcome of one check of a model or of an evaluation."""

from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["passed", "warning", "alarm"]
PASSED: Final = "passed"
WARNING: Final = "warning"
ALARM: Final = "alarm"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. level: `passed`, `warning` or `alarm` (then it is said in red). text: a sentence."""

    check: str
    level: Level
    text: str
