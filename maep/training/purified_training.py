"""Training a classifier on what a purifier makes of the images, as it will see them.

NIM-MAE (You et al., NeurIPS 2023) finetunes one on images that its autoencoder has denoised; here any purifier that
asks no classifier does. Images pass through it anew in every epoch, with the draws of their step, and no gradient goes
back through it.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config.schema import Settings
from maep.data.classifier_weights import purifier_path, settings_of_purifier
from maep.purifiers import Purifier, load_purifier
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng
from maep.training.batch_loss import BatchLoss, Progress


class PurifiedTraining(BatchLoss):
    """The loss of one batch under `classifier.training=purified`: cross-entropy of the purified images.

    network: images [N, 3, H, W] in [0, 1] to logits [N, classes]. What is drawn is a function of seed and step. Raises
    UserError as `training_purifier`.
    """

    def __init__(self, network: nn.Module, settings: Settings, device: torch.device) -> None:
        self.network, self.noise, self.options = network, settings.classifier.purified_noise, settings.purify
        self.purifier = training_purifier(settings, device)

    @torch.no_grad()
    def purified(self, images: Tensor, at: Progress) -> Tensor:
        """images, [N, 3, H, W] in [0, 1], as the purifier leaves them with the draws of a step; same shape."""
        purifier = self.purifier
        if self.noise is not None:
            deviation = self.noise * keyed_rng("classifier-noise", at.seed, at.step).random()
            purifier = purifier.with_options(replace(self.options, noise=deviation))
        purifier.reseed(at.seed, at.step)
        return purifier.purify(images)

    def begin(self, images: Tensor, labels: Tensor, at: Progress) -> Tensor:
        """The loss of a batch, to be descended."""
        return F.cross_entropy(self.network(self.purified(images, at)), labels)


def training_purifier(settings: Settings, device: torch.device | None = None) -> Purifier:
    """The purifier of `classifier.purifier`, used as the settings say.

    Raises UserError where none is named or there, for one that asks the classifier which is yet to be trained, and for
    noise that its kind does not add.
    """
    path = purifier_path(settings.classifier)
    purifier = load_purifier(path, device=device).used_as(settings_of_purifier(settings), path)
    if purifier.needs_classifier:
        fail(
            f"classifier.purifier={path}: a purifier of kind {purifier.kind} asks the classifier, which it is to help "
            "to train; name one that asks none"
        )
    if settings.classifier.purified_noise is not None and "noise" not in purifier.options:
        fail(
            f"classifier.purified_noise={settings.classifier.purified_noise:g}: a purifier of kind {purifier.kind} "
            f"({path}) adds no noise; leave it out"
        )
    return purifier
