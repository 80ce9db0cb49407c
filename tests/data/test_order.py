"""The order of samples: every one exactly once an epoch, for any number of ranks and any resume point."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maep.data.order import batch_at, held_out_indices, labels_held_out, sample_at, slice_of


@settings(derandomize=True, deadline=None)
@given(
    count=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    size=st.integers(1, 40),
    worlds=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_every_sample_exactly_once_an_epoch(count: int, seed: int, size: int, worlds: list[int]) -> None:
    """Ranks that change in number at every step consume each sample of each whole epoch once, none twice."""
    consumed: list[tuple[int, int]] = []
    steps = -(-3 * count // size)
    for step in range(steps):
        world = worlds[step % len(worlds)]
        batch = batch_at(step * size, size, count, seed)
        shares = [slice_of(batch, rank, world) for rank in range(world)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        consumed += [sample for share in shares for sample in share]
    for epoch in range(3):
        assert sorted(index for at, index in consumed if at == epoch) == list(range(count))
    assert len(consumed) == len(set(consumed)) == steps * size


@settings(derandomize=True, deadline=None)
@given(count=st.integers(1, 50), start=st.integers(0, 200), size=st.integers(0, 80), cut=st.integers(0, 80))
def test_resume_continues_the_same_sequence(count: int, start: int, size: int, cut: int) -> None:
    """A batch cut at any position and resumed there is the batch uncut, across epochs."""
    cut = min(cut, size)
    resumed = batch_at(start, cut, count, 7) + batch_at(start + cut, size - cut, count, 7)
    assert resumed == batch_at(start, size, count, 7)


def test_epochs_and_seeds_differ() -> None:
    """Another epoch or another seed is another permutation; the first ones are pinned against drift."""
    first, second = (batch_at(100 * epoch, 100, 100, 0) for epoch in (0, 1))
    assert [index for _, index in first] != [index for _, index in second]
    assert first != batch_at(0, 100, 100, 1)
    assert [index for _, index in batch_at(0, 8, 8, 0)] == [5, 3, 4, 0, 2, 7, 1, 6]


def test_bad_arguments_are_refused() -> None:
    """No samples, a negative position and a rank outside the world are errors, not empty batches."""
    for position, count in ((0, 0), (-1, 5)):
        with pytest.raises(ValueError, match="out of range"):
            sample_at(position, count, 0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        slice_of([1, 2, 3], 2, 2)


def test_labels_that_are_held_out_whole_are_told() -> None:
    """Of the drawn indices, which are a function of the seed; none where every label keeps an image."""
    held = held_out_indices(3, 12, 5)
    assert held == sorted(set(held)) == held_out_indices(3, 12, 5) != held_out_indices(4, 12, 5)
    assert held_out_indices(3, 12, 0) == []
    labels = [0] * 12
    for index in held[:2]:
        labels[index] = 7
    labels[held[2]] = 5
    assert labels_held_out(labels, held) == [5, 7]
    assert labels_held_out(labels, held[1:]) == [5]
    assert labels_held_out(labels, []) == []
