"""What a purifier is: a module from images to images, and what a kind of it says about itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from maep.config import schema
from maep.config.consistency import check_model, check_objective
from maep.config.evaluation_settings import PurifySettings
from maep.models.defended import DefendedClassifier
from maep.purifiers.parts import Part, Read, block_side, by_blocks
from maep.purifiers.sections import network_entries
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng
from maep.storage.documents import read_fields

S = TypeVar("S")


class Source(NamedTuple):
    """The files that a purifier's config and weights were read from, for messages."""

    config: str = "config"
    weights: str = "weights"


UNNAMED = Source()
# Copies of an image in fp32 that simple kinds hold: it, what is drawn or looked up, and results on the way.
IMAGE_COPIES = 6


@dataclass(frozen=True)
class TileLayout:
    """A way to lay tiles over an image. options: of a purifier that lays them so; in_use: whether this one does."""

    name: str
    options: PurifySettings
    in_use: bool


class Purifier(nn.Module):
    """Removes adversarial perturbations from images: base of every kind in `maep.purifiers.registry`.

    A kind gives `purify`, `config`, `from_config` and `from_settings` (`Filter` has the last three for kinds without
    weights), and says of itself
    kind: its name in the registry, in `purifier.kind` and in what is saved.
    Settings: the dataclass of its section of the settings, which is named like the kind; None: it has none of its own.
    stages: the stages of the pipeline that must have run before it is evaluated.
    options: settings of the section `purify` that it heeds; another is refused where it is not as by default.
    network_name: the section that decides its network, where that is not its own.
    needs_classifier: whether purifying asks the classifier that it stands before; then `attach` hands that over.
    is_differentiable: whether autograd sees through `purify`.
    is_iterative: whether `purify` is a loop: an optimisation, or one network asked again and again.
    has_path: whether `path` shows what that loop goes through.
    has_auxiliary_loss: whether it descends an `auxiliary_loss` of the image.
    """

    kind: ClassVar[str]
    Settings: ClassVar[type[Any] | None] = None
    stages: ClassVar[tuple[str, ...]] = ("shards", "classifier")
    options: ClassVar[tuple[str, ...]] = ("batch_tiles",)  # a bound of the memory, which costs nothing to keep
    network_name: ClassVar[str] = ""
    needs_classifier: ClassVar[bool] = False
    is_differentiable: bool = True
    is_iterative: bool = False
    has_path: ClassVar[bool] = False
    has_auxiliary_loss: ClassVar[bool] = False

    @classmethod
    def is_trained(cls) -> bool:
        """Whether the pipeline trains it; if not, the settings are all there is to it."""
        return "pretrain" in cls.stages

    @classmethod
    def check(cls, section: Any) -> None:
        """Raise UserError where settings of its section (an instance of `Settings`) do not fit together."""

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """Raise UserError where settings of other sections do not fit a run of this kind, or its own each other."""
        if cls.Settings is not None:
            cls.check(getattr(settings, cls.kind))
        if cls.network_name == "model":
            check_model(settings.model)
        cls.check_options(settings.purify)

    @classmethod
    def check_options(cls, options: PurifySettings) -> None:
        """Raise UserError for an option that would do nothing."""
        for item in fields(options):
            value = getattr(options, item.name)
            if item.name not in cls.options and value != getattr(PurifySettings(), item.name):
                heeded = " and ".join(f"purify.{name}" for name in cls.options)
                fail(f"purify.{item.name}={value}: {cls.kind} has no such option; it has {heeded}")

    @property
    def is_random(self) -> bool:
        """Whether `purify` draws random numbers: two calls differ, and `reseed` decides what they give."""
        return False

    @property
    def detects(self) -> bool:
        """Whether it judges which images are attacked, and leaves the others as they are."""
        return False

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the CPU if it has none."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    # purifying

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1], any size. Returns the same shape and range.

        Raises ValueError for another shape.
        """
        raise NotImplementedError

    def path(self, images: Tensor) -> Sequence[Tensor]:
        """Images that `purify` goes through, each [N, 3, H, W] in [0, 1], and last what it returns; by default that
        alone. For attackers who follow the classifier at all of them.
        """
        return [self.purify(images)]

    def auxiliary_loss(self, images: Tensor) -> Tensor:
        """What purifying makes small, of each image, [N]; differentiable. For a kind that has such a loss.

        images: [N, 3, H, W] in [0, 1].
        """
        raise NotImplementedError

    def detected(self, images: Tensor) -> Tensor:
        """Which images count as attacked, bool [N]; for a kind that `detects`. images: [N, 3, H, W] in [0, 1]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """`purify`, so that a purifier is a module like any other."""
        return self.purify(images)

    def reseed(self, *key: int) -> None:
        """Start the random numbers at `key`, if the purifier draws any."""

    def attach(self, classifier: nn.Module) -> None:
        """Take the classifier that it stands before, images [N, 3, H, W] in [0, 1] → logits, if it asks one."""

    def defended(self, classifier: nn.Module) -> DefendedClassifier | None:
        """The defense before a classifier, for a kind that is more than a map of images; None: f∘P is all there is."""
        return None

    def images_at_once(self, height: int, width: int) -> int:
        """How many images of a size are best given to `purify` together, at least 1."""
        return 1

    @property
    def reach(self) -> int | None:
        """Pixels around a pixel on which what becomes of it depends; None: possibly on the whole image."""
        return None

    def part_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what `purify_parts` has in memory at a time, of an image of that size."""
        if self.reach is None:
            return height, width
        return min(height, block_side(self.reach)), min(width, block_side(self.reach))

    def bytes_taken(self, height: int, width: int) -> int:
        """What `purify` takes at its peak, about, for an image or a part of that size, beside batches of tiles in a
        network, which `purify.batch_tiles` bounds. As measured on a CPU, rounded up.
        """
        return IMAGE_COPIES * 3 * 4 * height * width

    def purify_parts(self, read: Read, height: int, width: int) -> Iterator[Part]:
        """One image by parts, which cover it: together what `purify` gives, on CPUs to the bit.

        One part where a kind must see the whole. Take the parts in order, without autograd.
        """
        if self.reach is None:
            yield Part(0, 0, self.purify(read(slice(0, height), slice(0, width))))
        else:
            yield from by_blocks(self.purify, read, (height, width), self.reach)

    def seam_error(self, images: Tensor, purified: Tensor) -> tuple[Tensor, Tensor] | None:
        """How visible the borders of tiles are in what was purified: see `maep.purifiers.tiling.seam_error`.

        images, purified: [N, 3, H, W], before and after. None where there is no border.
        """
        return None

    def tile_layouts(self) -> Sequence[TileLayout]:
        """The ways to lay tiles that a report compares; () where the purifier lays none."""
        return ()

    # variants of it

    def with_options(self, options: PurifySettings, source: str | Path = "this purifier") -> "Purifier":
        """The same purifier used otherwise; itself, for a kind that has no such options.

        source: where it was read from, for the message. Raises UserError for options that do not fit it.
        """
        self.check_options(options)
        return self

    def used_as(self, settings: schema.Settings, source: str | Path = "this purifier") -> "Purifier":
        """The same weights used as settings of a run say, in the section `purify` and in the kind's own.

        source: where they were read from, for the message. Raises UserError where the settings do not fit them.
        """
        return self.with_options(settings.purify, source)

    @classmethod
    def use_facts(cls, settings: schema.Settings) -> dict[str, object]:
        """JSON-able facts of how `used_as` uses it that are neither in its weights nor in `PurifySettings`."""
        return {}

    def with_adapter(self, directory: Path) -> "Purifier":
        """The purifier with an adapter in peft's format merged. Raises UserError for a kind that takes none."""
        fail(f"{directory}: is an adapter; a purifier of kind {self.kind} takes none")

    def shortened(self, share: float) -> "Purifier":
        """The same with that share of its steps, one at least, as an attacker may follow it; itself, if there are none
        to leave out.
        """
        return self

    def compiled(self) -> "Purifier":
        """A copy with the same weights whose networks are compiled, for attacks to follow; by default itself.

        What draws random numbers must not be compiled.
        """
        return self

    # on disk

    def config(self) -> dict[str, Any]:
        """Its JSON-able entries of config.json: all that `from_config` needs beside the weights."""
        raise NotImplementedError

    def weights(self) -> Mapping[str, Tensor]:
        """Named tensors for model.safetensors, as `from_config` takes them; {} where there are none."""
        return self.state_dict()

    def identity_facts(self) -> object:
        """The JSON-able facts, beside its tensors and `PurifySettings`, that its output depends on."""
        return {"kind": self.kind, **self.config()}

    @classmethod
    def from_config(cls, config: Mapping[str, object], tensors: Mapping[str, Tensor], source: Source = UNNAMED) -> Self:
        """The purifier that `config` and `weights` were taken of.

        Raises UserError, naming a file of `source`, for entries or tensors that do not fit.
        """
        raise NotImplementedError

    @classmethod
    def from_settings(cls, settings: schema.Settings) -> Self:
        """The purifier that the settings describe; where it has weights, as it is before any training."""
        raise NotImplementedError

    @classmethod
    def shared_network(cls, settings: schema.Settings) -> Mapping[str, object] | None:
        """All that the settings say of a network that is used in several ways, by this kind or by others, so that one
        training serves them all; None: it is used in one.
        """
        return None

    @classmethod
    def from_published(cls, path: Path) -> Self:
        """The purifier in a file as its authors publish them. Raises UserError where that is no weights of the kind."""
        fail(f"{path}: there are no published weights of a purifier of kind {cls.kind} that are read")


