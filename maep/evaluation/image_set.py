"""Images to evaluate on, from whatever holds them: arrays, lists, tensors, a Dataset or DataLoader, a shard set."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from maep.attacks.attack_state import tensors_sha256
from maep.data.shard_manifest import AdversarialManifest
from maep.data.shards import ShardSet
from maep.runtime.console import say
from maep.runtime.errors import fail

# What is collected from a Dataset or DataLoader lies in memory as fp32: 6,600 images of 224 x 224 at most. More belongs
# into a shard set, which is read image by image.
COLLECTED_BYTES = 4 * 10**9
CHANNELS = 3
NAMES_OF_IMAGES = ("image", "images", "img", "pixel_values", "x")
NAMES_OF_LABELS = ("label", "labels", "target", "targets", "y")
EXPECTED = (
    "expected a shard set, (images, labels) of arrays, lists or tensors, a torch Dataset of (image, label), "
    "or a DataLoader"
)


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, in the place of a shard set.

    images: [N, 3, H, W] in [0, 1], float32; labels: int64 [N]; classes: names.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]

    @property
    def identity(self) -> str:
        """64 hex digits that name the images and their labels."""
        return tensors_sha256({"images": self.images, "labels": self.labels})

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images and labels of some indices, in their order."""
        index = torch.as_tensor(list(indices))
        return self.images[index], self.labels[index]


def read_images(data: object, most: int) -> ShardSet | ImageSet:
    """The data as something that gives batches; the classes of what lies in memory are still to be named.

    most: so many are collected of a Dataset or a DataLoader, the first ones. Raises UserError for what cannot be
    evaluated on: a wrong shape, type or range, labels that are no class numbers, other counts of images and labels.
    """
    if isinstance(data, (str, Path)):
        data = ShardSet(data)
    if isinstance(data, ShardSet):
        if isinstance(data.manifest, AdversarialManifest):
            fail(f"{data.path}: holds images that were attacked already; give the clean set that it was made from")
        problems = data.check()
        if problems:
            fail(problems[0])
        check_labels(data.labels(range(len(data))), len(data.classes), str(data.path))
        return data
    if isinstance(data, ImageSet):
        return data
    images, labels = _pair(data, most)
    images, labels = pixels(images), class_numbers(labels)
    if len(images) != len(labels):
        fail(f"data: {len(images)} images {tuple(images.shape)} and {len(labels)} labels; expected one label an image")
    return ImageSet(images, labels, [])


def check_labels(labels: Sequence[int], count: int, where: str) -> None:
    """Raise UserError naming the first label that is none of `count` classes. where: of the data, for the message."""
    for index, label in enumerate(labels):
        if not 0 <= label < count:
            mend = "; do they begin at 1?" if min(labels) == 1 and max(labels) == count else ""
            fail(f"{where}: sample {index} has label {label}; expected 0 to {count - 1}{mend}")


def _pair(data: object, most: int) -> tuple[Any, Any]:
    """Images and labels, collected where they come one by one or in batches."""
    if isinstance(data, DataLoader):
        if isinstance(data.sampler, RandomSampler) or _shuffles(data.batch_sampler):
            say("data: the DataLoader shuffles: each call sees other images, so nothing of another call is used again")
        return _collected(_single(data), most)
    if isinstance(data, Mapping):
        return _of_mapping(data, "data")
    if isinstance(data, list | tuple) and len(data) == 2 and not all(map(_is_sample, data)):
        return data[0], data[1]
    if isinstance(data, Dataset | list | tuple) or hasattr(data, "__getitem__"):
        if isinstance(data, Tensor | np.ndarray):
            fail(f"data: is images {tuple(data.shape)} without labels; {EXPECTED}")
        return _collected(_items(data), most)
    if isinstance(data, Iterable):
        return _collected(_single(data), most)
    fail(f"data: is {type(data).__name__}; {EXPECTED}")


def _shuffles(sampler: object) -> bool:
    return isinstance(sampler, BatchSampler) and isinstance(sampler.sampler, RandomSampler)


def _is_sample(value: object) -> bool:
    """Whether it is one (image, label)."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return isinstance(value[0], Image.Image) or getattr(value[0], "ndim", 0) == 3


def _items(data: Any) -> Iterator[tuple[Any, Any]]:
    """The samples of a Dataset or a list of samples."""
    if not hasattr(data, "__len__"):  # an IterableDataset
        yield from (_sample(each, f"data: sample {index}") for index, each in enumerate(data))
        return
    for index in range(len(data)):
        yield _sample(data[index], f"data: sample {index}")


def _single(batches: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The samples of batches."""
    for number, batch in enumerate(batches):
        images, labels = _sample(batch, f"data: batch {number}")
        if not hasattr(images, "__len__") or not hasattr(labels, "__len__") or len(images) != len(labels):
            fail(f"data: batch {number}: expected as many labels as images; {EXPECTED}")
        yield from zip(images, labels, strict=True)


def _sample(value: object, where: str) -> tuple[Any, Any]:
    """(image, label), from a tuple or a dict; further items, such as an index, are left."""
    if isinstance(value, Mapping):
        return _of_mapping(value, where)
    if not isinstance(value, list | tuple) or len(value) < 2:
        fail(f"{where}: is {type(value).__name__}; expected (image, label)")
    return value[0], value[1]


def _of_mapping(value: Mapping[Any, Any], where: str) -> tuple[Any, Any]:
    images, labels = ([value[name] for name in names if name in value] for names in (NAMES_OF_IMAGES, NAMES_OF_LABELS))
    if len(images) != 1 or len(labels) != 1:
        names = ", ".join(map(str, value))
        fail(f"{where}: has {names or 'nothing'}; expected one of {', '.join(NAMES_OF_IMAGES)} and a label beside it")
    return images[0], labels[0]


