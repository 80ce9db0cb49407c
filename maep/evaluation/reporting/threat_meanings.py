"""What a report says that each threat model means, in the words of what was judged."""

import inspect
from collections.abc import Mapping, Sequence

from maep.attacks.threat_models import threat_model

# By what the tables call the answers that are judged: what an attacker may know or not know.
KNOWABLE = {"purified": "purifier", "defended": "defense", "model": "model"}
Texts = Mapping[str, Sequence[str]]
DEFENDED, MODEL = "defended classifier", "model"
# By threat model, for what is no purifier before a classifier; {it} is what the attack is aimed at.
WITHOUT_PURIFIER: Texts = {
    "adaptive": (
        "The attacker knows everything: the {it}, its weights and gradients.",
        "The attack follows all of it with exact gradients, at the same budget. A defense is worth what is left here.",
    ),
    "surrogate": (
        "The attacker knows everything, but follows fewer steps than are taken, where there are steps.",
        "The {it} has no steps that could be left out: then this is the adaptive attacker.",
    ),
    "adaptive-eot": (
        "The attacker knows everything, and averages over what the {it} draws at random.",
        "EOT (Athalye et al. 2018): the attack follows the expected logits of the {it} over several draws, and their "
        "gradient. A {it} that draws nothing is its own expectation: then this is the adaptive attacker.",
    ),
    "blackbox": (
        "The attacker knows nothing of the {it}, but may ask it for its logits many times.",
        "The attack is Square (Andriushchenko et al. 2020), a random search that needs no gradients. If it does better "
        "than the adaptive attacker, the gradients of the {it} are masked and the adaptive numbers are too good.",
    ),
}
OF_A_DEFENSE: Texts = {
    "oblivious": (
        "The attacker knows the classifier f inside the defense, weights and gradients, but not that it is defended.",
        "The attack follows f alone; the images it makes are then classified by the defended classifier. It says "
        "nothing about an attacker who knows the defense.",
    ),
    "bpda": (
        "The attacker knows the defended classifier, but cannot or does not differentiate through the defense.",
        "BPDA (Athalye et al. 2018): the attack follows the approximation with gradients that the defense gives of "
        "itself. It breaks defenses that hide their gradients; where exact gradients can be had, the adaptive attacker "
        "is the stronger.",
    ),
    "bpda-intermediate": (
        "The attacker knows the defended classifier, but cannot or does not differentiate through the defense.",
        "The defense shows no images that its steps go through: then this is BPDA's attacker.",
    ),
    "auxiliary-aware": (
        "The attacker knows the defended classifier, but cannot or does not differentiate through the defense.",
        "The defense descends no loss of its own that he could descend, too: then this is BPDA's attacker.",
    ),
}
OF_A_MODEL: Texts = dict.fromkeys(
    OF_A_DEFENSE, ("There is no defense that the attacker could know or not know: the attack follows the model.",)
)


def meaning_of(name: str, judged: str) -> Sequence[str]:
    """Paragraphs on a threat model. judged: as `maep.evaluation.reporting.rows.judged_word`.

    Before a purifier they are the docstring of the threat model's class, as also where none are written here.
    """
    written = OF_A_DEFENSE if judged == "defended" else OF_A_MODEL
    texts = {} if judged == "purified" else {**WITHOUT_PURIFIER, **written}
    if name in texts:
        return [paragraph.format(it=DEFENDED if judged == "defended" else MODEL) for paragraph in texts[name]]
    return (inspect.getdoc(type(threat_model(name))) or "").split("\n\n")
