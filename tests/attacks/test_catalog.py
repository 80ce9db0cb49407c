"""Attack names and threat models mean what reports say."""

import re

import pytest
import torch

from maep.attacks.autoattack import AttackSuite
from maep.attacks.catalog import NamedAttack, gradient_spec, suite_of
from maep.attacks.gradient import attack
from maep.runtime.errors import UserError
from tests.small import digits, train_small

EPS = 8 / 255


def test_steps_and_starts() -> None:
    """FGSM steps by eps once; K iterations step by eps/4, 2/255 at 8/255; only PGD starts at random."""
    fgsm, bim, pgd = (gradient_spec(name, "Linf", EPS) for name in ("fgsm", "bim-10", "pgd-20"))
    assert fgsm is not None
    assert bim is not None
    assert pgd is not None
    assert (fgsm.step, fgsm.steps, fgsm.random_start) == (EPS, 1, False)
    assert (bim.step, bim.steps, bim.random_start) == (pytest.approx(2 / 255), 10, False)
    assert (pgd.step, pgd.steps, pgd.random_start) == (pytest.approx(2 / 255), 20, True)


@pytest.mark.parametrize(
    "name",
    ["pgd", "pgd-0", "bim-x", "autoattack", "square-0", "apgd", "autoattack-fast", "standard", "autoattack-custom:",
     "autoattack-custom:apgd-ce+pgd-3", "autoattack-custom:square+square"],
)  # fmt: skip
def test_unknown_name(name: str) -> None:
    """A name that is none ends in one line with the valid ones."""
    with pytest.raises(UserError, match=rf"evaluation.attacks: {re.escape(name)}: unknown.*fgsm, bim-K, pgd-K"):
        NamedAttack(name, "Linf", EPS)


def test_identity_depends_on_everything() -> None:
    """Another attack, norm or budget is another identity."""
    attacks = [NamedAttack("pgd-5", "Linf", 0.1), NamedAttack("pgd-6", "Linf", 0.1), NamedAttack("pgd-5", "L2", 0.1),
               NamedAttack("pgd-5", "Linf", 0.2), NamedAttack("autoattack-standard", "Linf", 0.1)]  # fmt: skip
    assert len({str(attack.facts()) for attack in attacks}) == len(attacks)


def test_gradient_attack_in_batches() -> None:
    """A gradient attack gives the images of `gradient.attack`, whatever the batches."""
    model, (images, labels) = train_small(), digits()
    images, labels, keys = images[:10], labels[:10], range(10)
    spec = gradient_spec("pgd-3", "Linf", 0.1)
    assert spec is not None
    expected = attack(model, images, labels, spec, keys, 5)
    state = NamedAttack("pgd-3", "Linf", 0.1).run(model, images, labels, keys=keys, seed=5, batch_size=4)
    assert torch.allclose(state.images, expected, atol=1e-6)
    assert torch.equal(state.robust, state.predictions == labels)
    assert state.survivors == {
        "clean": int((model(images).argmax(1) == labels).sum()),
        "pgd-3": int(state.robust.sum()),
    }


def test_suites() -> None:
    """Names of AutoAttack's versions, of its parts alone and of lists mean what pyautoattack means by them."""
    assert suite_of("autoattack-rand") == AttackSuite("rand")
    assert suite_of("autoattack-custom:apgd-ce+square") == AttackSuite("custom", ("apgd-ce", "square"))
    assert suite_of("apgd-dlr") == AttackSuite(single="apgd-dlr")
    assert suite_of("square") == AttackSuite(single="square", queries=5000)
    assert suite_of("square-40") == AttackSuite(single="square", queries=40)
    assert suite_of("pgd-20") is None
