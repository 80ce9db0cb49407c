"""DRAM: an image that a masked autoencoder finds odd is changed until it does not (Tsai et al. 2023, arXiv 2303.12848).

The autoencoder is the project's own, trained on hidden patches of clean images (`objective.name=mae`). Each image has a
perturbation and masks of its own, in [0, 1] pixels; the published code shares one among a batch, in normalised units.
Compared is what the autoencoder predicts: pixels, or as theirs patches brought to mean 0 and deviation 1
(`model.prediction=normalized`).
Theirs judges groups of four images of one attack together. Here an image stands alone, with losses of several masks:
by their mean, or as theirs by the Kolmogorov-Smirnov statistic between them and those of clean images. It counts as
attacked above what a given share of clean images exceeds, where theirs takes p < 0.05.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor

from maep.config import schema
from maep.config.consistency import check_model
from maep.config.evaluation_settings import PurifySettings
from maep.config.identity import decisive_fields
from maep.config.setting import setting
from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder, visible_pixels
from maep.models.normalized_patches import normalized_patches
from maep.models.weights import build_with_weights
from maep.purifiers.base import (
    UNNAMED,
    Source,
    TrainedPurifier,
    mapping_of,
    require_as_saved,
    require_eager,
    require_images,
    section_of,
)
from maep.purifiers.sections import USED, use_entries
from maep.purifiers.tiling import Tiling
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng

ROUNDING = 1e-6  # of an image
# Among the saved tensors.
THRESHOLD = "dram.threshold"
CLEAN_LOSSES = "dram.clean_losses"


@dataclass
class DramSettings:
    """Section `dram`. The defaults are ours, in the unit of attacks; the authors' are 4/255, 8/255 and 4 steps."""

    eps: float = setting(
        8 / 255, "bound of what is added to an image (L∞)", unit="[0,1] pixels", above=0.0, high=1.0,
        affects_result=USED,
    )  # fmt: skip
    step: float = setting(
        2 / 255, "size of a step", unit="[0,1] pixels", above=0.0, high=1.0, affects_result=USED
    )  # fmt: skip
    steps: int = setting(20, "steps of descent", low=1, high=1000, affects_result=USED)
    mask_ratio: float = setting(0.75, "share of patches that the autoencoder does not see", above=0.0, high=0.99)
    fresh_masks: bool = setting(
        False, "hide other patches at every step; as published the same ones", affects_result=USED
    )
    false_alarms: float = setting(
        1.0, "share of clean images that count as attacked and are repaired; 1: every image is", above=0.0, high=1.0
    )
    detection: str = setting(
        "mean", "what an image is judged by: the mean of its losses, or how they are distributed beside those of clean "
        "images (Kolmogorov-Smirnov, as published)", choices=("mean", "ks"), added=True,
    )  # fmt: skip
    detection_masks: int = setting(4, "masks, each giving a loss, by which an image is judged", low=1, high=1000)
    calibration_images: int = setting(
        256, "clean training images whose losses decide what counts as attacked", unit="images", low=1
    )


class Draws(NamedTuple):
    """What is drawn for N images of K tiles. start: [N, 3, H, W] in ± eps; detection, repair: visible patches, bool
    [masks, N * K, T].
    """

    start: Tensor
    detection: Tensor
    repair: Tensor

    def of(self, images: slice, tiles: slice) -> "Draws":
        """Those of some images and their tiles."""
        return Draws(self.start[images], self.detection[:, tiles], self.repair[:, tiles])


