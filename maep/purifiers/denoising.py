"""What the purifiers around a denoiser have in common: the network and its training, padding, seeds, gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config import schema
from maep.config.evaluation_settings import PurifySettings
from maep.config.identity import decisive_fields
from maep.config.setting import setting
from maep.models.denoiser import GROUPS, Denoiser
from maep.models.published_denoisers import WIDTHS, Sizes, build_published, read_published
from maep.models.weights import build_with_weights, load_weights
from maep.purifiers.base import (
    UNNAMED,
    Source,
    TrainedPurifier,
    derivable,
    mapping_of,
    require_eager,
    require_images,
    section_of,
)
from maep.purifiers.registry import purifier_class
from maep.purifiers.sections import network_entries, use_entries
from maep.purifiers.serialization import load_purifier
from maep.purifiers.stepwise import GraphMemory, Step, stepwise, walk
from maep.runtime.device import upload
from maep.runtime.errors import fail
from maep.runtime.randomness import SideBySide, keyed_rng

OWN = "own"
LAYOUTS = ("score_sde", "ddpm", "improved", "guided", "edm")
EDM_LEVELS = 6  # whose names are sides of images, from 32 to 1
# Time of the diffusion below which fp32 rounds the picture's share to 1: whoever divides by the rest has no number.
SHORTEST = 1e-6
# What `purify.batch_tiles` counts where there are no tiles: 32 x 32 pixels, an image of CIFAR-10.
TILE_PIXELS = 32 * 32


@dataclass
class TimedNetworkSettings:
    """The network's part of a section. The defaults have 1.06 million parameters and take 0.5 GFLOP a 32 x 32 image;
    DDPM's own is 128 wide, with multipliers [1, 2, 2, 2] and 2 blocks. The bounds keep a saved one from taking the
    machine.
    """

    width: int = setting(32, f"channels of the finest level, a multiple of {GROUPS}", low=GROUPS, high=2**12)
    multipliers: list[int] = setting(
        [1, 2, 2], "channels of each level over width; each level is half as fine as the one before", low=1, high=64
    )
    blocks: int = setting(1, "residual blocks a level", low=1, high=64)
    unshuffle: int = setting(1, "pixels become channels by this factor before the network", choices=(1, 2, 4))


@dataclass
class DenoiserSettings(TimedNetworkSettings):
    """The same of a network that predicts noise. The layouts of published files are in
    `maep.models.published_denoisers`; DiffPure's on CIFAR-10 is score_sde, 128, [1, 2, 2, 2], 8 blocks, attention [1].
    """

    latest: float = setting(
        0.2, "time of the diffusion up to which it is trained (published networks: 1)", above=0.0, high=1.0
    )
    layout: str = setting(
        OWN, "whose network it is: the project's own, or one with the names and sizes of published files",
        choices=(OWN, *LAYOUTS), added=True,
    )  # fmt: skip
    attention: list[int] = setting(
        [], "levels with attention, counted from 0, beside the middle; of published layouts", low=0, high=64, added=True
    )


class DenoiserPurifier(TrainedPurifier):
    """Purifies images of any size whole, by asking a denoiser many times. A kind gives `start` and `steps`.

    network: its whole section, an instance of `Settings`, which says what the network is and how it is used.
    Every image has a seed, drawn when it is purified, of which all its noise is a function.
    """

    is_iterative = True
    options = ("batch_tiles", "gradient_memory")

    Settings: ClassVar[type[Any]]
    stages: ClassVar[tuple[str, ...]] = ("shards", "classifier", "pretrain")
    network_kind = "denoiser"

    def __init__(self, model: nn.Module, network: Any, settings: PurifySettings) -> None:
        """Raises UserError where the section does not fit together, and for options that it has not."""
        self.check(network)
        self.check_options(settings)
        super().__init__(model, network, settings)
        self.reseed(0)

    @property
    def is_random(self) -> bool:
        """As `Purifier.is_random`; here always, unless a kind says otherwise."""
        return True

    def reseed(self, *key: int) -> None:
        """Start the seeds of images at `key`; what follows depends on it and on the images since alone."""
        self.reseed_each([key])

    def reseed_each(self, keys: Sequence[tuple[int, ...]]) -> None:
        """Of images that are so many batches, one after the other, each has the seeds of its own key."""
        self.rng = SideBySide([keyed_rng("purifier", *key) for key in keys])

    @classmethod
    def check(cls, section: Any) -> None:
        """Raise UserError where the network's settings do not fit together."""
        if not section.multipliers:
            fail(f"{cls.kind}.multipliers=[]: expected at least one, such as 1")
        if section.width % GROUPS:
            fail(f"{cls.kind}.width={section.width}: must be a multiple of {GROUPS}")
        if getattr(section, "layout", OWN) != OWN:
            return _check_published(cls.kind, section)
        if getattr(section, "attention", []):
            fail(f"{cls.kind}.attention={section.attention}: is of published layouts; {OWN} has it in the middle alone")
        channels = 3 * section.unshuffle**2
        if section.width < channels:  # or the noise, which it must tell, would not pass
            fail(f"{cls.kind}.width={section.width}: must be at least {channels} with unshuffle={section.unshuffle}")

    @classmethod
    def check_time(cls, section: Any, key: str, value: float, time: float) -> None:
        """Raise UserError where a setting asks for more noise than the network has seen. time: what it comes to."""
        if time > section.latest * (1 + 1e-6):
            fail(
                f"{cls.kind}.{key}={value:g}: is at time {time:.3g} of the diffusion, and the network is trained up to "
                f"{cls.kind}.latest={section.latest:g}; choose less, or train it further"
            )

    @classmethod
    def check_steps(cls, section: Any, key: str, time: float, shortest: float = SHORTEST) -> None:
        """Raise UserError where the steps from a time back to 0 would be shorter than a time: images would come out as
        what is no number.
        """
        if time * (1 + 1e-9) < section.steps * shortest:  # as fp32 reads both
            fail(
                f"{cls.kind}.steps={section.steps}: from {cls.kind}.{key}={time:g} back each would be shorter than "
                f"{shortest:g}, the least that can be computed; choose fewer, or a later time"
            )

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As `Purifier.check_settings`: images that it is trained on must be divisible into its levels."""
        super().check_settings(settings)
        section, size = getattr(settings, cls.kind), settings.model.image_size
        factor = section.unshuffle * 2 ** (len(section.multipliers) - 1)
        if size % factor:
            fail(f"model.image_size={size}: is halved by the levels of {cls.kind}; choose a multiple of {factor}")

    @classmethod
    def build(cls, section: Any) -> nn.Module:
        """The network that a section describes, with random weights."""
        if getattr(section, "layout", OWN) == OWN:
            return Denoiser(section.width, section.multipliers, section.blocks, section.unshuffle, section.latest)
        sizes = Sizes(section.width, section.multipliers, section.blocks, section.attention)
        return build_published(section.layout, sizes, section.latest)

    @classmethod
    def loaded(cls, section: Any, tensors: Mapping[str, Tensor], source: str | Path) -> nn.Module:
        """The network of a section with these weights. Raises UserError, naming `source`, unless each name fits."""
        return build_with_weights(partial(cls.build, section), tensors, source)

    # purifying

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """The first state, a differentiable function of pictures [N, 3, H, W] in [-1, 1]. seeds: int64 [N]."""
        raise NotImplementedError

    def steps(self, seeds: Tensor) -> list[Step]:
        """The steps from there, each a pure function of its state and of the pictures, image by image."""
        raise NotImplementedError

    def result(self, state: Tensor, seeds: Tensor) -> Tensor:
        """The purified pictures [N, 3, H, W], about [-1, 1], from the last state: by default that itself."""
        return state

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape, clipped to [0, 1].

        At most `batch_tiles` times 32 x 32 pixels are purified together, or one image where that has more. The
        gradient with respect to the images is exact (`maep.purifiers.stepwise`), and keeps graphs of steps of at most
        `gradient_memory` until the backward pass. Raises ValueError for another shape, for images in half precision,
        and where it is exported.
        """
        require_images(images)
        if images.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"images of {images.dtype}: the little noise at the end of a diffusion is none in it, and the result "
                "no number; give float32, and have the network alone compute in it by torch.autocast"
            )
        require_eager(self)
        if not len(images):
            return images
        drawn = [rng.integers(-(2**63), 2**63, dtype=np.int64) for rng in self.rng.of_images(len(images))]
        seeds = torch.tensor(drawn, dtype=torch.int64)
        size = self.images_at_once(*images.shape[2:])
        memory = GraphMemory(self.settings.gradient_memory, chain(self.model.parameters(), self.model.buffers()))
        with derivable():
            parts = zip(images.split(size), upload(seeds, images.device).split(size), strict=True)
            return torch.cat([self._purified(*part, memory) for part in parts])

    def _purified(self, images: Tensor, seeds: Tensor, memory: GraphMemory) -> Tensor:
        height, width = images.shape[2:]
        down, across = (self.side_taken(side) - side for side in (height, width))
        pictures = F.pad(2 * images - 1, (0, across, 0, down), mode="replicate")
        start, steps = self.start(pictures, seeds), self.steps(seeds)
        # Weights that are trained get their gradients from the whole graph.
        is_trained = any(weight.requires_grad for weight in self.model.parameters())
        state = walk(start, pictures, steps) if is_trained else stepwise(start, pictures, steps, memory)
        return ((self.result(state, seeds)[:, :, :height, :width] + 1) / 2).clamp(0, 1)

    def side_taken(self, side: int) -> int:
        """The pixels to which a side of an image is continued by its border, for its network; at least as many."""
        return side + -side % int(self.model.factor)

    def images_at_once(self, height: int, width: int) -> int:
        """As many as have, continued, the pixels of `batch_tiles` tiles."""
        pixels = self.side_taken(height) * self.side_taken(width)
        return max(1, self.settings.batch_tiles * TILE_PIXELS // pixels)

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: 50 a channel of the finest level, and two maps of the largest attention."""
        pixels = height * width // self.model.attended**2
        return 50 * self.network.width * height * width + 8 * self.model.heads * pixels**2

    # variants of it

    def with_options(self, options: PurifySettings, source: str | Path = "this purifier") -> Self:
        """As `Purifier.with_options`."""
        return type(self)(self.model, self.network, options).train(self.training)

    def shortened(self, share: float) -> "DenoiserPurifier":
        """As `Purifier.shortened`: fewer steps, in each round, each over more of the way where there is one."""
        count = max(1, round(share * self.network.steps))
        if count == self.network.steps:
            return self
        return type(self)(self.model, replace(self.network, steps=count), self.settings).train(self.training)

    def used_as(self, settings: schema.Settings, source: str | Path = "this purifier") -> TrainedPurifier:
        """The same network as the settings' kind uses it, where that is one of the same kind of network."""
        kind = purifier_class(settings.purifier.kind)
        if not (issubclass(kind, DenoiserPurifier) and kind.network_kind == self.network_kind):
            return self.with_options(settings.purify, source)
        section = replace(getattr(settings, kind.kind), **network_entries(self.network))
        return kind(self.model, section, settings.purify).train(self.training)

    @classmethod
    def shared_network(cls, settings: schema.Settings) -> dict[str, object]:
        """What the network is, whichever kind asks it."""
        return {"network": cls.network_kind, **decisive_fields(getattr(settings, cls.kind), "pretrain")}

    @classmethod
    def use_facts(cls, settings: schema.Settings) -> dict[str, object]:
        """The settings of its section that say how the network is used, below the kind that uses it."""
        section = getattr(settings, cls.kind)
        network = network_entries(section)
        used = decisive_fields(section, "records")  # without the defaults of what was added later
        return {cls.kind: {name: value for name, value in used.items() if name not in network}}

    def identity_facts(self) -> object:
        """As `TrainedPurifier.identity_facts`, without the defaults of settings that were added later."""
        return {"kind": self.kind, "model": decisive_fields(self.network, "records")}

    # on disk

    def config(self) -> dict[str, Any]:
        """The network's settings, without the defaults of those that were added later, and below `purify.sampler` how
        the kind uses it.
        """
        sampler = use_entries(self.network)
        return {
            "model": decisive_fields(self.network, "pretrain"),
            "purify": {**asdict(self.settings), "sampler": sampler},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, object], tensors: Mapping[str, Tensor], source: Source = UNNAMED) -> Self:
        """As `Purifier.from_config`."""
        model, purify = (mapping_of(config.get(name), name, source.config) for name in ("model", "purify"))
        sampler = mapping_of(purify.pop("sampler", None), "purify.sampler", source.config)
        section = section_of(cls.Settings, {**model, **sampler}, source.config)
        cls.check(section)
        network = cls.loaded(section, tensors, source.weights)
        return cls(network, section, section_of(PurifySettings, purify, source.config))

    @classmethod
    def from_published(cls, path: Path) -> Self:
        """The purifier as its defaults use a published network, of any of the layouts that are read.

        Raises UserError where the file is of none, or does not fit.
        """
        if cls.network_kind != DenoiserPurifier.network_kind:
            return super().from_published(path)
        published = read_published(path)
        sizes = {**asdict(published.sizes), "layout": published.layout, "latest": 1.0}
        section = section_of(cls.Settings, sizes, str(path))
        cls.check(section)
        return cls(cls.loaded(section, published.tensors, path), section, PurifySettings())

    @classmethod
    def untrained(cls, settings: schema.Settings) -> Self:
        """As `TrainedPurifier.untrained`, from the network of a trained purifier if model.init names one."""
        purifier, path = cls.from_settings(settings), settings.model.init
        if path:
            initial = load_purifier(path)
            if not (isinstance(initial, DenoiserPurifier) and initial.network_kind == cls.network_kind):
                fail(f"model.init={path}: is of kind {initial.kind}, whose network is not one of {cls.kind}")
            load_weights(purifier.model, initial.model.state_dict(), path)
        return purifier

    @classmethod
    def from_settings(cls, settings: schema.Settings) -> Self:
        """With random weights from torch's generator."""
        section = cls.network_settings(settings)
        cls.check(section)
        return cls(cls.build(section), section, settings.purify)


def _check_published(kind: str, section: Any) -> None:
    """Raise UserError where the sizes are none that a network of a published layout has."""
    if section.width % WIDTHS:
        fail(f"{kind}.width={section.width}: must be a multiple of {WIDTHS} with layout={section.layout}")
    if section.unshuffle != 1:
        fail(f"{kind}.unshuffle={section.unshuffle}: is of layout={OWN}; set it to 1")
    levels = len(section.multipliers)
    if section.layout == "edm" and levels > EDM_LEVELS:
        fail(f"{kind}.multipliers={section.multipliers}: at most {EDM_LEVELS} levels have names with layout=edm")
    if any(level >= levels for level in section.attention):
        fail(f"{kind}.attention={section.attention}: there are {levels} levels, counted from 0")
