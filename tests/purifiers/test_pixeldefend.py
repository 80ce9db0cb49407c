"""PixelDefend: images become likelier within their distance, which is a setting of its use."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maep import load_purifier
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.models.pixel_cnn import log_likelihood
from maep.pipeline.execution import run_pipeline
from maep.purifiers import save_purifier
from maep.purifiers.pixeldefend import PixelDefendPurifier, PixelDefendSettings
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from maep.training.pretrain import pretrain
from tests.tiny import Problem

WORDS = ["purifier.kind=pixeldefend", "pretrain.mask_ratio=0", "objective.name=likelihood"]


def purifier(eps: float = 4 / 255, **options: int) -> PixelDefendPurifier:
    network = PixelDefendSettings(6, 1, 2, eps)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelDefendPurifier.build(network).requires_grad_(False)
    return PixelDefendPurifier(model, network, PurifySettings(**options)).eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_images_become_likelier_within_eps() -> None:
    """Of 8-bit levels each at most eps from where it was; the farther it may go, the likelier the image."""
    before = log_likelihood(purifier().model(pictures()), pictures()).sum()
    for eps in (4, 40):
        purified = purifier(eps / 255)(pictures())
        torch.testing.assert_close(purified * 255, (purified * 255).round())
        assert (purified - (pictures() * 255).round() / 255).abs().max() <= eps / 255 + 1e-6
        after = log_likelihood(purifier().model(purified), purified).sum()
        assert after > before
        before = after


def test_few_images_at_a_time_are_the_same() -> None:
    """`batch_tiles` bounds pixels; choices do not depend on it."""
    images = torch.rand(3, 3, 32, 33)
    assert torch.equal(purifier(batch_tiles=1)(images), purifier()(images))


def test_what_is_saved_is_used_otherwise_without_a_training(tmp_path: Path) -> None:
    """The distance is saved with the weights; settings of a run change it."""
    save_purifier(purifier(), tmp_path / "purifier")
    loaded = load_purifier(tmp_path)
    assert torch.equal(loaded(pictures()), purifier()(pictures()))
    other = loaded.used_as(load_settings(None, [*WORDS, "pixeldefend.eps=9/255"]))
    assert torch.equal(other(pictures()), purifier(9 / 255)(pictures()))


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """By name; nor are weights of elsewhere read."""
    with pytest.raises(UserError, match=r"objective\.name=maep: trains no network .*choose one of likelihood"):
        load_settings(None, ["purifier.kind=pixeldefend", "pretrain.mask_ratio=0"])
    with pytest.raises(UserError, match=r"pixeldefend\.eps=16"):
        load_settings(None, [*WORDS, "pixeldefend.eps=16"])
    with pytest.raises(UserError, match="there are no published weights of a purifier of kind pixeldefend"):
        PixelDefendPurifier.from_published(tmp_path / "pixelcnn.pth")


def test_it_is_trained_on_clean_images(problem: Problem, run_dir: Path) -> None:
    """No attack is asked for; the bits that an image takes become fewer."""
    words = [*WORDS, "pixeldefend.features=6", "pixeldefend.layers=1", "pixeldefend.components=2",
             "pretrain.steps=12", "pretrain.lr=0.01", "pretrain.log_every=1"]  # fmt: skip
    settings = load_settings("digits", problem.arguments(run_dir, *words)[1:])
    run_pipeline(settings, "pretrain", lambda _, given: pretrain(given))
    losses = [json.loads(line)["l_bits"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    assert "attack" not in read_json(run_dir / "stages/pretrain.json")["inputs"]
