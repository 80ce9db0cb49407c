"""Pairs: what a step consumes depends on (seed, samples consumed) alone."""

import signal
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from maep.config.load import load_settings
from maep.config.training_settings import TrainSettings
from maep.data.adversarial_set import adversarial_path
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_shards_path
from maep.data.pairs import PairBatch, PairDataset, Request, mask_ratio_at, pair_loader, visible_patches
from maep.data.shard_manifest import AdversarialManifest
from maep.data.shards import ShardSet
from maep.models.classifiers import classifier_identity
from maep.models.masked_autoencoder import visible_index
from maep.runtime.unwinding import SIGNALS
from tests.tiny import Problem


@pytest.fixture(scope="module")
def pairs(problem: Problem) -> PairDataset:
    """The tiny problem's pairs, with half of the inputs left clean."""
    settings = load_settings("digits", problem.arguments(Path("unused"))[1:])
    clean = ShardSet(clean_shards_path(settings) / "train")
    identity = classifier_identity(settings.classifier, classifier_weights(settings))
    adversarial = ShardSet(adversarial_path(settings, clean, identity))
    train = TrainSettings(batch_size=50, accumulation=2, mask_ratio=0.5, clean_share=0.5)
    return PairDataset(clean, adversarial, train, 32, 4, seed=3)


def read(pairs: PairDataset, first: int, last: int, world: int, workers: int = 0) -> list[PairBatch]:
    """The global batches of some steps, put together from every rank's micro-batches."""
    accumulation, steps = pairs.settings.accumulation, []
    ranks = [
        list(pair_loader(pairs, pairs.settings, first=first, last=last, rank=r, world=world, workers=workers))
        for r in range(world)
    ]
    for step in range(last - first):
        parts = [micro for rank in ranks for micro in rank[step * accumulation : (step + 1) * accumulation]]
        fields = {n: torch.cat([getattr(p, n) for p in parts]) for n in PairBatch.__dataclass_fields__}
        steps.append(PairBatch(**fields))
    return steps


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (3, 0), (4, 0), (1, 2)])
def test_ranks_and_workers_do_not_change_what_is_consumed(pairs: PairDataset, world: int, workers: int) -> None:
    """Order, images, flips and masks are identical for any number of ranks and loader workers."""
    for ours, single in zip(read(pairs, 0, 3, world, workers), read(pairs, 0, 3, 1), strict=True):
        for name in PairBatch.__dataclass_fields__:
            assert torch.equal(getattr(ours, name), getattr(single, name)), name


def test_resume_reads_what_an_undisturbed_run_reads(pairs: PairDataset) -> None:
    """Starting at step 2 gives the batches that follow step 1."""
    for ours, whole in zip(read(pairs, 2, 4, 2), read(pairs, 0, 4, 1)[2:], strict=True):
        assert torch.equal(ours.clean, whole.clean)
        assert torch.equal(ours.visible, whole.visible)


def test_every_sample_once_an_epoch_across_batches(pairs: PairDataset) -> None:
    """120 images in batches of 50: each of them exactly once in each of the first epochs."""
    seen: dict[int, list[int]] = {}
    for batch in read(pairs, 0, 5, 2):
        for epoch, index in zip(batch.epochs.tolist(), batch.indices.tolist(), strict=True):
            seen.setdefault(epoch, []).append(index)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(120))
    assert seen[0] != seen[1]


def test_pairs_are_turned_in_eight_ways(pairs: PairDataset) -> None:
    """With pretrain.transpose, both images of a pair lie in one of the square's eight ways; without, in two."""
    image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    ways = {np.rot90(view, turns, (1, 2)).tobytes() for view in both_ways(image) for turns in range(4)}
    seen: dict[bool, set[bytes]] = {}
    for transpose in (False, True):
        train = TrainSettings(batch_size=50, transpose=transpose)
        dataset = PairDataset(pairs.clean, pairs.adversarial, train, 32, 4, seed=3)
        samples = [
            dataset._sample(Request(0, index, 0.0), image, image, draws, np.ones(64, dtype=bool), 0)
            for index, draws in enumerate(np.random.default_rng(0).random((100, 6)))
        ]
        assert all(np.array_equal(clean, adversarial) for clean, adversarial, *_ in samples)
        seen[transpose] = {clean.tobytes() for clean, *_ in samples}
    assert seen[True] == ways
    assert seen[False] == {view.tobytes() for view in both_ways(image)}


def both_ways(image: np.ndarray) -> list[np.ndarray]:
    """An image [H, W, 3] and its mirror, as [3, H, W]."""
    return [np.ascontiguousarray(way.transpose(2, 0, 1)) for way in (image, image[:, ::-1])]


