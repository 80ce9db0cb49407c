"""Each threat model gives the attacker exactly what it says: gradients, their stand-ins, expectations, or answers."""

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.attack_state import AttackState
from maep.attacks.autoattack import AttackSuite, autoattack
from maep.attacks.catalog import NamedAttack
from maep.attacks.reseeding import is_random, reseed, reseeded
from maep.attacks.threat_models import THREAT_MODELS, Expectation, LessAuxiliaryLoss, threat_model
from maep.config.evaluation_settings import PurifySettings
from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier
from maep.purifiers.diffpure import DiffPurePurifier
from maep.purifiers.stepwise import GraphMemory
from maep.runtime.errors import UserError
from tests.purifiers.denoisers import random_purifier as random_diffusion
from tests.small import Blur, digits, train_small


def random_purifier(**how: float) -> MAEPurifier:
    """A real purifier of random weights for 16×16 images that draws noise or masks."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MaskedAutoencoder(
            ModelSettings(image_size=16, patch_size=4, encoder_width=16, encoder_depth=1, encoder_heads=2,
                          decoder_width=16, decoder_depth=1, decoder_heads=2, prediction="residual",
                          refine_width=4, refine_depth=1)
        )  # fmt: skip
    return MAEPurifier(model, PurifySettings(**how)).eval().requires_grad_(False)  # type: ignore[arg-type]


def gradient(model: nn.Module, images: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(model(images).logsumexp(1).sum(), images)[0]


def test_oblivious_sees_the_undefended_classifier() -> None:
    """Its target is the classifier itself."""
    classifier = train_small()
    assert threat_model("oblivious").target(Blur(), classifier, 1) is classifier


@pytest.mark.parametrize("name", ["adaptive", "adaptive-eot", "blackbox"])
def test_the_purified_classifier_with_its_exact_gradient(name: str) -> None:
    """Adaptive attackers see f∘P and its gradient; of a purifier that draws nothing, EOT's is the same."""
    classifier, purifier, (images, _) = train_small(), Blur().requires_grad_(False), digits()
    purified_classifier = threat_model(name).target(purifier, classifier, 1)
    expected = gradient(nn.Sequential(purifier, classifier), images[:4])
    assert torch.equal(gradient(purified_classifier, images[:4]), expected)
    assert not purified_classifier.training


def test_bpda_takes_the_purifier_for_the_identity_backward() -> None:
    """Forward f(P(x)), backward the gradient of f at P(x), though P has none of its own."""

    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images * 4).round() / 4

    classifier, (images, _) = train_small(), digits()
    target = threat_model("bpda").target(Rounded(), classifier, 1)
    purified = Rounded()(images[:4])
    assert torch.equal(target(images[:4]), classifier(purified))
    assert torch.equal(gradient(target, images[:4]), gradient(classifier, purified))
    assert not gradient(nn.Sequential(Rounded(), classifier), images[:4]).any()


def test_bpda_at_intermediate_points_follows_the_whole_path() -> None:
    """Forward f(P(x)); backward the mean of f's gradients at all that P goes through, for the logits' at P(x)."""

    class Halved(nn.Module):
        def path(self, images: Tensor) -> list[Tensor]:
            return [images * 0.75, images * 0.6, self(images)]

        def forward(self, images: Tensor) -> Tensor:
            return images * 0.5

    classifier, (images, _) = train_small(), digits()
    target = threat_model("bpda-intermediate").target(Halved(), classifier, 1)
    inputs = images[:4].clone().requires_grad_()
    logits = target(inputs)
    assert torch.equal(logits, classifier(images[:4] * 0.5))
    assert torch.equal(target(images[:4]), logits), "as without a gradient"
    weights = torch.autograd.grad(logits.logsumexp(1).sum(), logits, retain_graph=True)[0]
    expected = torch.zeros_like(inputs)
    for share in (0.75, 0.6, 0.5):
        point = (images[:4] * share).requires_grad_()
        expected += torch.autograd.grad(classifier(point), point, weights)[0] / 3
    (found,) = torch.autograd.grad(logits.logsumexp(1).sum(), inputs)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, gradient(threat_model("bpda").target(Halved(), classifier, 1), images[:4]))