class TrainedPurifier(Purifier):
    """A purifier around one network that the pipeline trains, from images to images.

    model: the network, called as model(images [N, 3, H, W] in [0, 1], visible or None), with `latent=True` where it has
    latents (`maep.objectives`), and with `index` where patches are hidden (`maep.training.module`). network: the
    section of the settings that decides it. settings: how it is used. A kind with such a network gives `purify`,
    `from_config` and `from_settings`.
    network_kind: what the network is; objectives that train one of another kind are refused (`OBJECTIVES`).
    """

    network_kind: ClassVar[str] = "images"

    def __init__(self, model: Any, network: Any, settings: PurifySettings) -> None:
        super().__init__()
        self.model, self.network, self.settings = model, network, settings

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As `Purifier.check_settings`: the objective must train such a network."""
        super().check_settings(settings)
        check_objective(settings, cls.kind, cls.network_kind)

    @classmethod
    def network_settings(cls, settings: schema.Settings) -> Any:
        """The section of the settings that decides the network."""
        return getattr(settings, cls.network_name or cls.kind)

    @classmethod
    def untrained(cls, settings: schema.Settings) -> Self:
        """As training starts from it: drawn from torch's generator, or from weights that the settings name."""
        return cls.from_settings(settings)

    def prepare(self, clean: Callable[[int], Tensor], classifiers: Sequence[nn.Module]) -> None:
        """Learn what it has to know of clean images before its network is trained, and after; by default nothing.

        clean: as `calibrated` takes it. classifiers: frozen, of an objective that classifies; else none. Every process
        calls it, also of a training that goes on: the same images must give the same bits.
        """

    def calibrated(self, clean: Callable[[int], Tensor]) -> "TrainedPurifier":
        """Itself, once trained, with what it has to measure of clean images before use; by default nothing.

        clean: number → so many training images, fewer if there are no more, [N, 3, H, W] in [0, 1].
        """
        return self

    def config(self) -> dict[str, Any]:
        """The network's settings and the section `purify`; a checkpoint holds the same two."""
        return {"model": asdict(self.network), "purify": asdict(self.settings)}

    def weights(self) -> Mapping[str, Tensor]:
        """The network's, under its own names."""
        return self.model.state_dict()

    def identity_facts(self) -> object:
        """Its kind and the network's settings."""
        return {"kind": self.kind, "model": asdict(self.network)}


