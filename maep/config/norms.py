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
    "classifier.train_eps": {"Linf": "8/255", "L2": "0.5"},
    "classifier.train_step": {"Linf": "2/255", "L2": "0.125"},
}
DEFAULT_NORM = "Linf"
NORM_OF = {"classifier": "classifier.train_norm"}  # by section, where it is not SECTION.norm
STEPPING = ("pgd_at", "awp")  # trainings of the classifier whose step size in L2 is a setting; TRADES' follows


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
            norm = norm_of(key)
            value, source = layer.get(norm, (norms.get(norm, DEFAULT_NORM), ""))
            if value != norms.get(norm, DEFAULT_NORM):
                norms[norm], changed[norm] = value, source
            if key in layer:
                written[key] = value
    for key, own in written.items():
        norm = norm_of(key)
        if own == values[norm] or not _is_read(key, values):
            continue
        fail(f"{norm}={values[norm]} ({changed[norm]}): {key} is still one of {own}; give it too, such as "
             f"{key}={USUAL[key][values[norm]]}")  # fmt: skip


def norm_of(key: str) -> str:
    """The setting that says in which norm a size is; a section may have none."""
    section = key.partition(".")[0]
    return NORM_OF.get(section, f"{section}.norm")


def _is_read(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a size matters in another norm than L∞."""
    if key == "attack.step":
        return values["attack.method"] not in ONE_STEP
    if key.startswith("classifier."):
        trainings = STEPPING if key.endswith("_step") else (*STEPPING, "trades", "trades_awp")
        return values["classifier.training"] in trainings
    return True