def test_who_is_aware_of_the_purifiers_own_loss_lowers_it_as_well() -> None:
    """Forward f(P(x)); backward BPDA's gradient of any loss, less the weighted gradient of the purifier's."""

    class Halved(nn.Module):
        def auxiliary_loss(self, images: Tensor) -> Tensor:
            return images.square().flatten(1).sum(1)

        def forward(self, images: Tensor) -> Tensor:
            return images * 0.5

    classifier, (images, labels) = train_small(), digits()
    images, labels = images[:4], labels[:4]
    target = threat_model("auxiliary-aware").target(Halved(), classifier, 1)
    assert isinstance(target, LessAuxiliaryLoss)
    target.weight = 0.3
    assert torch.equal(target(images), classifier(images * 0.5))
    for loss in (lambda logits: nn.functional.cross_entropy(logits, labels, reduction="sum"), torch.sum):
        inputs = images.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(target(inputs)), inputs)
        point = (images * 0.5).requires_grad_()
        (expected,) = torch.autograd.grad(loss(classifier(point)), point)
        torch.testing.assert_close(found, expected - 0.3 * 2 * images)


def test_eot_is_the_mean_over_draws() -> None:
    """Logits and gradients of the EOT target are means over the draws that its key stands for."""
    classifier, purifier, (images, _) = train_small(), random_purifier(noise=0.2), digits()
    purified_classifier, target = (
        nn.Sequential(purifier, classifier),
        threat_model("adaptive-eot").target(purifier, classifier, 3),
    )
    reseed(target, 7)
    expected = []
    for number in range(3):
        reseed(purified_classifier, 7, 1, number)
        expected.append(purified_classifier(images[:4]))
    mean = torch.stack(expected).mean(0)
    assert torch.equal(target(images[:4]), mean)
    assert expected[0].ne(expected[1]).any()
    reseed(target, 7)
    inputs = images[:4].clone().requires_grad_()
    (grad,) = torch.autograd.grad(target(inputs).logsumexp(1).sum(), inputs)
    other = images[:4].clone().requires_grad_()
    answers = []
    for number in range(3):
        reseed(purified_classifier, 7, 1, number)
        answers.append(purified_classifier(other))
    (direct,) = torch.autograd.grad(torch.stack(answers).mean(0).logsumexp(1).sum(), other)
    assert torch.allclose(grad, direct, atol=1e-6), "activations were computed again with the same draws"


def test_eot_through_many_steps_keeps_no_graph_of_a_draw() -> None:
    """It is computed again as a whole: what a step kept would be kept of all draws together. Gradients are the same to
    the bit as without any room, and may be asked for twice.
    """
    network = nn.Sequential(nn.AdaptiveAvgPool2d(16), train_small())
    words = ["purifier.kind=diffpure", "objective.name=denoise", "pretrain.mask_ratio=0"]
    words += ["diffpure.width=16", "diffpure.multipliers=[1]", "diffpure.steps=3"]
    purifier = random_diffusion(DiffPurePurifier, words).float()
    images, found, kept = digits()[0][:2], [], []
    for room in (10**9, 0):
        model = nn.Sequential(purifier.with_options(PurifySettings(gradient_memory=room)), network).eval()
        inputs, expectation = images.clone().requires_grad_(), Expectation(model, 2).eval()
        with mock.patch.object(GraphMemory, "taken", autospec=True) as taken:
            logits = expectation(inputs)
        kept.append(taken.call_count)
        found += [torch.autograd.grad(logits.logsumexp(1).sum(), inputs, retain_graph=True)[0] for _ in range(2)]
    assert kept == [0, 0]
    assert all(torch.equal(found[0], each) for each in found)
    assert found[0].any()


