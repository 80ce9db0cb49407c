"""The learning rate against its closed form, and how long a training is."""

from dataclasses import replace
from itertools import pairwise

import pytest

from maep.config.training_settings import RobustSettings, TrainSettings
from maep.runtime.errors import UserError
from maep.training.schedule import check_held_out, held_out_images, learning_rate, total_steps

SETTINGS = TrainSettings(lr=0.4, min_lr=0.1, warmup=0.2)


def test_the_learning_rate_rises_and_falls() -> None:
    """Over a fifth of the steps in equal parts to its height, then half a cosine: its middle is half way down."""
    rates = [learning_rate(step, 20, SETTINGS) for step in range(20)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[12] == pytest.approx(0.25)
    assert rates[4 + 4] == pytest.approx(0.1 + 0.15 * (1 + 2**-0.5))
    assert all(one > two for one, two in pairwise(rates[4:]))
    assert learning_rate(20, 20, SETTINGS) == pytest.approx(0.1)
    assert learning_rate(0, 20, replace(SETTINGS, warmup=0.0)) == 0.4


def test_an_epoch_is_whole_batches() -> None:
    """The last one of a training is completed; a number of steps that is set is taken."""
    settings = replace(SETTINGS, steps=None, epochs=3, batch_size=16)
    assert total_steps(settings, 80) == 15
    assert total_steps(settings, 81) == 16
    assert total_steps(replace(settings, steps=7), 80) == 7


def test_images_are_held_out_where_they_are_attacked() -> None:
    """By a training against the whole that is checked, and by no other; something must be left to train on."""
    whole, robust = replace(SETTINGS, attacked="whole"), RobustSettings(check_images=40)
    assert held_out_images(whole, robust) == 40
    assert held_out_images(SETTINGS, robust) == 0
    assert held_out_images(whole, replace(robust, check_every=0)) == 0
    check_held_out(39, 40)
    with pytest.raises(UserError, match="robust.check_images=40: leaves nothing of 40"):
        check_held_out(40, 40)
