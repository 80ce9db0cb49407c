"""What it is counted to take to ask a defense, against sums of what its parts take."""

from collections.abc import Sequence

import pytest
import torch

from maep.benchmarks.compute_rates import flops_of
from maep.config.load import load_settings
from maep.launch.estimate import defense_count
from maep.launch.estimate.defense_count import DefenseCount
from maep.purifiers.base import TrainedPurifier
from maep.purifiers.registry import purifier_class

SMALL = ["data.image_size=16", "model.image_size=16", "classifier.arch=cifar_resnet8", "evaluation.batch_size=20"]

LARGER = ["data.image_size=32", "model.image_size=32"]  # the least that an energy takes


def counted(name: str, words: Sequence[str] = ()) -> DefenseCount:
    """A configuration's defense of images of 16 pixels, with a small classifier."""
    return DefenseCount(load_settings(name, [*SMALL, *words]))


def asked_once(defense: DefenseCount) -> float:
    """Operations of one image through a denoiser, asked once."""
    kind = purifier_class(defense.settings.purifier.kind)
    assert issubclass(kind, TrainedPurifier)
    model = kind.from_settings(defense.settings).model
    return flops_of(lambda images: model(images, torch.full((1,), 0.1)), torch.rand(1, 3, 16, 16))  # type: ignore[arg-type]


def test_a_diffusion_asks_its_network_at_every_step() -> None:
    """Seven steps, seven times; BPDA's gradient is the classifier's alone, half of it forward."""
    defense = counted("diffpure/digits", ["diffpure.steps=7"])
    assert defense.purify.flops == pytest.approx(7 * asked_once(defense))
    bpda, classified = defense.asked("bpda"), defense.undefended.flops
    assert bpda.answer.flops == pytest.approx(defense.purify.flops + classified)
    assert bpda.gradient.flops - bpda.answer.flops == pytest.approx(classified, rel=0.02)


def test_exact_gradients_compute_again_what_memory_has_no_room_for() -> None:
    """Of an iterative purifier with room for all steps, a backward pass to the image costs what a forward one does;
    without any, each step goes forward once more.
    """
    words = ["diffpure.steps=7"]
    roomy, bare = (counted("diffpure/digits", [*words, f"purify.gradient_memory={room}"]) for room in (10**10, 0))
    purified = roomy.purify.flops
    extra = [each.asked("adaptive").gradient.flops - each.asked("adaptive").answer.flops for each in (roomy, bare)]
    assert extra[0] == pytest.approx(purified + roomy.undefended.flops, rel=0.03)
    assert extra[1] - extra[0] == pytest.approx(purified, rel=0.01)


def test_a_batch_shares_the_memory() -> None:
    """What has room alone, has none for a thousand images together: their steps are computed again."""
    words = ["diffpure.steps=7", "purify.gradient_memory=50000000"]
    few, many = (counted("diffpure/digits", [*words, f"evaluation.batch_size={size}"]) for size in (2, 1000))
    assert many.asked("adaptive").gradient.flops > few.asked("adaptive").gradient.flops + 0.9 * few.purify.flops


def test_an_average_is_of_all_draws() -> None:
    """Eight draws cost eight answers; each is computed again for its gradient."""
    defense = counted("diffpure/digits", ["diffpure.steps=3", "evaluation.draws=8", "purify.gradient_memory=0"])
    one, eight = defense.asked("adaptive"), defense.asked("adaptive-eot")
    assert eight.answer.flops == pytest.approx(8 * one.answer.flops)
    assert eight.gradient.flops == pytest.approx(8 * (one.gradient.flops + one.answer.flops), rel=0.02)


@pytest.mark.parametrize("kind", ["gdmp", "scoreopt", "ebm"])
def test_many_steps_are_on_the_line_of_few(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purifier of many steps is said to take what it does when all of them are taken."""
    words = [f"{kind}.steps=9", *{"gdmp": ["gdmp.rounds=2"], "ebm": LARGER}.get(kind, [])]
    whole = counted(f"{kind}/digits", words)
    monkeypatch.setattr(defense_count, "SHORT", (2, 4))
    short = counted(f"{kind}/digits", words)
    assert short.purify.flops == pytest.approx(whole.purify.flops)
    assert short.purify.launches == pytest.approx(whole.purify.launches)
    exact = whole.asked("adaptive").gradient
    assert short.asked("adaptive").gradient.flops == pytest.approx(exact.flops, rel=0.02)


def test_tiles_that_do_not_fit_are_computed_again() -> None:
    """MAEP's: a batch of 20 images through 20 tiles at a time, and through 10."""
    whole, parts = (counted("digits", [f"purify.batch_tiles={tiles}"]).asked("adaptive").gradient for tiles in (20, 10))
    assert parts.flops == pytest.approx(whole.flops + counted("digits").purify.flops, rel=0.02)


def test_what_a_purifier_learns_first_is_at_hand() -> None:
    """The clusters of prompts, and the threshold of a detector, are of a few images; what is purified costs as much."""
    defense = counted("frequency_prompts/digits")
    assert defense.purify.flops == pytest.approx(defense.undefended.flops, rel=0.01)  # whose features tell the cluster
    detecting = counted("dram/digits", ["dram.false_alarms=0.1", "dram.steps=2", "dram.detection_masks=3"])
    repairing = counted("dram/digits", ["dram.false_alarms=1", "dram.steps=2"])
    assert detecting.purify.flops > 1.2 * repairing.purify.flops
