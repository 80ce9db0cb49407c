"""How many images and classes a configuration has, where its shards may not be built yet."""

from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.config.training_settings import TrainSettings
from maep.data.images.build import clean_shards
from maep.data.shards import ShardSet
from maep.runtime.errors import fail
from maep.training.schedule import held_out_images, total_steps

# Of the data sets that come in one size; of others the shards, or data.train_limit, must tell.
IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "digits": 1_438}
TEST_IMAGES = {"imagenet": 50_000, "cifar10": 10_000, "cifar100": 10_000, "digits": 359}
CLASSES = {"imagenet": 1000, "cifar100": 100}
USUAL_CLASSES = 10  # of any other: the last layer is next to nothing of a network, and attacks take nine targets


def training_images(settings: Settings) -> int:
    """Training images: those of the shards where they are built, else the data set's known number."""
    if (shards := _built(settings, "train")) is not None:
        return len(shards)
    sizes = [size for size in (settings.data.train_limit, IMAGES.get(settings.data.name)) if size]
    if sizes:
        return min(sizes)
    if settings.pretrain.steps:
        return settings.pretrain.batch_size
    fail(f"data.name={settings.data.name}: its number of images is not known; set data.train_limit or pretrain.steps")


def training_steps(settings: Settings, train: TrainSettings) -> int:
    """Steps of a training; raises UserError as `training_images`."""
    held_out = held_out_images(train, settings.robust)
    return total_steps(train, max(1, training_images(source_settings(settings, train)) - held_out))


def test_images(settings: Settings) -> int:
    """Test images, as `training_images`; where nothing tells, as many as the evaluation asks for."""
    shards = _built(settings, "test")
    sizes = [settings.data.test_limit, TEST_IMAGES.get(settings.data.name)]
    return len(shards) if shards is not None else min([size for size in sizes if size] or [settings.evaluation.images])


def class_count(settings: Settings) -> int:
    """Classes of the images, as `training_images`."""
    shards = _built(settings, "train")
    return CLASSES.get(settings.data.name, USUAL_CLASSES) if shards is None else len(shards.classes)


def _built(settings: Settings, split: str) -> ShardSet | None:
    """The shards of a split, where they are built."""
    return clean_shards(settings).get(split) if settings.data.root or settings.data.shards else None