class Filter(Purifier):
    """A purifier without weights: its section of the settings is all there is to it."""

    Settings: ClassVar[type[Any]]

    def __init__(self, settings: Any) -> None:
        """settings: an instance of `Settings`. Raises UserError where it does not fit together."""
        super().__init__()
        self.check(settings)
        self.settings = settings

    def config(self) -> dict[str, Any]:
        """The section, under its name."""
        return {self.kind: asdict(self.settings)}

    def used_as(self, settings: schema.Settings, source: str | Path = "this purifier") -> Purifier:
        """Itself. Raises UserError where the settings of its kind say otherwise than it was saved with."""
        require_as_saved(self.kind, self.settings, settings, source)
        return super().used_as(settings, source)

    @classmethod
    def from_config(cls, config: Mapping[str, object], tensors: Mapping[str, Tensor], source: Source = UNNAMED) -> Self:
        """As `Purifier.from_config`; there must be no tensors."""
        if tensors:
            fail(f"{source.weights}: a purifier of kind {cls.kind} has no weights")
        return cls(section_of(cls.Settings, config.get(cls.kind), source.config))

    @classmethod
    def from_settings(cls, settings: schema.Settings) -> Self:
        """As `Purifier.from_settings`."""
        return cls(getattr(settings, cls.kind))


