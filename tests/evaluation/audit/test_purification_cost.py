"""Memory and seams in a report are those of the purifier in use, whatever the number of images."""

from pathlib import Path

import pytest
import torch

from maep.config.evaluation_settings import PurifySettings
from maep.config.training_settings import ModelSettings
from maep.data.shards import ShardSet
from maep.evaluation.audit.purification_cost import CostMeasurement, PeakMemory, PurificationCost, read_cost
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier
from maep.purifiers.mae import tile_options
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from tests.evaluation.small_evaluation import IMAGES, directory_of, settings_for
from tests.small import Blur, digits, train_small, write_shards


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", IMAGES)


def network(size: int) -> MaskedAutoencoder:
    """A purifier's network for images of a size, with random weights."""
    encoder = {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 1}
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MaskedAutoencoder(ModelSettings(image_size=size, patch_size=4, **encoder, **decoder))


def measured(directory: Path, test: ShardSet, purifier: torch.nn.Module, **how: int) -> PurificationCost:
    settings = settings_for(directory, **how)
    evaluation = Evaluation(settings, Defense(purifier, train_small(), "it", "small"), test, directory_of(settings))
    measurement = CostMeasurement(evaluation)
    assert not measurement.is_done()
    measurement.run()
    assert measurement.is_done()
    return read_cost("it", directory_of(settings))


def test_peak_memory() -> None:
    """Tensors count while they live, once, however many views of them there are; what was there before does not."""
    before = torch.zeros(1000)
    with PeakMemory() as memory:
        one = before + 1
        one.view(10, 100).add_(1)
        two = one + 1
        del one
        three = two + 1
        del two, three
    assert memory.peak == 2 * 4000


def test_seams_of_every_grid(tmp_path: Path, test_set: ShardSet) -> None:
    """Each way to lay tiles has the seam error of a purifier that uses it; the one in use is marked."""
    used = PurifySettings(overlap=3)
    cost = measured(tmp_path, test_set, MAEPurifier(network(8), used), check_images=4)
    lines = {grid.grid: grid for grid in cost.grids}
    assert [name for name, line in lines.items() if line.used] == ["as used"]
    images = digits()[0][:4]
    for name, settings in tile_options(used, 8).items():
        purifier = MAEPurifier(network(8), settings).eval()
        with torch.no_grad():
            seams = purifier.seam_error(images, purifier(images))
        assert seams is not None
        assert lines[name].across == pytest.approx(float(seams[0].mean()), rel=1e-4)
        assert lines[name].inside == pytest.approx(float(seams[1].mean()), rel=1e-4)


def test_memory_depends_on_the_batch_alone(tmp_path: Path, test_set: ShardSet) -> None:
    """Twice the images take the same memory, a larger batch more; one tile, or a purifier not ours, has no seams."""
    purifier = MAEPurifier(network(16), PurifySettings())
    few, many, wide = (
        measured(tmp_path / name, test_set, purifier, images=images, batch_size=batch)
        for name, images, batch in (("few", 10, 5), ("many", 40, 5), ("wide", 40, 10))
    )
    assert few.peak_bytes == many.peak_bytes
    assert wide.peak_bytes > many.peak_bytes
    assert few.grids == ()
    assert measured(tmp_path / "blur", test_set, Blur()).grids == ()


def test_of_another_purifier(tmp_path: Path, test_set: ShardSet) -> None:
    """What was measured of another purifier is not shown as this one's."""
    measured(tmp_path, test_set, Blur())
    assert read_json(directory_of(settings_for(tmp_path)) / "purifying.json")["purifier"] == "it"
    with pytest.raises(UserError, match="purifying.json: memory and tiles have not been measured"):
        read_cost("another", directory_of(settings_for(tmp_path)))
