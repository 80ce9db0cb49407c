"""Batches of labelled images: the same from memory, from this process and from workers."""

from pathlib import Path

import pytest
import torch

from maep.config.load import load_settings
from maep.data import labelled_batches as module
from maep.data.images.build import clean_shards_path
from maep.data.labelled_batches import labelled_batches
from maep.data.shards import ShardSet
from tests.tiny import Problem

PLAN = [[3, 0, 7], [5], [2, 2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_wherever_they_are_read(
    problem: Problem, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the plan, whichever process was first."""
    shards = ShardSet(clean_shards_path(load_settings("digits", problem.arguments(Path("unused"))[1:])) / "train")
    kept = list(labelled_batches(shards, PLAN, torch.device("cpu"), workers))
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    read = list(labelled_batches(shards, PLAN, torch.device("cpu"), workers))
    assert [labels.tolist() for _, labels in kept] == [[shards.labels([i])[0] for i in indices] for indices in PLAN]
    for (images, labels), (others, of_others) in zip(kept, read, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, of_others)