class RandomFilter(Filter):
    """A filter that draws: `rng` starts at the key of `reseed`, and images draw from it one after another.

    So images that are purified one by one after a `reseed` get the same draws as in one batch.
    """

    def __init__(self, settings: Any) -> None:
        """As `Filter`; the draws start at key 0."""
        super().__init__(settings)
        self.reseed(0)

    @property
    def is_random(self) -> bool:
        """As `Purifier.is_random`; here always."""
        return True

    def reseed(self, *key: int) -> None:
        """Start the random numbers at `key`; what follows depends on it and on the images since alone."""
        self.rng = keyed_rng("purifier", *key)


def mapping_of(value: object, name: str, source: str) -> dict[str, Any]:
    """A copy of the JSON object that is `name` in a purifier's configuration; {} where it is absent.

    Raises UserError, naming `source`, for anything else.
    """
    if not isinstance(value, Mapping | None):
        fail(f"{source}: {name}: expected a JSON object")
    return dict(value or {})


def section_of(cls: type[S], values: object, source: str) -> S:
    """A section of the settings from JSON, checked; settings added since then take their defaults.

    Raises UserError, naming `source`, where it is no object, or has unknown settings or wrong values.
    """
    if not isinstance(values, Mapping):
        fail(f"{source}: lacks the settings of the purifier ({cls.__name__})")
    names = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    unknown = [name for name in values if name not in names]
    if unknown:
        fail(f"{source}: unknown settings {', '.join(unknown[:3])}; was it written by a newer version?")
    return read_fields(cls, values, source)


def require_as_saved(kind: str, saved: Any, settings: schema.Settings, source: str | Path) -> None:
    """Raise UserError where a kind's section of the settings says otherwise than that which a purifier was saved with.

    For kinds whose section is part of the purifier: what was asked for would not be what is judged. Settings of how a
    trained one is used are not part of it, and settings of another kind say nothing of it. saved: its section; source:
    where it was read from.
    """
    if settings.purifier.kind != kind:
        return
    for name, own in network_entries(saved).items():
        asked = getattr(getattr(settings, kind), name)
        if asked != own:
            fail(f"{kind}.{name}={asked}: {source} was saved with {own}, which is part of it; set it to that, or "
                 "make one of your own")  # fmt: skip


def is_recorded() -> bool:
    """Whether torch.jit.trace or torch.export follows: a number of images counted now would hold for ever."""
    return bool(torch.jit.is_tracing() or torch.compiler.is_exporting())


def require_eager(purifier: Purifier) -> None:
    """Raise ValueError where torch.jit.trace or torch.export would take one answer of a purifier for all of them."""
    if is_recorded():
        raise ValueError(f"a purifier of kind {purifier.kind} with these settings cannot be exported: it draws random "
                         "numbers, or computes outside of torch")  # fmt: skip


@contextmanager
def derivable() -> Iterator[None]:
    """Within it autograd can be switched on, also where a caller is in torch.inference_mode, whose tensors it refuses.

    For kinds that purify by derivatives; elsewhere everything is as it was.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def in_own_type(images: Tensor) -> AbstractContextManager[object]:
    """Within it autocast is off: of products that are the purifier itself, and no network's, images keep their bits."""
    device = images.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def require_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is [N, 3, H, W]: grey images are not guessed at."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images {tuple(images.shape)}: expected [N, 3, H, W]")
