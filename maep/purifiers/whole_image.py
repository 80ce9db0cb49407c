"""What purifiers have in common whose network sees an image of any size whole, and so needs no tiles."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maep.config import schema
from maep.config.evaluation_settings import PurifySettings
from maep.config.identity import decisive_fields
from maep.models.weights import build_with_weights, read_weights
from maep.purifiers.base import (
    UNNAMED,
    Source,
    TrainedPurifier,
    is_recorded,
    mapping_of,
    require_images,
    section_of,
)
from maep.purifiers.sections import network_entries, saved_entries, use_entries
from maep.runtime.compiling import compiled_copy
from maep.runtime.errors import fail

# What `purify.batch_tiles` counts where there are no tiles: 32 x 32 pixels, an image of CIFAR-10.
TILE_PIXELS = 32 * 32
# Of a pixel, in memory at a time: layers before and after, in fp32, and what a convolution unfolds (16 to 25 measured).
BYTES_A_CHANNEL = 25


class WholeImagePurifier(TrainedPurifier):
    """Purifies images of any size whole; `purify.passes` above 1 is a cascade.

    model: images [N, 3, H, W] in [0, 1] to the same. settings: images at a time and passes. Its sections are the kind's
    own, which decides the network, `objective`, `pretrain` and `purify`. A kind gives `build` and `widest`, and
    `described` if weights of its authors are read (`is_published`).
    """

    is_published: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("batch_tiles", "passes")
    stages: ClassVar[tuple[str, ...]] = ("shards", "classifier", "attack", "pretrain")

    def __init__(self, model: nn.Module, network: Any, settings: PurifySettings) -> None:
        super().__init__(model, network, settings)
        self.check_options(settings)

    @classmethod
    @abstractmethod
    def build(cls, network: Any) -> nn.Module:
        """The network that a section describes, with random weights."""

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor], path: Path) -> Any:
        """The section of the network whose weights these are; the published one's where they are of something else."""
        raise NotImplementedError

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As `Purifier.check_settings`: it sees whole images, and has no latents that an objective could compare."""
        super().check_settings(settings)
        if settings.pretrain.mask_ratio and settings.pretrain.mask_until:
            fail(f"pretrain.mask_ratio={settings.pretrain.mask_ratio:g}: {cls.kind} sees whole images; set it to 0")
        if settings.objective.name == "trades_latent":
            fail(f"objective.name=trades_latent: compares latents, which {cls.kind} has not; choose trades_pixel")

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
        """Its images in the type of those it is given: under autocast a network gives them in another."""
        if is_recorded():
            return cast(Tensor, self.model(images)).to(images.dtype)
        parts = images.split(self.images_at_once(*images.shape[2:]))
        if len(parts) > 1 and torch.is_grad_enabled() and images.requires_grad:
            purified = [checkpoint(self.model, part, use_reentrant=False) for part in parts]
        else:
            purified = [self.model(part) for part in parts]
        return torch.cat(purified).to(images.dtype)

    def images_at_once(self, height: int, width: int) -> int:
        """As many as have the pixels of `batch_tiles` tiles."""
        return max(1, self.settings.batch_tiles * TILE_PIXELS // (height * width))

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: of the layers at work, by the channels of the widest."""
        return BYTES_A_CHANNEL * self.widest() * height * width

    @abstractmethod
    def widest(self) -> int:
        """Channels of the widest layers that the network has at the size of the image."""

    def with_options(self, options: PurifySettings, source: str | Path = "this purifier") -> Self:
        """The same network in another cascade. Raises UserError for options that it has not."""
        return type(self)(self.model, self.network, options).train(self.training)

    def used_as(self, settings: schema.Settings, source: str | Path = "this purifier") -> Self:
        """The same network, used as the settings of its kind say. Raises UserError as `with_options`."""
        if settings.purifier.kind != self.kind:
            return self.with_options(settings.purify, source)
        network = replace(getattr(settings, self.kind), **network_entries(self.network))
        return type(self)(self.model, network, settings.purify).train(self.training)

    @classmethod
    def shared_network(cls, settings: schema.Settings) -> Mapping[str, object] | None:
        """What the network is, whichever way it is used, of a kind that has several."""
        section = getattr(settings, cls.kind)
        return {"kind": cls.kind, **decisive_fields(section, "pretrain")} if use_entries(section) else None

    @classmethod
    def use_facts(cls, settings: schema.Settings) -> dict[str, object]:
        """Those of its settings that its training does not depend on, below its kind."""
        use = use_entries(getattr(settings, cls.kind))
        return {cls.kind: use} if use else {}

    def compiled(self) -> Self:
        """The network compiled."""
        return type(self)(compiled_copy(self.model), self.network, self.settings).eval()

    # on disk

    def config(self) -> dict[str, Any]:
        """The network's settings and the section `purify`, below whose `use` stands how the kind uses the network."""
        use = use_entries(self.network)
        return {
            "model": saved_entries(self.network),
            "purify": {**asdict(self.settings), **({"use": use} if use else {})},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, object], tensors: Mapping[str, Tensor], source: Source = UNNAMED) -> Self:
        """As `Purifier.from_config`."""
        assert cls.Settings is not None
        model, purify = config.get("model"), mapping_of(config.get("purify"), "purify", source.config)
        use = mapping_of(purify.pop("use", None), "purify.use", source.config)
        network = section_of(cls.Settings, {**model, **use} if isinstance(model, Mapping) else model, source.config)
        cls.check(network)
        options = section_of(PurifySettings, purify, source.config)
        return cls(cls._with_weights(network, tensors, source.weights), network, options)

    @classmethod
    def from_settings(cls, settings: schema.Settings) -> Self:
        """With random weights from torch's generator."""
        network = cls.network_settings(settings)
        return cls(cls.build(network), network, settings.purify)

    @classmethod
    def from_published(cls, path: Path) -> Self:
        """The purifier in a file as its authors publish them, of any depth and width."""
        if not cls.is_published:
            return super().from_published(path)
        tensors = cls.used(read_weights(path))
        network = cls.described(tensors, path)
        return cls(cls._with_weights(network, tensors, path), network, PurifySettings())

    @classmethod
    def used(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a published file, the tensors that the network has; by default all."""
        return dict(tensors)

    @classmethod
    def _with_weights(cls, network: Any, tensors: Mapping[str, Tensor], source: str | Path) -> nn.Module:
        return build_with_weights(partial(cls.build, network), tensors, source)
