"""A classifier with a defense that is no map from images to images, such as an ensemble or a randomised classifier."""

from typing import ClassVar

from torch import Tensor, nn

OBLIVIOUS, BPDA = "oblivious", ("bpda", "bpda-intermediate", "auxiliary-aware")


class DefendedClassifier(nn.Module):
    """Images [N, 3, H, W] in [0, 1] to logits [N, classes]: base of defenses that `maep.evaluation.evaluate` takes.

    classifier: the undefended one inside it, of the same signature. A defense gives `forward`; it says of itself
    is_random: whether two calls differ; if so, a `reseed(*key)` on it or its parts decides what they give, or they draw
    from torch. is_differentiable: whether autograd sees through it; if not, `approximation` is to be given.
    """

    is_random: ClassVar[bool] = False
    is_differentiable: ClassVar[bool] = True

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of the defended classifier."""
        raise NotImplementedError

    def approximation(self) -> nn.Module:
        """The module with the defense's logits that an attacker differentiates who cannot, or does not, get its own
        gradients (BPDA); by default the defense itself.
        """
        return self

    def target(self, threat_model: str) -> nn.Module:
        """What an attacker of a threat model attacks, by its name: [N, 3, H, W] in [0,1] → logits.

        Attackers that know nothing of the defense get the bare classifier, BPDA's its approximation, all others the
        defense; where it is random, adaptive-eot's averages the logits of this target over its draws.
        """
        if threat_model == OBLIVIOUS:
            return self.classifier
        return self.approximation() if threat_model in BPDA else self

    def compiled(self) -> "DefendedClassifier":
        """A copy with the same weights whose networks are compiled, for attacks to follow; by default itself.

        What draws random numbers must not be compiled.
        """
        return self