def test_pairs_are_flipped_together_and_within_budget(pairs: PairDataset) -> None:
    """The two images of a pair never differ by more than epsilon, so crop and flip are the same for both."""
    assert pairs.adversarial is not None
    assert isinstance(pairs.adversarial.manifest, AdversarialManifest)
    budget = round(pairs.adversarial.manifest.eps_used * 255)
    identical = 0
    for batch in read(pairs, 0, 4, 1):
        assert batch.adversarial is not None
        difference = (batch.clean.int() - batch.adversarial.int()).abs().flatten(1).amax(1)
        assert difference.max() <= budget
        identical += int((difference == 0).sum())
    assert 60 < identical < 140  # clean_share = 0.5 of 200


@pytest.mark.parametrize(("ratio", "hidden"), [(0.0, 0), (0.25, 16), (0.5, 32), (0.75, 48)])
def test_mask_hides_exactly_its_share(ratio: float, hidden: int) -> None:
    """`round(r T)` patches are hidden, others for each sample and epoch, the same for the same key."""
    mask, other_image, other_epoch, same = visible_patches(64, ratio, 0, [(1, 2), (1, 3), (2, 2), (1, 2)])
    assert (~mask).sum() == hidden
    assert np.array_equal(mask, same)
    assert np.array_equal(mask, visible_patches(64, ratio, 0, [(1, 2)])[0])
    if hidden:
        assert not np.array_equal(mask, other_image)
        assert not np.array_equal(mask, other_epoch)


def test_mask_ratio_falls_to_zero_after_its_share() -> None:
    """mask_until = 0.25 of 8 steps: two masked, six not."""
    settings = TrainSettings(mask_ratio=0.5, mask_until=0.25)
    assert [mask_ratio_at(step, 8, settings) for step in range(8)] == [0.5, 0.5, 0, 0, 0, 0, 0, 0]


def test_the_loader_pins_what_goes_to_the_device(pairs: PairDataset) -> None:
    """Through the function that `DataLoader` pins with: all tensors but those that only the host reads."""
    batch = read(pairs, 0, 1, 1)[0]
    with mock.patch.object(Tensor, "pin_memory", lambda tensor: torch.full_like(tensor, 77)):
        pinned = pin_memory(batch)
    changed = {name for name, value in vars(batch).items() if not torch.equal(value, getattr(pinned, name))}
    assert changed == {"clean", "adversarial", "visible", "shown", "labels"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_arrive_pinned(pairs: PairDataset, workers: int) -> None:
    """In page-locked memory, from this process and from a worker."""
    batch = next(iter(pair_loader(pairs, pairs.settings, first=0, last=1, rank=0, world=1, workers=workers, pin=True)))
    assert batch.adversarial is not None
    assert all(tensor.is_pinned() for tensor in (batch.clean, batch.adversarial, batch.visible, batch.shown))


def test_the_shown_patches_are_the_visible_ones(pairs: PairDataset) -> None:
    """As the model would find them, in order."""
    batch = read(pairs, 0, 1, 1)[0]
    assert torch.equal(batch.shown, visible_index(batch.visible))


def test_held_out_images_are_never_trained_on(pairs: PairDataset) -> None:
    """Twelve drawn by the seed; an epoch is of the others, each once, and without any held out nothing changes."""
    held = PairDataset(pairs.clean, pairs.adversarial, replace(pairs.settings, batch_size=54), 32, 4, 3, held_out=12)
    assert held.count == 108
    assert len(set(held.held)) == 12
    epoch = torch.cat([step.indices for step in read(held, 0, 2, 2)])
    assert sorted(epoch.tolist()) == [index for index in range(120) if index not in held.held]
    assert PairDataset(pairs.clean, None, pairs.settings, 32, 4, 4, 12).held != held.held


def test_crop_padding_moves_both_images_alike(pairs: PairDataset) -> None:
    """A crop from the image within a black margin: the pair is moved by the same, up to the padding."""
    still = PairDataset(pairs.clean, pairs.adversarial, replace(pairs.settings, clean_share=0.0, flip=False), 32, 4, 3)
    moved = PairDataset(
        pairs.clean, pairs.adversarial, replace(still.settings, crop_padding=3), 32, 4, 3
    )  # fmt: skip
    shifts = set()
    for index in range(8):
        request = Request(0, index, 0.0)
        before, after = (dataset[request][:2] for dataset in (still, moved))
        padded = [np.pad(image, ((0, 0), (3, 3), (3, 3))) for image in before]
        fits = [
            (y, x) for y in range(7) for x in range(7)
            if all((p[:, y : y + 32, x : x + 32] == a).all() for p, a in zip(padded, after, strict=True))
        ]  # fmt: skip
        assert len(fits) == 1
        shifts |= set(fits)
    assert len(shifts) > 4


def test_processes_that_load_start_with_signals_blocked(pairs: PairDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until they ignore them: a Ctrl-C in the middle of their imports would be a traceback, and a lost process."""
    masks, start = [], DataLoader.__iter__

    def recording(loader: DataLoader) -> object:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return start(loader)

    monkeypatch.setattr(DataLoader, "__iter__", recording)
    read(pairs, 0, 1, 1)
    assert masks[0] >= set(SIGNALS)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)
