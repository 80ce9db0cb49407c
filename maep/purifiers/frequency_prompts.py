"""High-frequency prompts for clusters of images: our reconstruction of Huang et al. (ICCV 2023, arXiv 2308.10315).

Their code was not published, and no more than the idea was at hand: training images are clustered, one visual prompt
for each cluster is learnt in the frequency domain, and at test time an image gets the prompt of the nearest cluster.
All else is inferred: clusters are k-means' of the classifier's pooled features; a prompt is a half-spectrum of complex
numbers, added above a cutoff; prompts are learnt by the frozen classifier's cross-entropy of clean and attacked images
(`objective.name=robust`). So no number of this is a number of theirs.

Since the Fourier transform is linear, adding to the spectrum adds a fixed pattern to the image: F⁻¹(F(x) + M·P_k) is
x + F⁻¹(M·P_k). It is computed so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from maep.config import schema
from maep.config.implementations import OBJECTIVES
from maep.config.setting import setting
from maep.models.feature_maps import FeatureMap
from maep.purifiers.base import require_eager
from maep.purifiers.whole_image import WholeImagePurifier
from maep.runtime.errors import fail

PROTOTYPES = "frequency_prompts.prototypes"  # among the saved tensors
ROUNDS = 100  # of k-means, which settles in a tenth of them
AT_ONCE = 250  # images whose features are computed together


@dataclass
class FrequencyPromptsSettings:
    """Section `frequency_prompts`. All of it is inferred; the bounds keep a saved one from taking the machine."""

    clusters: int = setting(10, "clusters of images, each with a prompt", low=1, high=1000)
    cutoff: float = setting(
        0.25, "frequencies above it have a prompt, in cycles a pixel", unit="cycles/pixel", low=0.0, high=0.5
    )
    side: int = setting(
        32, "side of the images that prompts are of; on others they are repeated", unit="pixels", low=2, high=2**10
    )
    calibration_images: int = setting(1000, "clean training images that are clustered", unit="images", low=1)


class PromptedImages(nn.Module):
    """x + F⁻¹(M·P_k), k the cluster whose prototype is nearest to the features of x; unclipped.

    prompts: real and imaginary parts, [clusters, 3, side, side // 2 + 1, 2], at first 0. prototypes: [clusters,
    features], none before there were any. features: of images [N, 3, H, W], [N, features]; given by `ask`.
    """

    prototypes: Tensor
    high: Tensor

    def __init__(self, network: FrequencyPromptsSettings) -> None:
        super().__init__()
        side = network.side
        self.prompts = nn.Parameter(torch.zeros(network.clusters, 3, side, side // 2 + 1, 2))
        self.register_buffer("prototypes", torch.zeros(network.clusters, 0), persistent=False)
        radius = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()).sqrt()
        self.register_buffer("high", (radius > network.cutoff).float(), persistent=False)
        # In a list: no module of its own, or the classifier would be saved and trained with it.
        self._features: list[FeatureMap] = []

    def ask(self, classifier: nn.Module) -> None:
        """Take the classifier whose features tell the cluster."""
        self._features = [FeatureMap(classifier)]

    def features(self, images: Tensor) -> Tensor:
        """The classifier's last map, pooled, [N, features]. Raises UserError before `ask`."""
        if not self._features:
            fail("a purifier of kind frequency_prompts asks a classifier: attach one")
        with torch.no_grad():
            parts = [self._features[0](part).float().mean((2, 3)) for part in images.split(AT_ONCE)]
        return torch.cat(parts)

    def clusters(self, images: Tensor) -> Tensor:
        """Number of the nearest prototype of each image, [N]. Raises UserError where there are none to choose among, or
        where they are of another classifier's features.
        """
        if len(self.prompts) == 1:
            return torch.zeros(len(images), dtype=torch.int64, device=images.device)
        if not self.prototypes.numel():
            fail("frequency_prompts: these prompts have no clusters yet; take those of purifier/")
        features = self.features(images)
        if features.shape[1] != self.prototypes.shape[1]:
            fail(
                f"frequency_prompts: its clusters are of {self.prototypes.shape[1]} features, and this classifier has "
                f"{features.shape[1]}; judge it before the classifier that it was trained with"
            )
        return _distances(features, self.prototypes).argmin(1)

    def patterns(self) -> Tensor:
        """What each prompt adds to an image, [clusters, 3, side, side]."""
        spectrum = torch.view_as_complex(self.prompts.float().contiguous()) * self.high
        return torch.fft.irfft2(spectrum, s=(self.prompts.shape[2],) * 2)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]; visible: None. The same shape. Raises ValueError for a mask."""
        if visible is not None:
            raise ValueError("prompts are of whole images; give visible=None")
        height, width = images.shape[2:]
        side = self.prompts.shape[2]
        patterns = self.patterns().repeat(1, 1, -(-height // side), -(-width // side))[:, :, :height, :width]
        return images + patterns[self.clusters(images.detach())]


class FrequencyPromptsPurifier(WholeImagePurifier):
    """Adds to each image, of any size, the prompt of its cluster. Gradients are exact, for a choice taken as given."""

    kind = "frequency_prompts"
    Settings = FrequencyPromptsSettings
    options = ("batch_tiles",)
    needs_classifier = True
    is_published: ClassVar[bool] = False

    model: PromptedImages
    network: FrequencyPromptsSettings

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As the base's; and clusters are of features, so the training must have a classifier at hand."""
        super().check_settings(settings)
        name, clusters = settings.objective.name, getattr(settings, cls.kind).clusters
        if clusters > 1 and not OBJECTIVES[name].classifies:
            fail(
                f"objective.name={name}: asks no classifier, whose features frequency_prompts.clusters={clusters} are "
                "found by; choose objective.name=robust"
            )

    @classmethod
    def build(cls, network: FrequencyPromptsSettings) -> PromptedImages:
        """As `WholeImagePurifier.build`."""
        return PromptedImages(network)

    def widest(self) -> int:
        """As `WholeImagePurifier.widest`: the image itself, and what is added."""
        return 3

    def purify(self, images: Tensor) -> Tensor:
        """As `WholeImagePurifier.purify`. Raises ValueError also where one that asks a classifier is exported."""
        if self.network.clusters > 1:
            require_eager(self)
        return super().purify(images)

    def attach(self, classifier: nn.Module) -> None:
        """Take the classifier whose features tell the cluster."""
        self.model.ask(classifier)

    def prepare(self, clean: Callable[[int], Tensor], classifiers: Sequence[nn.Module]) -> None:
        """Find the clusters of clean training images, the same ones whenever they are the same images."""
        if self.network.clusters == 1:
            return
        self.attach(classifiers[0])
        features = self.model.features(clean(self.network.calibration_images))
        self.model.prototypes = prototypes_of(features, self.network.clusters).to(self.model.prompts.device)

    def compiled(self) -> Self:
        """Itself: there is next to nothing to compile."""
        return self

    def weights(self) -> Mapping[str, Tensor]:
        """The prompts, and the prototypes once there are some."""
        prototypes = {PROTOTYPES: self.model.prototypes} if self.model.prototypes.numel() else {}
        return {**self.model.state_dict(), **prototypes}

    @classmethod
    def _with_weights(
        cls, network: FrequencyPromptsSettings, tensors: Mapping[str, Tensor], source: str | Path
    ) -> PromptedImages:
        tensors = dict(tensors)
        prototypes = tensors.pop(PROTOTYPES, None)
        model = super()._with_weights(network, tensors, source)
        assert isinstance(model, PromptedImages)
        if prototypes is not None:
            fits = prototypes.ndim == 2 and len(prototypes) == network.clusters and prototypes.is_floating_point()
            if not fits or not bool(prototypes.isfinite().all()):
                expected = f"finite numbers [{network.clusters}, features]"
                fail(f"{source}: {PROTOTYPES} is {list(prototypes.shape)}; expected {expected}")
            model.prototypes = prototypes.float()
        return model


def prototypes_of(features: Tensor, count: int) -> Tensor:
    """Lloyd's k-means from the points farthest from each other: [count, features], a function of the features alone.

    features: [N, features]. A centre that loses all its points stays where it is. Raises UserError for N below `count`.
    """
    if len(features) < count:
        fail(f"frequency_prompts.clusters={count}: more than the {len(features)} images; choose fewer")
    points = features.double()
    centres = points[_distances(points, points.mean(0, keepdim=True)).argmin()][None]
    while len(centres) < count:
        centres = torch.cat([centres, points[_distances(points, centres).amin(1).argmax()][None]])
    for _ in range(ROUNDS):
        nearest = _distances(points, centres).argmin(1)
        own = [points[nearest == number] for number in range(count)]
        moved = torch.stack([part.mean(0) if len(part) else old for part, old in zip(own, centres, strict=True)])
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.to(features.dtype)


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """[points, centres], of each pair alone: by a matrix product the last bits would depend on the batch."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