@pytest.mark.parametrize("how", [{"noise": 0.1}, {"mask_ratio": 0.5}, {"noise": 0.1, "mask_ratio": 0.25, "passes": 2}])
@pytest.mark.parametrize("side", [16, 24])
def test_draws_as_one_batch_are_the_same_draws(how: dict[str, float], side: int) -> None:
    """Noise and masks of each draw are those of its key, of images in tiles too; logits and gradient agree up to sums.

    Five draws by two are two batches and one that is left. One at a time, logits are the mean of single answers, bit by
    bit.
    """
    images = nn.functional.interpolate(digits()[0][:3], size=(side, side))
    network = nn.Sequential(nn.AdaptiveAvgPool2d(16), train_small())
    model = nn.Sequential(random_purifier(**how), network).eval()
    alone, together = Expectation(model, 5), Expectation(model, 5, at_once=2)
    answers = []
    for number in range(5):
        reseed(model, 0, 1, number)
        answers.append(model(images))
    assert torch.equal(alone(images), torch.stack(answers).mean(0))
    assert torch.allclose(together(images), torch.stack(answers).mean(0), atol=1e-5)
    assert together.at_once == 2
    for expectation in (alone, together):
        reseed(expectation, 3)
    assert torch.allclose(gradient(together, images), gradient(alone, images), atol=1e-6)


class TorchNoise(nn.Module):
    """Draws from torch one noise for all images of a batch."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.3 * torch.randn(images.shape[1:])


@pytest.mark.parametrize("before", [nn.Identity(), random_purifier(noise=0.1)], ids=["alone", "behind one of ours"])
def test_who_draws_otherwise_is_asked_draw_by_draw(before: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a batch it would give all draws the same noise. It is said, and the answers are those of one at a time."""
    images, model = digits()[0][:3], nn.Sequential(before, TorchNoise(), train_small()).eval()
    logits = []
    for at_once in (1, 4):
        expectation = Expectation(model, 4, at_once)
        with reseeded(expectation, 5):
            logits.append(expectation(images))
    assert torch.equal(*logits)
    assert "computed one by one" in capsys.readouterr().out


@pytest.mark.parametrize("how", [{"noise": 0.1}, {"mask_ratio": 0.5}, {"noise": 0.1, "mask_ratio": 0.25, "passes": 2}])
def test_random_purifiers_are_keyed(how: dict[str, float]) -> None:
    """Two calls differ; the same key gives the same images; without noise and masks nothing is drawn."""
    purifier, (images, _) = random_purifier(**how), digits()
    reseed(purifier, 3)
    first, second = purifier(images[:4]), purifier(images[:4])
    assert first.ne(second).any()
    reseed(purifier, 3)
    assert torch.equal(purifier(images[:4]), first)
    assert is_random(purifier, images[:4])
    assert not is_random(random_purifier(), images[:4])


def test_random_masks_hide_their_share() -> None:
    """Each image has its own mask, with exactly the share of patches hidden."""
    purifier = random_purifier(mask_ratio=0.25)
    asked: list[tuple[Tensor, Tensor]] = []
    purifier.model.register_forward_pre_hook(
        lambda _, args, named: asked.append((named["visible"], named["index"])), with_kwargs=True
    )
    purifier(torch.zeros(5, 3, 16, 16))
    ((visible, index),) = asked
    assert visible.sum(1).tolist() == [12] * 5
    assert index.tolist() == [row.nonzero().flatten().tolist() for row in visible]
    assert len({tuple(row) for row in visible.tolist()}) > 1


def test_tiles_computed_again_have_the_same_draws() -> None:
    """A gradient through random masks and tiles in several batches is that of one batch."""
    images = digits()[0][:3].repeat(1, 1, 2, 2)
    gradients = []
    for batch_tiles in (2, 100):
        purifier = random_purifier(mask_ratio=0.5, noise=0.1)
        purifier.settings.batch_tiles = batch_tiles
        reseed(purifier, 5)
        gradients.append(gradient(nn.Sequential(purifier, nn.Flatten()), images))
    assert torch.allclose(*gradients, atol=1e-6)


def test_attacks_on_random_models_resume_exactly() -> None:
    """Stopped between two attacks and continued elsewhere, an attack on a random purifier ends with the same images."""
    classifier, (images, labels) = train_small(), digits()
    images, labels = images[:6], labels[:6]
    suite = AttackSuite("custom", ("apgd-ce", "square"))
    how = {"norm": "Linf", "eps": 0.05, "seed": 1, "batch_size": 4, "suite": suite}
    states: list[AttackState] = []

    def keep(state: AttackState) -> None:
        states.append(AttackState(state.images.clone(), state.predictions.clone(), state.robust.clone(),
                                  dict(state.survivors)))  # fmt: skip

    def target() -> nn.Module:
        return threat_model("adaptive-eot").target(random_purifier(noise=0.1), classifier, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttackSuite, "attacker", _quick(AttackSuite.attacker))
        uninterrupted = autoattack(target(), images, labels, **how, on_state=keep)  # type: ignore[arg-type]
        assert list(states[1].survivors) == ["clean", "apgd-ce"]
        torch.rand(5)
        resumed = autoattack(target(), images, labels, **how, state=states[1])  # type: ignore[arg-type]
    assert torch.equal(resumed.images, uninterrupted.images)
    assert resumed.survivors == uninterrupted.survivors
    assert uninterrupted.images.ne(images).any()


