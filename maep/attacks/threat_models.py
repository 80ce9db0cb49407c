"""What an attacker knows, as the model that an attack is given."""

from typing import Protocol

from torch import nn

from maep.errors import fail


class ThreatModel(Protocol):
    """One answer to the question what the attacker knows; the docstring of each class is that answer.

    name: as in reports. knows_purifier: whether the adversarial images depend on the purifier; where they do
    not, they are made once and every purifier is judged on them.
    """

    name: str
    knows_purifier: bool

    def target(self, purifier: nn.Module, classifier: nn.Module) -> nn.Module:
        """The model whose gradients the attacker follows: [N, 3, H, W] in [0,1] → logits."""
        ...


class Oblivious:
    """The attacker knows the classifier f, weights and gradients, but not that a purifier P stands before it.

    The attack follows f alone; the images it makes are then purified and classified. This is the setting of the
    paper's tables. It says nothing about an attacker who knows the purifier.
    """

    name = "oblivious"
    knows_purifier = False

    def target(self, purifier: nn.Module, classifier: nn.Module) -> nn.Module:
        """f."""
        return classifier


class Adaptive:
    """The attacker knows everything: classifier f and purifier P, weights and gradients of both.

    The attack follows the whole f∘P with exact gradients through the purifier, at the same budget. A defence is worth
    what is left here.
    """

    name = "adaptive"
    knows_purifier = True

    def target(self, purifier: nn.Module, classifier: nn.Module) -> nn.Module:
        """f∘P."""
        return nn.Sequential(purifier, classifier).eval()


THREAT_MODELS: dict[str, ThreatModel] = {model.name: model for model in (Oblivious(), Adaptive())}


def threat_model(name: str) -> ThreatModel:
    """The threat model of that name. Raises UserError with the valid names."""
    if name not in THREAT_MODELS:
        fail(f"evaluation.threat_models: {name}: choose one of {', '.join(THREAT_MODELS)}")
    return THREAT_MODELS[name]
