"""A budget means nothing without its norm: one that was written for another norm is refused, not taken over."""

from collections.abc import Mapping, Sequence
from typing import Any

from maep.runtime.errors import fail

ONE_STEP = ("fgsm", "nfgsm")  # the budget is their step, and attack.step says nothing
# Sizes in the norm of their section, and of each norm a usual one; in L2 those of CIFAR-10.
USUAL = {
    "evaluation.eps": {"Linf": "[8/255]", "L2": "[0.5]"},
    "attack.eps": {"Linf": "8/255", "L2": "0.5"},
    "attack.step": {"Linf": "2/255", "L2": "0.125"},
}
DEFAULT_NORM = "Linf"


def require_own_budgets(layers: Sequence[Mapping[str, tuple[Any, str]]], values: Mapping[str, Any]) -> None:
    """Raise UserError where a layer changes a norm, and a size in it is still one that was written for another.

    layers: what each wrote, `{dotted key: (value, where)}`, above the defaults, later ones win. A size is one of the
    norm that holds in its layer. values: what they all come to.
    """
    norms: dict[str, str] = {}
    changed: dict[str, str] = {}
    written = dict.fromkeys(USUAL, DEFAULT_NORM)
    for layer in layers:
        for key in written:
            norm = _norm_of(key)
            value, source = layer.get(norm, (norms.get(norm, DEFAULT_NORM), ""))
            if value != norms.get(norm, DEFAULT_NORM):
                norms[norm], changed[norm] = value, source
            if key in layer:
                written[key] = value
    for key, own in written.items():
        norm = _norm_of(key)
        if own == values[norm] or (key == "attack.step" and values["attack.method"] in ONE_STEP):
            continue
        fail(f"{norm}={values[norm]} ({changed[norm]}): {key} is still one of {own}; give it too, such as "
             f"{key}={USUAL[key][values[norm]]}")  # fmt: skip


def _norm_of(key: str) -> str:
    """The setting that says in which norm a size is."""
    return f"{key.partition('.')[0]}.norm"