def _quick(original):  # type: ignore[no-untyped-def]
    def attacker(self, *arguments, **options):  # type: ignore[no-untyped-def]
        quick = original(self, *arguments, **options)
        quick.apgd.n_restarts, quick.apgd.n_iter, quick.square.n_queries = 1, 10, 20
        return quick

    return attacker


def test_torch_randomness_is_keyed_and_restored() -> None:
    """What a foreign module draws from torch depends on the key alone, and torch's own state is as before."""
    torch.manual_seed(4)
    before = torch.get_rng_state()
    with reseeded(nn.Identity(), 1, 2):
        first = torch.rand(3)
    with reseeded(nn.Identity(), 1, 2):
        assert torch.equal(torch.rand(3), first)
    with reseeded(nn.Identity(), 1, 3):
        assert torch.rand(3).ne(first).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_square_needs_no_gradient() -> None:
    """The black-box attack works where autograd is off altogether."""

    class NoGradient(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                return Blur()(images)

    classifier, (images, labels) = train_small(), digits()
    target = threat_model("blackbox").target(NoGradient(), classifier, 1)
    state = NamedAttack("square-200", "Linf", 0.2).run(
        target, images[:8], labels[:8], keys=range(8), seed=0, batch_size=8
    )
    assert state.survivors["square"] < state.survivors["clean"]


class Wavering(nn.Module):
    """Answers by turns: 0 with a small margin, twice, then 1 with a large one, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0

    def reseed(self, *key: int) -> None:
        self.turn = key[-1]

    def forward(self, images: Tensor) -> Tensor:
        answer = [[1.0, 0.0, 0.5], [1.0, 0.0, 0.5], [0.0, 9.0, 0.0]][self.turn % 3]
        return torch.tensor([answer]).repeat(len(images), 1)


def test_square_lowers_the_mean_of_the_draws_margins() -> None:
    """Of a random model that is asked draw by draw: not the margin of mean logits, which says alone who has fallen."""
    target = threat_model("blackbox").target(nn.Identity(), Wavering(), 3)
    square = AttackSuite(single="square").attacker(target, norm="Linf", eps=0.1, seed=0, device="cpu").square
    labels = torch.tensor([0, 1])
    margin, loss = square.margin_and_loss(torch.zeros(2, 3, 4, 4), labels)
    torch.testing.assert_close(margin, torch.tensor([2 / 3 - 3, 3 - 2 / 3]))
    torch.testing.assert_close(loss, torch.tensor([(0.5 + 0.5 - 9) / 3, (-1 - 1 + 9) / 3]))
    averaged = threat_model("adaptive-eot").target(nn.Identity(), Wavering(), 3)
    square = AttackSuite(single="square").attacker(averaged, norm="Linf", eps=0.1, seed=0, device="cpu").square
    margin, loss = square.margin_and_loss(torch.zeros(2, 3, 4, 4), labels)
    assert torch.equal(margin, loss), "what AutoAttack was before it stays"


def test_unknown_threat_model() -> None:
    """An unknown threat model ends in one line with the valid ones."""
    with pytest.raises(UserError, match=f"choose one of {', '.join(THREAT_MODELS)}"):
        threat_model("whitebox")


def test_the_registry_names_each_by_its_own_name() -> None:
    """Settings choose from the registry's names, in the order of reports; a threat model calls itself by its own."""
    assert list(THREAT_MODELS) == [
        "oblivious", "twin", "bpda", "bpda-intermediate", "auxiliary-aware", "surrogate", "adaptive",
        "adaptive-eot", "blackbox",
    ]  # fmt: skip
    for name in THREAT_MODELS:
        assert threat_model(name).name == name
