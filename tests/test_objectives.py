"""The MAEP objective equals a plain NumPy formula, its gradient included, and reduces as the paper says."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maep.objectives import OBJECTIVES, Losses, maep
from maep.settings import ObjectiveSettings


def numbers(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


PURIFIED, CLEAN, ADVERSARIAL = (numbers(seed, (2, 3, 4, 4)) for seed in range(3))
VISIBLE = np.array([[True, False, False, True], [False, True, False, False]])


def loss_of(purified: Any, visible: Any = VISIBLE, **settings: Any) -> Losses:
    """The objective with a model that returns `purified`."""

    def model(images: Tensor, shown: Tensor | None) -> Tensor:
        assert torch.equal(images, torch.tensor(ADVERSARIAL))
        return torch.as_tensor(purified)

    mask = None if visible is None else torch.tensor(visible)
    return maep(model, torch.tensor(CLEAN), torch.tensor(ADVERSARIAL), mask, ObjectiveSettings(**settings))


def numpy_terms(target: np.ndarray, distance: str) -> list[tuple[float, float]]:
    """(L_pu, L_rec) of each image: means over the pixels of visible and hidden 2x2 patches, by plain loops."""
    terms = []
    for n in range(2):
        shown, hidden = [], []
        for row in range(4):
            for column in range(4):
                is_shown = VISIBLE[n, (row // 2) * 2 + column // 2]
                against = CLEAN if is_shown else target
                for channel in range(3):
                    difference = PURIFIED[n, channel, row, column] - against[n, channel, row, column]
                    value = abs(difference) if distance == "l1" else difference**2
                    (shown if is_shown else hidden).append(value)
        terms.append((float(np.mean(shown)), float(np.mean(hidden))))
    return terms


@pytest.mark.parametrize("distance", ["l1", "mse"])
@pytest.mark.parametrize(("target", "against"), [("clean", CLEAN), ("adversarial", ADVERSARIAL)])
def test_equals_the_formula(distance: str, target: str, against: np.ndarray) -> None:
    """Total and parts of every image, for both distances and both targets, at λ = 0.7 (Eq. 11-12)."""
    losses = loss_of(PURIFIED, distance=distance, target=target, rec_weight=0.7)
    for n, (l_pu, l_rec) in enumerate(numpy_terms(against, distance)):
        assert losses.parts["l_pu"][n].item() == pytest.approx(l_pu, rel=1e-5)
        assert losses.parts["l_rec"][n].item() == pytest.approx(l_rec, rel=1e-5)
        assert losses.total[n].item() == pytest.approx(l_pu + 0.7 * l_rec, rel=1e-5)


def test_gradient_equals_the_formula() -> None:
    """d total / d pixel is its sign over the number of visible pixels, or λ times that over hidden ones."""
    purified = torch.tensor(PURIFIED, requires_grad=True)
    loss_of(purified, rec_weight=0.7).total.sum().backward()
    sign = np.sign(PURIFIED - CLEAN)
    for n in range(2):
        pixels = np.kron(VISIBLE[n].reshape(2, 2), np.ones((2, 2)))
        count = VISIBLE[n].sum() * 12
        expected = sign[n] * np.where(pixels == 1, 1 / count, 0.7 / (48 - count))
        assert purified.grad is not None
        np.testing.assert_allclose(purified.grad[n].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("distance", ["l1", "mse"])
def test_without_mask_it_is_purification(distance: str) -> None:
    """r = 0, by no mask or a mask of ones, is d(P(x_a), x) over the whole image (Eq. 2)."""
    difference = PURIFIED - CLEAN
    whole = (np.abs(difference) if distance == "l1" else difference**2).mean((1, 2, 3))
    for visible in (None, np.ones((2, 4), dtype=bool)):
        losses = loss_of(PURIFIED, visible, distance=distance, rec_weight=5.0)
        np.testing.assert_allclose(losses.total.numpy(), whole, rtol=1e-5)
        assert losses.parts["l_rec"].tolist() == [0, 0]


def test_without_mask_it_takes_images_of_any_shape() -> None:
    """Oblong images need no grid of patches."""
    images = torch.rand(1, 3, 4, 6)
    losses = maep(lambda x, visible: x, images, images + 0.25, None, ObjectiveSettings())
    assert losses.total.item() == pytest.approx(0.25)


def test_losses_of_images_do_not_mix() -> None:
    """One image's loss is the same alone and in a batch, so any split over processes adds up."""
    together = loss_of(PURIFIED).total

    def model(images: torch.Tensor, shown: torch.Tensor | None) -> torch.Tensor:
        return torch.tensor(PURIFIED[1:])

    args = (torch.tensor(x[1:]) for x in (CLEAN, ADVERSARIAL, VISIBLE))
    alone = OBJECTIVES["maep"](model, *args, ObjectiveSettings()).total
    assert torch.equal(together[1:], alone)