class DramPurifier(TrainedPurifier):
    """x + δ, clipped to [0, 1], where x is more suspicious than the threshold; x itself elsewhere.

    From δ uniform in ± eps: δ ← clip(δ - step·sign ∇ loss(x + δ), ± eps), `steps` times; the loss is the mean squared
    error of the autoencoder on the patches that it does not see, its target taken for constant, as published: only seen
    patches follow the gradient. Descent by signs has no gradient of use, so adaptive attackers are BPDA's with EOT.
    threshold: NaN before `calibrated`, where one is needed. clean_losses: of the calibration images, for `ks`; else
    none. Its sections are `dram`, `model`, `objective`, `pretrain`.
    """

    kind = "dram"
    Settings = DramSettings
    network_name = "model"
    options = ("batch_tiles",)
    stages = ("shards", "classifier", "attack", "pretrain")
    is_differentiable = False
    is_iterative = has_path = has_auxiliary_loss = True

    model: MaskedAutoencoder
    threshold: Tensor
    clean_losses: Tensor

    def __init__(self, model: MaskedAutoencoder, settings: PurifySettings, repair: DramSettings) -> None:
        super().__init__(model, model.config, settings)
        self.check_options(settings)
        self.repair = repair
        self.register_buffer("threshold", torch.tensor(math.nan if self.detects else -math.inf))
        self.register_buffer("clean_losses", torch.empty(0))
        self.reseed(0)

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As the base's; and there is a patch to hide beside one to see, or images would be what was drawn for them."""
        super().check_settings(settings)
        if settings.model.patch_size == settings.model.image_size:
            fail(f"model.patch_size={settings.model.patch_size}: dram hides patches, and this one is all of an image; "
                 "choose a smaller one")  # fmt: skip

    @classmethod
    def check(cls, section: DramSettings) -> None:
        """Raise UserError where an image would be compared with none but itself."""
        if section.detection == "ks" and section.false_alarms < 1 and section.calibration_images < 2:
            fail("dram.calibration_images=1: dram.detection=ks compares each image with others; set 2 or more")

    @property
    def is_random(self) -> bool:
        """As `Purifier.is_random`; here always."""
        return True

    @property
    def detects(self) -> bool:
        """As `Purifier.detects`: unless every image is repaired."""
        return self.repair.false_alarms < 1

    def reseed(self, *key: int) -> None:
        """Start masks and perturbations at `key`; images draw one after another."""
        self._rng = keyed_rng("purifier", *key)

    @torch.no_grad()
    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1], of any size. Returns the same shape and range, without a gradient.

        Raises ValueError for another shape, where it is exported, and UserError before it was calibrated.
        """
        require_images(images)
        if not len(images):
            return images
        return torch.cat([deque(walk, maxlen=1).pop() for walk in self._walks(images)])

    @torch.no_grad()
    def path(self, images: Tensor) -> Sequence[Tensor]:
        """As the base's: what each step of a repair gives; of what is not repaired, the image itself. Raises as
        `purify`.
        """
        require_images(images)
        if not len(images):
            return [images]
        return [torch.cat(step) for step in zip(*self._walks(images), strict=True)]

    def _walks(self, images: Tensor) -> list[Iterator[Tensor]]:
        """Of the images that are in the network together what each step makes of them, as it is asked for."""
        require_eager(self)
        self._require_threshold()
        grid = self._grid(images)
        return [self._steps(x, grid, draws) for x, draws in self._parts(images, grid)]

    def _require_threshold(self) -> None:
        if self.threshold.isnan():
            fail(f"dram.false_alarms={self.repair.false_alarms:g}: this purifier was not calibrated; take that of "
                 "purifier/, or set it to 1")  # fmt: skip

    def _grid(self, images: Tensor) -> Tiling:
        height, width = images.shape[-2:]
        return Tiling(height, width, self.model.config.image_size, 0).to(images)

    def _parts(self, images: Tensor, grid: Tiling) -> Sequence[tuple[Tensor, Draws]]:
        """Images that are in the network together, and what is drawn for them."""
        draws, tiles = self._drawn(images, grid), grid.rows * grid.columns
        at_once = self.images_at_once(*images.shape[-2:])
        parts = [slice(first, first + at_once) for first in range(0, len(images), at_once)]
        return [(images[part], draws.of(part, slice(part.start * tiles, part.stop * tiles))) for part in parts]

    def images_at_once(self, height: int, width: int) -> int:
        """As many as fill one batch of tiles."""
        grid = Tiling(height, width, self.model.config.image_size, 0)
        return max(1, self.settings.batch_tiles // (grid.rows * grid.columns))

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: what autograd keeps of the network on all tiles."""
        network = self.network
        layers = network.encoder_width * network.encoder_depth + network.decoder_width * network.decoder_depth
        return 28 * layers // network.patch_size**2 * height * width

    def _drawn(self, images: Tensor, grid: Tiling) -> Draws:
        """For one image after another, whatever comes of it."""
        shape, tiles, patches = tuple(images.shape[1:]), grid.rows * grid.columns, self.model.num_patches
        hidden = min(patches - 1, max(1, round(self.repair.mask_ratio * patches)))
        masks = self.repair.detection_masks + (self.repair.steps if self.repair.fresh_masks else 1)
        starts, seen = [], []
        for _ in range(len(images)):
            starts.append(self._rng.random(shape, dtype=np.float32))
            seen.append(self._rng.random((masks, tiles, patches)).argsort(-1) >= hidden)
        start = self.repair.eps * (2 * torch.from_numpy(np.stack(starts)) - 1)
        visible = torch.from_numpy(np.concatenate(seen, axis=1)).to(images.device)
        return Draws(start.to(images), visible[: self.repair.detection_masks], visible[self.repair.detection_masks :])

    def _steps(self, x: Tensor, grid: Tiling, draws: Draws) -> Iterator[Tensor]:
        attacked = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if self.detects:
            attacked = self._suspicions(self._detection_losses(x, grid, draws)) > self.threshold
        for repaired in self._repairs(x, grid, draws):
            yield torch.where(attacked[:, None, None, None], repaired, x)

    def _repairs(self, x: Tensor, grid: Tiling, draws: Draws) -> Iterator[Tensor]:
        shift = draws.start
        for number in range(self.repair.steps):
            with torch.inference_mode(False), torch.enable_grad():
                at = (x + shift).requires_grad_()
                # Summed, so that an image's gradient does not depend on how many others there are.
                loss = self._losses(at, grid, draws.repair[number % len(draws.repair)]).sum()
                (gradient,) = torch.autograd.grad(loss, at)
            shift = (shift - self.repair.step * gradient.sign()).clamp(-self.repair.eps, self.repair.eps)
            yield (x + shift).clamp(0, 1)

    def _losses(self, images: Tensor, grid: Tiling, visible: Tensor) -> Tensor:
        """Mean squared error on hidden pixels, [N]; the target is constant to autograd."""
        tiles = grid.cut(images)
        side = self.model.config.image_size // self.model.patch
        hidden = 1 - visible_pixels(visible, self.model.patch, (side, side)).to(tiles)
        patch, target = self.model.normalized_patch, tiles.detach()
        if patch is not None:
            target = normalized_patches(target, patch)
        errors = (cast(Tensor, self.model(tiles, visible, normalized=True)) - target).square() * hidden
        return errors.flatten(1).sum(1).unflatten(0, (len(images), -1)).sum(1) / (
            3 * hidden.flatten(1).sum(1).unflatten(0, (len(images), -1)).sum(1)
        )

    # detecting

    @torch.no_grad()
    def detected(self, images: Tensor) -> Tensor:
        """As `Purifier.detected`; draws anew. Raises as `purify`."""
        require_images(images)
        self._require_threshold()
        return self.suspicions(images) > self.threshold

    @torch.no_grad()
    def suspicions(self, images: Tensor) -> Tensor:
        """What is compared with the threshold, [N]; draws anew. images: [N, 3, H, W] in [0, 1]."""
        return self._suspicions(self.detection_losses(images))

    def auxiliary_loss(self, images: Tensor) -> Tensor:
        """As the base's: the mean over the masks of detection, of pixels that are hidden; draws anew."""
        return self.detection_losses(images).mean(0)

    def detection_losses(self, images: Tensor) -> Tensor:
        """On the pixels that each mask of detection hides, [masks, N]; differentiable, draws anew. images: as above."""
        grid = self._grid(images)
        return torch.cat([self._detection_losses(x, grid, draws) for x, draws in self._parts(images, grid)], 1)

    def _detection_losses(self, x: Tensor, grid: Tiling, draws: Draws) -> Tensor:
        return torch.stack([self._losses(x, grid, visible) for visible in draws.detection])

    def _suspicions(self, losses: Tensor) -> Tensor:
        """Of losses [masks, N]: [N]."""
        if self.repair.detection == "mean":
            return losses.mean(0)
        clean = self.clean_losses.double().cpu().numpy()
        return losses.new_tensor([kolmogorov_smirnov(each, clean) for each in losses.T.double().cpu().numpy()])

    @torch.no_grad()
    def calibrated(self, clean: Callable[[int], Tensor]) -> "DramPurifier":
        """With the threshold that `false_alarms` of the first clean training images exceed."""
        if self.detects:
            self.reseed(0)
            losses = self.detection_losses(clean(self.repair.calibration_images))
            suspicions = self._suspicions_of_clean(losses).sort().values
            # The smallest that no more than that share exceeds; 29 % of 100 is a little below 29.
            exceeding = math.floor(self.repair.false_alarms * len(suspicions) + ROUNDING)
            self.threshold.fill_(suspicions[len(suspicions) - 1 - exceeding])
        return self

    def _suspicions_of_clean(self, losses: Tensor) -> Tensor:
        """Of the calibration images, whose losses [masks, N] are kept where others are compared with them.

        Each is compared with all but its own, as an image of the test is.
        """
        if self.repair.detection == "mean":
            return self._suspicions(losses)
        self.clean_losses = losses.flatten()
        columns = losses.T.double().cpu().numpy()
        return losses.new_tensor(
            [kolmogorov_smirnov(each, np.delete(columns, number, 0)) for number, each in enumerate(columns)]
        )

    # variants of it

    def used_as(self, settings: schema.Settings, source: str | Path = "this purifier") -> "DramPurifier":
        """As the base's. Raises UserError also where the section `dram` says of the threshold otherwise than it was
        calibrated with.
        """
        require_as_saved(self.kind, self.repair, settings, source)
        is_own = settings.purifier.kind == self.kind
        return self._used(settings.purify, getattr(settings, self.kind) if is_own else self.repair)

    @classmethod
    def shared_network(cls, settings: schema.Settings) -> Mapping[str, object]:
        """What its training and its threshold depend on, however an image is repaired."""
        return {"kind": cls.kind, **decisive_fields(getattr(settings, cls.kind), "pretrain")}

    @classmethod
    def use_facts(cls, settings: schema.Settings) -> dict[str, object]:
        """The settings of its section that say how an image is repaired."""
        return {cls.kind: use_entries(getattr(settings, cls.kind))}

    def with_options(self, options: PurifySettings, source: str | Path = "this purifier") -> "DramPurifier":
        """The same network and threshold. Raises UserError for options that it has not."""
        return self._used(options, self.repair)

    def _used(self, options: PurifySettings, repair: DramSettings) -> "DramPurifier":
        other = DramPurifier(self.model, options, repair).train(self.training)
        other.threshold.copy_(self.threshold)
        other.clean_losses = self.clean_losses
        return other

    # on disk

    def config(self) -> dict[str, Any]:
        """The network's settings, and below `purify.repair` how it repairs; a checkpoint holds the same two."""
        return {"model": asdict(self.network), "purify": {**asdict(self.settings), "repair": asdict(self.repair)}}

    def weights(self) -> Mapping[str, Tensor]:
        """The network's, under its own names, the threshold, and what images are compared with, if there is such."""
        compared = {CLEAN_LOSSES: self.clean_losses} if len(self.clean_losses) else {}
        return {**self.model.state_dict(), THRESHOLD: self.threshold, **compared}

    def identity_facts(self) -> object:
        """Its kind, the network's settings, and how it repairs."""
        repair = decisive_fields(self.repair, "records")  # without the defaults of what was added later
        return {"kind": self.kind, "model": asdict(self.model.config), "dram": repair}

    @classmethod
    def from_config(cls, config: Mapping[str, object], tensors: Mapping[str, Tensor], source: Source = UNNAMED) -> Self:
        """As `Purifier.from_config`; tensors without a threshold are those of a network that was not calibrated."""
        network = section_of(ModelSettings, config.get("model"), source.config)
        check_model(network, source.config)
        tensors = dict(tensors)
        threshold, clean_losses = tensors.pop(THRESHOLD, None), tensors.pop(CLEAN_LOSSES, None)
        model = build_with_weights(partial(MaskedAutoencoder, network), tensors, source.weights)
        purify = mapping_of(config.get("purify"), "purify", source.config)
        repair = section_of(DramSettings, purify.pop("repair", None), source.config)
        options = section_of(PurifySettings, purify, source.config)
        purifier = cls(model, options, repair)
        if threshold is not None:
            if threshold.shape != () or not threshold.is_floating_point():
                fail(f"{source.weights}: {THRESHOLD} is {tuple(threshold.shape)}; expected one floating-point number")
            purifier.threshold.copy_(threshold)
        if clean_losses is not None:
            if clean_losses.ndim != 1 or not clean_losses.is_floating_point():
                fail(f"{source.weights}: {CLEAN_LOSSES} is {tuple(clean_losses.shape)}; expected one row of "
                     "floating-point numbers")  # fmt: skip
            purifier.clean_losses = clean_losses
        if repair.detection == "ks" and not purifier.threshold.isnan() and not len(purifier.clean_losses):
            fail(f"{source.weights}: lacks {CLEAN_LOSSES}, which dram.detection=ks compares an image with")
        return purifier

    @classmethod
    def from_settings(cls, settings: schema.Settings) -> Self:
        """With random weights from torch's generator."""
        return cls(MaskedAutoencoder(settings.model), settings.purify, getattr(settings, cls.kind))


def kolmogorov_smirnov(losses: np.ndarray, clean: np.ndarray) -> float:
    """How far apart the distributions of an image's losses and of clean images' are at most, in [0, 1]."""
    from scipy.stats import ks_2samp  # takes a second to import, which no other purifier needs

    # Of the p-value, a falling function of it, nothing is asked; its exact form would take a while.
    return float(ks_2samp(losses.ravel(), clean.ravel(), method="asymp").statistic)
