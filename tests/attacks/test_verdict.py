"""An answer that is no number is right of no image, in the attack's own count and in the record's; and what a random
model answers where it is asked several times.
"""

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.catalog import NamedAttack
from maep.attacks.reseeding import reseeded
from maep.attacks.surrogate import perturb_batch
from maep.attacks.verdict import NO_CLASS, decided, predicted


class Broken(nn.Module):
    """Class 0 for every image, and no number for one that was moved."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.tensor([3.0, 2.0, 1.0, 0.5]).expand(len(images), 4) + 0 * images.flatten(1).sum(1, keepdim=True)
        is_clean = (images.detach().flatten(1)[:, None] == self.clean.flatten(1)[None]).all(2).any(1)
        return torch.where(is_clean[:, None], logits, torch.nan)


def test_what_is_no_number_is_no_class() -> None:
    """Not the first, which argmax takes; infinities have an order."""
    logits = torch.tensor([[torch.nan] * 3, [5.0, torch.nan, 1.0], [-torch.inf, 0.0, torch.inf], [1.0, 0.0, -1.0]])
    assert predicted(logits).tolist() == [NO_CLASS, NO_CLASS, 2, 0]
    assert predicted(logits[:0]).tolist() == []


def test_a_model_that_an_attack_drives_out_of_all_numbers_is_broken() -> None:
    """Also of images of class 0, the one that argmax would give."""
    images, labels = (
        torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.zeros(3, dtype=torch.int64),
    )
    model = Broken(images).eval()
    for follow in (None, model):
        moved, answers = perturb_batch(lambda _, index: (images[index] + 0.1).clamp(0, 1), model, follow, labels)
        assert moved.ne(images).any()
        assert answers.tolist() == [NO_CLASS] * 3
    state = NamedAttack("pgd-1", "Linf", 0.1).run(model, images, labels, keys=[0, 1, 2], seed=0, batch_size=3)
    assert state.survivors == {"clean": 3, "pgd-1": 0}


class Scripted(nn.Module):
    """Gives one list of classes after the other, whatever it is asked; None is no number."""

    def __init__(self, *draws: list[int | None]) -> None:
        super().__init__()
        self.draws = iter(draws)

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 4)
        for row, answer in zip(logits, next(self.draws), strict=True):
            row[answer or 0] = torch.nan if answer is None else 1
        return logits


def test_the_commonest_answer_decides() -> None:
    """Of equally common ones the first that was given; no number is an answer like any other; one draw is itself."""
    draws: list[list[int | None]] = [[1, 3, 0, None], [2, 1, 2, 0], [2, 1, 1, None]]
    images = torch.zeros(4, 3, 2, 2)
    assert decided(Scripted(*draws), images, 3).tolist() == [2, 1, 0, NO_CLASS]
    assert decided(Scripted(*draws), images).tolist() == [1, 3, 0, NO_CLASS]
    assert decided(Scripted([]), images[:0], 1).tolist() == []


class Lucky(nn.Module):
    """Right of every image, except by chance in one of five draws, whatever the image is."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.int64), 4).float()
        logits = torch.where(torch.rand(len(images), 1) < 1 / 5, logits.roll(1, 1), logits)
        return logits + 0 * images.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["pgd-2", "autoattack-custom:apgd-ce"])
def test_no_image_falls_by_luck_where_many_draws_decide(name: str) -> None:
    """With no budget nothing can fall; one draw takes chance for success, and the image is attacked no further."""
    images, labels = torch.full((24, 3, 4, 4), 0.5), torch.zeros(24, dtype=torch.int64)
    standing = {}
    for draws in (1, 51):
        state = NamedAttack(name, "Linf", 0.0).run(
            Lucky().eval(), images, labels, keys=range(24), seed=0, batch_size=10, decision_draws=draws
        )
        standing[draws] = dict(state.survivors)
        assert state.robust.sum() == list(state.survivors.values())[-1]
    assert set(standing[51].values()) == {24}
    assert all(0 < count < 24 for count in standing[1].values())


def test_draws_that_decide_are_those_of_the_key() -> None:
    """The same key, the same answers, of several draws as of one."""
    images, answers = torch.zeros(50, 3, 4, 4), []
    for _ in range(2):
        with reseeded(model := Lucky().eval(), 7):
            answers.append(decided(model, images, 2))
    assert answers[0].equal(answers[1])
    assert len(set(answers[0].tolist())) == 2
