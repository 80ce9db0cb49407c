"""Attack names and threat models mean what reports say."""

import pytest
import torch
from torch import nn

from maep.attacks.gradient import attack
from maep.attacks.named import NamedAttack, gradient_spec
from maep.attacks.threat_models import threat_model
from maep.errors import UserError
from tests.small import Blur, digits, train_small

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


@pytest.mark.parametrize("name", ["pgd", "pgd-0", "bim-x", "autoattack", "square"])
def test_unknown_name(name: str) -> None:
    """A name that is none ends in one line with the valid ones."""
    with pytest.raises(UserError, match=f"evaluation.attacks: {name}: unknown.*fgsm, bim-K, pgd-K"):
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


def test_targets() -> None:
    """The oblivious attacker sees the classifier alone, the adaptive one the exact gradient through the purifier."""
    classifier, purifier, (images, _) = train_small(), Blur().requires_grad_(False), digits()
    assert threat_model("oblivious").target(purifier, classifier) is classifier
    whole = threat_model("adaptive").target(purifier, classifier)
    images = images[:4].requires_grad_()
    expected = torch.autograd.grad(classifier(purifier(images)).logsumexp(1).sum(), images)[0]
    assert torch.equal(torch.autograd.grad(whole(images).logsumexp(1).sum(), images)[0], expected)
    assert isinstance(whole, nn.Module)
    assert not whole.training


def test_unknown_threat_model() -> None:
    """An unknown threat model ends in one line with the valid ones."""
    with pytest.raises(UserError, match="choose one of oblivious, adaptive"):
        threat_model("whitebox")
