"""A classifier behind a purifier."""

from torch import Tensor, nn


class PurifiedClassifier(nn.Module):
    """f∘P: images [N, 3, H, W] in [0, 1] to logits, as any attack or benchmark takes a classifier.

    purifier: `maep.load_purifier`'s; classifier: takes [0, 1] images, its mean and std inside.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier, self.classifier = purifier, classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of the purified images; differentiable through both."""
        return self.classifier(self.purifier(images))
