"""The attacks of an evaluation by the names that reports use; `maep.attacks.catalog` runs them.

fgsm, bim-K, pgd-K                                 gradient steps, K of them
autoattack-standard, autoattack-plus, autoattack-rand
autoattack-custom:apgd-ce+square                   any of pyautoattack's attacks, in that order, as its `custom`
apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square      one of them, with its parameters in `standard`
square-K                                           with K queries instead of 5000
"""

import re
from collections.abc import Sequence

from maep.runtime.errors import fail

AUTOATTACK = "autoattack-standard"
CUSTOM = "autoattack-custom:"
# Of AutoAttack's own suites, the attacks that they run.
SUITES = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
VERSIONS = tuple(SUITES)
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
# Fewer classes cannot be ranked by the losses of these attacks: DLR divides by the distance to the third logit, its
# targeted form by that to the third and fourth.
MIN_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
ITERATED = re.compile(r"(bim|pgd)-([1-9]\d*)")
SQUARE = re.compile(r"square(?:-([1-9]\d*))?")
NAMES = (
    "fgsm, bim-K, pgd-K (K iterations, such as pgd-20), "
    f"{', '.join(f'autoattack-{version}' for version in VERSIONS)}, {CUSTOM}apgd-ce+square (any of "
    f"{', '.join(PARTS)}), one of these alone, square-K (K queries)"
)


def version_of(name: str) -> str | None:
    """Which of AutoAttack's own suites a name means."""
    version = name.removeprefix("autoattack-")
    return version if version in VERSIONS and version != name else None


def custom_parts(name: str) -> tuple[str, ...] | None:
    """The attacks of a suite of one's own, in order; None for another name."""
    parts = tuple(name.removeprefix(CUSTOM).split("+"))
    is_valid = name.startswith(CUSTOM) and set(parts) <= set(PARTS) and len(set(parts)) == len(parts)
    return parts if is_valid else None


def check_classes(attacks: Sequence[str], key: str, classes: int) -> None:
    """Raise UserError for an attack that images of so many classes are too few for. key: the setting that names it."""
    for name in attacks:
        parts = SUITES.get(version_of(name) or "") or custom_parts(name) or (name,)
        if classes < (fewest := max(MIN_CLASSES.get(part, 1) for part in parts)):
            fail(
                f"{key}: {name}: needs at least {fewest} classes for its loss, and the images have {classes}; choose "
                "pgd-K, apgd-ce or square"
            )


def is_attack(name: str) -> bool:
    """Whether there is an attack of that name."""
    is_single = name == "fgsm" or name in PARTS or bool(ITERATED.fullmatch(name) or SQUARE.fullmatch(name))
    return is_single or version_of(name) is not None or custom_parts(name) is not None


def check_attack(name: str, key: str) -> None:
    """Raise UserError unless there is an attack of that name. key: the setting that names it."""
    if not is_attack(name):
        fail(f"{key}: {name}: unknown attack; choose from {NAMES}")


def check_attacks(attacks: Sequence[str], blackbox: Sequence[str]) -> None:
    """Raise UserError for an attack that there is not, or that the black-box threat model cannot run."""
    for attack in attacks:
        check_attack(attack, "evaluation.attacks")
    for attack in blackbox:
        if not SQUARE.fullmatch(attack):
            fail(f"evaluation.blackbox_attacks: {attack}: needs gradients; choose square or square-K")
