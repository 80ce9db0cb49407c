"""Keyed random numbers: the same for the same key, however many are asked for together."""

import numpy as np
import pytest

from maep.runtime.randomness import keyed_rng, keyed_rngs

KEYS = [(0, 0), (0, 1), (1, 0), (399, 1_281_166), (2**32 - 1, 2**32 - 1), (7, 2**31)]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**80])
def test_many_keys_at_once_draw_what_each_alone_does(seed: int) -> None:
    """Floats, permutations and normal numbers, drawn one after another, also where a number takes several words."""
    for key, rng in zip(KEYS, keyed_rngs("mask", seed, KEYS), strict=True):
        alone = keyed_rng("mask", seed, *key)
        assert rng.random(3).tolist() == alone.random(3).tolist()
        assert rng.permutation(50).tolist() == alone.permutation(50).tolist()
        assert rng.normal(size=2).tolist() == alone.normal(size=2).tolist()
        assert rng.integers(2**32, dtype=np.uint32) == alone.integers(2**32, dtype=np.uint32)


def test_what_is_left_of_one_key_does_not_reach_the_next() -> None:
    """A generator keeps half of a drawn number for later; another key begins without it."""
    first, second = (rng.integers(2**32, dtype=np.uint32) for rng in keyed_rngs("mask", 0, [(1, 2), (1, 2)]))
    assert first == second


def test_purposes_differ_and_no_key_gives_none() -> None:
    """The same numbers for another purpose are other draws."""
    (mask,), (augment,) = ([rng.random() for rng in keyed_rngs(name, 0, [(0, 0)])] for name in ("mask", "augment"))
    assert mask != augment
    assert list(keyed_rngs("mask", 0, [])) == []


def test_the_stream_of_a_key_is_written_down() -> None:
    """Orders and masks of finished trainings came from it: it never changes."""
    assert keyed_rng("mask", 0, 1, 2).integers(0, 1000, 5).tolist() == [617, 718, 762, 21, 998]