def _collected(samples: Iterable[tuple[Any, Any]], most: int) -> tuple[Tensor, list[int]]:
    """The first `most` samples. Raises UserError for images of several sizes, and for more bytes than are collected."""
    images: list[Tensor] = []
    labels: list[int] = []
    for index, (image, label) in enumerate(itertools.islice(samples, most)):
        images.append(_image(image, index))
        labels.append(_class_number(label, index))
        size = images[-1].nelement() * 4
        if size * len(images) > COLLECTED_BYTES:
            limit = f"{COLLECTED_BYTES / 1e9:.0f} GB"
            fail(f"data: {len(images)} images are more than {limit}; write a shard set, or set evaluation.images lower")
        if images[-1].shape != images[0].shape:
            shapes = f"{tuple(images[-1].shape)}, the first one {tuple(images[0].shape)}"
            fail(f"data: image {index} is {shapes}; expected images of one size")
    if not images:
        fail("data: has no images")
    if len(images) == most:
        say(f"data: the first {most} images are taken (evaluation.images)")
    return torch.stack(images), labels


def _image(image: object, index: int) -> Tensor:
    if isinstance(image, Image.Image):
        image = np.array(image)
    tensor = _tensor(image, f"data: image {index}")
    if tensor.ndim != CHANNELS:
        fail(f"data: image {index} is {tuple(tensor.shape)}; expected [3, H, W] or [H, W, 3]")
    return tensor


def _tensor(values: object, where: str) -> Tensor:
    """Arrays, tensors and lists of them as one tensor on the CPU."""
    try:
        if isinstance(values, list | tuple) and any(isinstance(each, Tensor | Image.Image) for each in values):
            values = np.stack([np.asarray(each.cpu() if isinstance(each, Tensor) else each) for each in values])
        tensor = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        fail(f"{where}: {type(values).__name__} cannot be read as numbers: {error}")
    return tensor.cpu()


def pixels(values: object) -> Tensor:
    """Images as float32 [N, 3, H, W] in [0, 1]. Raises UserError with the likely mend for what is no such thing.

    values: [N, 3, H, W] or [N, H, W, 3]; uint8, or float in [0, 1].
    """
    images = _channels_first(_tensor(values, "data: images"))
    if images.dtype == torch.uint8:
        if int(images.max()) <= 1:
            fail("data: images are uint8 from 0 to 1, almost black; hand over float in [0, 1], or uint8 up to 255")
        return images.float() / 255
    numbers = images.float() if images.is_floating_point() else images.double()
    if not bool(numbers.isfinite().all()):
        index = int((~numbers.isfinite()).flatten(1).any(1).nonzero()[0])
        fail(f"data: image {index} has pixels that are not finite; expected float in [0, 1] or uint8")
    low, high = float(numbers.min()), float(numbers.max())
    if not images.is_floating_point() or low < 0 or high > 1:
        fail(
            f"data: images are {images.dtype} from {low:.4g} to {high:.4g}; "
            f"expected float in [0, 1] or uint8, not normalised{_mend(images, low, high)}"
        )
    return numbers.contiguous()


def _mend(images: Tensor, low: float, high: float) -> str:
    if images.is_floating_point() and low >= 0 and high <= 255:
        return "; divide them by 255"
    if not images.is_floating_point() and low >= 0 and high <= 255:
        return "; convert them to uint8"
    return "; undo the normalisation, and put it inside the model" if low < 0 else ""


def _channels_first(images: Tensor) -> Tensor:
    """[N, 3, H, W]. Raises UserError for another layout, and for one that could be either."""
    shape = tuple(images.shape)
    seen = f"data: images {shape}; expected [N, 3, H, W] or [N, H, W, 3]"
    if images.ndim != CHANNELS + 1:
        is_single = images.ndim == CHANNELS and CHANNELS in (shape[0], shape[-1])
        mend = "; of one image, add the first axis" if is_single else ""
        fail(seen + mend)
    if not images.nelement():
        fail(f"{seen}; there are no images in it")
    first, last = shape[1] == CHANNELS, shape[3] == CHANNELS
    if first and last:
        fail(f"{seen}, and these could be either; hand over [N, 3, H, W] with W other than 3")
    if not first and not last:
        grey, alpha = 1 in (shape[1], shape[3]), 4 in (shape[1], shape[3])
        mend = "repeat the grey channel three times" if grey else "leave the alpha channel out" if alpha else ""
        fail(f"{seen}{'; ' + mend if mend else ''}")
    return images if first else images.permute(0, 3, 1, 2)


def class_numbers(values: object) -> Tensor:
    """Labels as int64 [N]. Raises UserError for what is no list of class numbers."""
    labels = _tensor(values, "data: labels")
    shape = tuple(labels.shape)
    if labels.ndim == 2 and shape[1] > 1:
        fail(f"data: labels {shape} look one-hot; expected class numbers [N]: take their argmax(1)")
    if labels.ndim != 1:
        fail(f"data: labels {shape}; expected class numbers [N]")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        fail(f"data: labels are {labels.dtype}; expected class numbers, integers from 0")
    return labels.to(torch.int64)


def _class_number(label: object, index: int) -> int:
    """One label, also as a tensor or array of one number."""
    if isinstance(label, Tensor | np.ndarray | np.generic):
        array = np.asarray(label.cpu() if isinstance(label, Tensor) else label)
        if array.size == 1 and np.issubdtype(array.dtype, np.integer):
            return int(array.reshape(()))
        fail(f"data: label {index} is {array.dtype} {array.shape}; expected a class number, an integer from 0")
    if isinstance(label, bool) or not isinstance(label, int):
        fail(f"data: label {index} is {type(label).__name__}; expected a class number, an integer from 0")
    return label
