"""Memory and seams in a report are those of the purifier in use, whatever the number of images."""

from pathlib import Path

import pytest
import torch

from maep.config.schema import ModelSettings, PurifySettings
from maep.data.shards import ShardSet
from maep.evaluation.audit.purification_cost import PeakMemory, Purifying, grids
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import read_purifying
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from tests.evaluation.subject import IMAGES, place_of, settings_for
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


def measured(directory: Path, test: ShardSet, purifier: torch.nn.Module, **how: int) -> dict[str, object]:
    settings = settings_for(directory, **how)
    evaluation = Evaluation(settings, purifier, train_small(), "small", "it", test, place_of(settings))
    one = Purifying(evaluation)
    assert not one.is_done()
    one.run()
    assert one.is_done()
    return read_purifying({"purifier": "it"}, place_of(settings))


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
    found = measured(tmp_path, test_set, MAEPurifier(network(8), used), check_images=4)
    lines = {grid["grid"]: grid for grid in found["grids"]}  # type: ignore[union-attr]
    assert [name for name, line in lines.items() if line["used"]] == ["as used"]
    images = digits()[0][:4]
    for name, settings in grids(used, 8).items():
        purifier = MAEPurifier(network(8), settings).eval()
        with torch.no_grad():
            seams = purifier.seam_error(images, purifier(images))
        assert seams is not None
        assert lines[name]["across"] == pytest.approx(float(seams[0].mean()), rel=1e-4)
        assert lines[name]["inside"] == pytest.approx(float(seams[1].mean()), rel=1e-4)


def test_memory_depends_on_the_batch_alone(tmp_path: Path, test_set: ShardSet) -> None:
    """Twice the images take the same memory, a larger batch more; one tile, or a purifier not ours, has no seams."""
    purifier = MAEPurifier(network(16), PurifySettings())
    few, many, wide = (
        measured(tmp_path / name, test_set, purifier, images=images, batch_size=batch)
        for name, images, batch in (("few", 10, 5), ("many", 40, 5), ("wide", 40, 10))
    )
    assert few["peak_bytes"] == many["peak_bytes"]
    assert wide["peak_bytes"] > many["peak_bytes"]  # type: ignore[operator]
    assert few["grids"] == []
    assert measured(tmp_path / "blur", test_set, Blur())["grids"] == []


def test_of_another_purifier(tmp_path: Path, test_set: ShardSet) -> None:
    """What was measured of another purifier is not shown as this one's."""
    measured(tmp_path, test_set, Blur())
    assert read_json(place_of(settings_for(tmp_path)) / "purifying.json")["purifier"] == "it"
    with pytest.raises(UserError, match="purifying.json: memory and tiles have not been measured"):
        read_purifying({"purifier": "another"}, place_of(settings_for(tmp_path)))
