"""Purifier and objective as one module, so that DDP, ZeRO and torch.compile see a single forward."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maep.config.implementations import OBJECTIVES
from maep.config.schema import ComputeSettings
from maep.config.training_settings import ObjectiveSettings
from maep.models.discriminator import Discriminator
from maep.models.feature_maps import FeatureMap
from maep.objectives import Judge
from maep.objectives import objective as objective_named
from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.training.distributed.world import DTYPES


def compile_options(compute: ComputeSettings, device: torch.device, processes: int) -> dict[str, str]:
    """What torch.compile is asked for, of a training on `device` by so many processes.

    Raises UserError for CUDA graphs of several processes: what those exchange is no part of a graph.
    """
    if not compute.cuda_graphs:
        return {}
    if processes > 1:
        fail(f"compute.cuda_graphs=true: for one process, and these are {processes}; set it to false")
    if device.type != "cuda":
        say(f"compute.cuda_graphs=true: there are none on {device.type}; the training is compiled without")
        return {}
    return {"mode": "reduce-overhead"}  # torch's name of them


class TrainingModule(nn.Module):
    """Per-sample losses of a batch of pairs.

    model: (images [N, 3, H, W] in [0, 1], visible [N, T] or None) -> images, or with latent=True (images, latents);
    it takes `index` as `MaskedAutoencoder.forward` does, and `normalized` where it has a `normalized_patch`.
    precision: fp32, bf16 or fp16; the arithmetic of the forward, by autocast, while weights stay fp32.
    classifiers: frozen and in eval mode, for objectives that classify.
    It has a `discriminator` of its own, drawn from torch's generator, where the objective weighs one in.
    """

    def __init__(
        self, model: nn.Module, objective: ObjectiveSettings, precision: str, classifiers: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.model, self.objective, self.dtype = model, objective, DTYPES[precision]
        patch = getattr(model, "normalized_patch", None)
        normalizes = patch is not None and OBJECTIVES[objective.name].normalizes
        self.losses = partial(objective_named(objective.name), **({"patch": patch} if normalizes else {}))
        self.discriminator = None
        if objective.gan_weight and OBJECTIVES[objective.name].discriminates:
            self.discriminator = Discriminator()
            self.losses = partial(self.losses, discriminator=self.discriminator)
        # In a list it is no part of this module: not put into training mode, not sent to the other ranks, not averaged.
        self.frozen = list(classifiers)
        self.features = [FeatureMap(each) for each in self.frozen]

    def forward(
        self,
        clean: Tensor,
        adversarial: Tensor,
        visible: Tensor | None,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        seeds: Tensor | None = None,
        which: int = 0,
        soft: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [N], and their parts by name.

        clean, adversarial: [N, 3, H, W] in [0, 1]; visible: bool [N, T] or None for all; index: int64 [N, K], of the
        visible patches, in order; by default the model finds it. labels: int64 [N], for objectives that classify.
        seeds: int64 [N], for those that draw. which: of the classifiers, the one that is asked.
        soft: float32 [N, classes], a teacher's probabilities.
        """
        model = self.model if index is None else partial(self._shown, index)
        with torch.autocast(clean.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            asked: list[Judge | Tensor] = [] if labels is None else [self._judge(which, labels, soft)]
            asked += [] if seeds is None else [seeds]
            losses = self.losses(model, clean, adversarial, visible, self.objective, *asked)
        return losses.total.float(), {name: part.float() for name, part in losses.parts.items()}

    def _shown(self, index: Tensor, images: Tensor, visible: Tensor, **options: bool) -> Any:
        """The model where the index is known; an objective may give it the pairs' images one after the other."""
        return self.model(images, visible, index=index.repeat(len(images) // len(index), 1), **options)

    def _judge(self, which: int, labels: Tensor, soft: Tensor | None) -> Judge:
        """One of the frozen classifiers, as an objective asks it."""
        return Judge(partial(self._classify, which), labels, partial(self._features, which), soft)

    def _classify(self, which: int, purified: Tensor) -> Tensor:
        """Logits of purified images as they are used, clipped; losses are taken of them in fp32."""
        return self.frozen[which](purified.clamp(0, 1)).float()

    def _features(self, which: int, purified: Tensor) -> Tensor:
        """The feature map of images as the model gives them: clipped, a pixel outside of [0, 1] would not move."""
        features: Tensor = self.features[which](purified)
        return features.float()
