"""DISCO as a purifier: an implicit model of the clean image around each pixel (Ho and Vasconcelos, NeurIPS 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maep.config import schema
from maep.config.schema import PurifySettings, setting
from maep.models.local_implicit import LocalImplicitNetwork
from maep.models.weights import load_weights, read_weights, require_fit
from maep.purifiers.base import UNNAMED, Source, TrainedPurifier, is_recorded, require_images, section_of
from maep.runtime.errors import fail

# What `purify.batch_tiles` counts where there are no tiles: 32 x 32 pixels, an image of CIFAR-10.
TILE_PIXELS = 32 * 32
# Of the published files beside the weights: EDSR's shift of colours, which DISCO never applies.
UNUSED = tuple(f"encoder.{part}_mean.{name}" for part in ("sub", "add") for name in ("weight", "bias"))


@dataclass
class DiscoSettings:
    """Section `disco`. The defaults are the published network; the bounds keep a saved one from taking the machine."""

    blocks: int = setting(16, "residual blocks of the encoder", low=0, high=256)
    features: int = setting(64, "channels of the encoder", low=1, high=2**12)
    hidden: list[int] = setting([256] * 4, "widths of the perceptron's hidden layers", low=1, high=2**16)


class DiscoPurifier(TrainedPurifier):
    """Purifies images of any size whole; `purify.passes` above 1 is DISCO's cascade.

    model: images [N, 3, H, W] in [0, 1] to the same. settings: images at a time and passes. Its sections are `disco`,
    `objective`, `pretrain` and `purify`.
    """

    kind = "disco"
    Settings = DiscoSettings
    options = ("batch_tiles", "passes")
    stages = ("shards", "classifier", "attack", "pretrain")

    def __init__(self, model: LocalImplicitNetwork, network: DiscoSettings, settings: PurifySettings) -> None:
        super().__init__(model, network, settings)
        self.check_options(settings)

    @classmethod
    def check(cls, section: DiscoSettings) -> None:
        """Raise UserError where the perceptron has no hidden layer."""
        if not section.hidden:
            fail("disco.hidden=[]: expected at least one width, such as 256")

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As `Purifier.check_settings`: it sees whole images, and has no latents that an objective could compare."""
        super().check_settings(settings)
        if settings.pretrain.mask_ratio and settings.pretrain.mask_until:
            fail(f"pretrain.mask_ratio={settings.pretrain.mask_ratio:g}: disco sees whole images; set it to 0")
        if settings.objective.name == "trades_latent":
            fail("objective.name=trades_latent: compares latents, which disco has not; choose trades_pixel")

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape, clipped to [0, 1].

        At most `batch_tiles` times 32 x 32 pixels are in the network at a time, also in the backward pass, or one
        image where that has more. Raises ValueError for another shape.
        """
        require_images(images)
        for _ in range(self.settings.passes):
            images = self._once(images).clamp(0, 1)
        return images

    def _once(self, images: Tensor) -> Tensor:
        if is_recorded():
            return cast(Tensor, self.model(images))
        parts = images.split(self.images_at_once(*images.shape[2:]))
        if len(parts) > 1 and torch.is_grad_enabled() and images.requires_grad:
            return torch.cat([checkpoint(self.model, part, use_reentrant=False) for part in parts])
        return torch.cat([self.model(part) for part in parts])

    def images_at_once(self, height: int, width: int) -> int:
        """As many as have the pixels of `batch_tiles` tiles."""
        return max(1, self.settings.batch_tiles * TILE_PIXELS // (height * width))

    def with_options(self, options: PurifySettings, source: str | Path = "this purifier") -> "DiscoPurifier":
        """The same network in another cascade. Raises UserError for options that it has not."""
        return DiscoPurifier(self.model, self.network, options).train(self.training)

    def compiled(self) -> "DiscoPurifier":
        """The network compiled."""
        return DiscoPurifier(cast(Any, torch.compile(self.model)), self.network, self.settings).eval()

    # on disk

    @classmethod
    def from_config(cls, config: Mapping[str, object], tensors: Mapping[str, Tensor], source: Source = UNNAMED) -> Self:
        """As `Purifier.from_config`."""
        network = section_of(DiscoSettings, config.get("model"), source.config)
        cls.check(network)
        with torch.device("meta"):  # names and shapes alone: nothing is allocated for what the file does not hold
            require_fit(_network(network).state_dict(), tensors, source.weights)
        model = _network(network)
        load_weights(model, tensors, source.weights)
        return cls(model, network, section_of(PurifySettings, config.get("purify") or {}, source.config))

    @classmethod
    def from_settings(cls, settings: schema.Settings) -> Self:
        """With random weights from torch's generator."""
        network: DiscoSettings = cls.network_settings(settings)
        return cls(_network(network), network, settings.purify)

    @classmethod
    def from_published(cls, path: Path) -> Self:
        """The purifier in a file as the authors publish them, `{"model": {"sd": …}}`, of any depth and width."""
        tensors = {name: tensor for name, tensor in read_weights(path).items() if name not in UNUSED}
        network = _described(tensors, path)
        with torch.device("meta"):
            require_fit(_network(network).state_dict(), tensors, path)
        model = _network(network)
        load_weights(model, tensors, path)
        return cls(model, network, PurifySettings())


def _network(settings: DiscoSettings) -> LocalImplicitNetwork:
    return LocalImplicitNetwork(settings.blocks, settings.features, settings.hidden)


def _described(tensors: Mapping[str, Tensor], path: Path) -> DiscoSettings:
    """The settings of the network whose weights these are; the published ones where they are of something else."""
    blocks = sum(name.startswith("encoder.body.") and name.endswith(".body.0.weight") for name in tensors)
    head = tensors.get("encoder.head.0.weight")
    layers = {name: tensor for name, tensor in tensors.items() if name.startswith("imnet.layers.") and tensor.ndim == 2}
    widths = [len(layers[name]) for name in sorted(layers, key=lambda name: int(name.split(".")[2]))]
    if head is None or len(widths) < 2:
        return DiscoSettings()
    return section_of(DiscoSettings, {"blocks": blocks, "features": len(head), "hidden": widths[:-1]}, str(path))
