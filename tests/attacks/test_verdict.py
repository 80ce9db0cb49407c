"""An answer that is no number is right of no image, in the attack's own count and in the record's."""

import torch
from torch import Tensor, nn

from maep.attacks.catalog import NamedAttack
from maep.attacks.surrogate import perturb_batch
from maep.attacks.verdict import NO_CLASS, predicted


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
