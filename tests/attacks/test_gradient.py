"""Gradient attacks: in budget, keyed by sample, equal to their formulas, and they break a real classifier."""

import copy
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import ascend, attack, random_targets
from maep.config.data_settings import AttackSettings
from maep.runtime.errors import UserError
from tests.small import digits, train_small

PGD = AttackSpec("pgd", "Linf", eps=0.1, step=0.025, steps=10, random_start=True, targeted=False)
L2 = replace(PGD, norm="L2", eps=1.0, step=0.25)
# A step of no length leaves the random start as the result.
START_ONLY = replace(PGD, step=0.0, steps=1)
COUNT = 40


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return train_small()


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[:COUNT], labels[:COUNT]


def norms(delta: Tensor, norm: str) -> Tensor:
    return delta.flatten(1).abs().amax(1) if norm == "Linf" else delta.flatten(1).norm(dim=1)


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    images = images.clone().requires_grad_(True)
    nn.functional.cross_entropy(model(images), labels, reduction="sum").backward()
    return images.grad


def right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_start_is_the_samples_own(model: nn.Module, batch: tuple[Tensor, Tensor], norm: str) -> None:
    """The random start depends on seed and key alone, not on the images that share the batch or their order."""
    images, labels = batch
    spec = replace(START_ONLY, norm=norm, eps=1.0 if norm == "L2" else 0.1)
    keys = list(range(100, 100 + COUNT))
    together = attack(model, images, labels, spec, keys, 7)
    some = [31, 4, 17]
    part = attack(model, images[some], labels[some], spec, [keys[i] for i in some], 7)
    assert torch.equal(part, together[some])
    assert not torch.equal(together, attack(model, images, labels, spec, keys, 8))
    assert not torch.equal(part, attack(model, images[some], labels[some], spec, some, 7))
    assert len({image.numpy().tobytes() for image in (together - images)}) == COUNT


def test_global_generator_is_untouched(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """An attack neither reads nor moves torch's generator."""
    torch.manual_seed(1)
    first = attack(model, *batch, PGD, range(COUNT), 0)
    state = torch.get_rng_state()
    assert torch.equal(attack(model, *batch, PGD, range(COUNT), 0), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("method", ["fgsm", "bim", "pgd"])
def test_budget_and_range_hold(
    model: nn.Module, batch: tuple[Tensor, Tensor], method: str, norm: str, targeted: bool
) -> None:
    """Every attack stays within eps of the image in its norm, within [0, 1], and moves the images."""
    eps = 0.1 if norm == "Linf" else 1.0
    settings = AttackSettings(method=method, norm=norm, eps=eps, step=0.6 * eps, steps=4, targeted=targeted)
    images, labels = batch
    adversarial = attack(model, images, labels, AttackSpec.of(settings), range(COUNT), 0)
    distance = norms(adversarial - images, norm)
    assert float(distance.max()) <= eps * (1 + 1e-5)
    assert float(distance.min()) > 0.1 * eps
    assert 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1
    assert not adversarial.requires_grad


def test_fgsm_is_its_formula(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """FGSM = clip(x + eps sign(grad)), whatever step, steps and random_start say."""
    images, labels = batch
    settings = AttackSettings(method="fgsm", eps=0.05, step=0.3, steps=9, random_start=True)
    adversarial = attack(model, images, labels, AttackSpec.of(settings), range(COUNT), 0)
    expected = (images + 0.05 * gradient(model, images, labels).sign()).clamp(0, 1)
    torch.testing.assert_close(adversarial, expected)


def test_l2_step_is_its_formula(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """One L2 step from the image goes `step` along the normalised gradient."""
    images, labels = batch
    inside = images * 0.6 + 0.2
    adversarial = attack(model, inside, labels, AttackSpec("bim", "L2", 1.0, 0.1, 1, False, False), range(COUNT), 0)
    slope = gradient(model, inside, labels)
    expected = inside + 0.1 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(adversarial, expected, rtol=1e-5, atol=1e-6)


def test_bim_steps_and_projects(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """BIM from the image: two signed steps, cut to the ball and to [0, 1] after each."""
    images, labels = batch
    expected = images
    for _ in range(2):
        moved = expected + 0.04 * gradient(model, expected, labels).sign()
        expected = torch.minimum(torch.maximum(moved, images - 0.06), images + 0.06).clamp(0, 1)
    adversarial = attack(model, images, labels, AttackSpec("bim", "Linf", 0.06, 0.04, 2, False, False), range(COUNT), 0)
    torch.testing.assert_close(adversarial, expected)


def test_attacks_break_the_classifier(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """On a real classifier PGD leaves almost nothing right in both norms, and less than FGSM does."""
    images, labels = batch
    assert right(model, images, labels) > 0.95
    fgsm = replace(PGD, method="fgsm", step=PGD.eps, steps=1, random_start=False)
    accuracy = {
        spec: right(model, attack(model, images, labels, spec, range(COUNT), 0), labels) for spec in (PGD, fgsm)
    }
    assert accuracy[PGD] < 0.2
    assert accuracy[PGD] <= accuracy[fgsm]
    strong = replace(L2, eps=2.5, step=0.6)
    assert right(model, attack(model, images, labels, strong, range(COUNT), 0), labels) < 0.2


def test_targeted_reaches_its_target(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """A targeted attack makes the classifier name the keyed target, which is never the label."""
    images, labels = batch
    targets = random_targets(labels, 10, range(COUNT), 3)
    assert not bool((targets == labels).any())
    assert len(set(((targets - labels) % 10).tolist())) == 9
    spec = replace(PGD, eps=0.3, step=0.05, targeted=True)
    adversarial = attack(model, images, labels, spec, range(COUNT), 3)
    assert right(model, adversarial, targets) > 0.8


def test_no_gradient_leaves_the_image(batch: tuple[Tensor, Tensor]) -> None:
    """A model that ignores its input gives no direction: BIM returns the image, without NaN."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)).eval()
    nn.init.zeros_(model[1].weight)
    images, labels = batch
    for norm in ("Linf", "L2"):
        adversarial = attack(model, images, labels, AttackSpec("bim", norm, 0.1, 0.1, 3, False, False), range(COUNT), 0)
        assert torch.equal(adversarial, images)


def test_no_budget_leaves_the_image(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """With eps = 0 the adversarial image is the image."""
    for spec in (replace(PGD, eps=0.0), replace(L2, eps=0.0)):
        assert torch.equal(attack(model, *batch, spec, range(COUNT), 0), batch[0])


def test_l2_start_fills_the_ball(model: nn.Module) -> None:
    """L2 starts are uniform in the ball: in d dimensions the mean radius is d / (d + 1)."""
    images, labels = torch.full((400, 1, 1, 2), 0.5), torch.zeros(400, dtype=torch.int64)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).eval()
    adversarial = attack(flat, images, labels, replace(START_ONLY, norm="L2", eps=0.3), range(400), 0)
    radius = norms(adversarial - images, "L2") / 0.3
    assert float(radius.max()) <= 1 + 1e-5
    assert abs(float(radius.mean()) - 2 / 3) < 0.04
    assert float(norms((adversarial - images).mean(0, keepdim=True), "L2")) < 0.03


def test_misuse_is_refused(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """A model in training mode, keys that are not one an image, and an unknown method are errors."""
    with pytest.raises(ValueError, match="2 keys for 40 images"):
        attack(model, *batch, PGD, [1, 2], 0)
    training = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768)).train()
    with pytest.raises(ValueError, match="eval mode"):
        attack(training, *batch, PGD, range(COUNT), 0)
    with pytest.raises(ValueError, match="not an attack"):
        replace(PGD, method="cw")


def test_identity_is_of_what_counts() -> None:
    """Each field of an attack changes its identity; settings that its method does not read do not."""
    changed = {"method": "bim", "norm": "L2", "eps": 0.2, "step": 0.1, "steps": 3, "random_start": False}
    specs = [PGD, *(replace(PGD, **{key: value}) for key, value in {**changed, "targeted": True}.items())]
    assert len({spec.identity() for spec in specs}) == len(asdict(PGD)) + 1
    fgsm = [
        AttackSpec.of(AttackSettings(method="fgsm", steps=steps, step=step)) for steps, step in ((1, 0.1), (9, 0.2))
    ]
    assert fgsm[0] == fgsm[1]
    bim = [AttackSpec.of(AttackSettings(method="bim", random_start=start)) for start in (False, True)]
    assert bim[0] == bim[1]
    assert (PGD.name, fgsm[0].name) == ("pgd-10", "fgsm")


@pytest.mark.parametrize("spec", [PGD, L2, replace(PGD, targeted=True)])
def test_nothing_is_left_on_the_host_or_read(
    model: nn.Module, batch: tuple[Tensor, Tensor], spec: AttackSpec, elsewhere: torch.device
) -> None:
    """Random starts, targets and steps are where the images are."""
    images, labels = (each.to(elsewhere) for each in batch)
    adversarial = attack(copy.deepcopy(model).to(elsewhere), images, labels, spec, range(COUNT), 0)
    assert adversarial.device == elsewhere
    assert adversarial.shape == images.shape


def test_nfgsm_steps_by_eps_from_noise_of_twice_eps(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """x + η + ε·sign ∇L(x + η), η uniform in [-2ε, 2ε], cut to [0, 1] alone (de Jorge et al. 2022)."""
    images, labels = batch
    spec = AttackSpec.of(AttackSettings(method="nfgsm", eps=0.1))
    noisy = attack(model, images, labels, replace(spec, step=0.0), range(COUNT), 0)
    found = attack(model, images, labels, spec, range(COUNT), 0)
    assert torch.equal(found, (noisy + 0.1 * gradient(model, noisy, labels).sign()).clamp(0, 1))
    noise = (noisy - images)[(noisy > 0) & (noisy < 1)]
    assert noise.abs().max() <= 0.2 + 1e-6
    assert noise.abs().max() > 0.19
    assert (found - images).abs().max() > 0.2
    with pytest.raises(ValueError, match="not an attack"):
        replace(spec, norm="L2")


def test_ssp_moves_features_without_a_label(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """From noise of deviation 1 cut to eps, up the squared distance of a feature map; no label counts (NRP)."""
    images, labels = batch
    spec = AttackSpec.of(AttackSettings(method="ssp", eps=0.1, step=0.02, steps=5))
    start = attack(model, images, labels, replace(spec, step=0.0), range(COUNT), 0)
    inside = (start > 0) & (start < 1)
    assert (start - images).abs()[inside].gt(0.1 - 1e-6).float().mean() == pytest.approx(0.92, abs=0.01)
    moved, features = start.clone().requires_grad_(), model[:4](images)
    (model[:4](moved) - features).square().sum().backward()
    first = attack(model, images, labels, replace(spec, steps=1), range(COUNT), 0)
    steps = (start + 0.02 * moved.grad.sign() - images).clamp(-0.1, 0.1)
    torch.testing.assert_close(first, (images + steps).clamp(0, 1))
    last = attack(model, images, labels.flip(0), spec, range(COUNT), 0)
    assert torch.equal(last, attack(model, images, labels, spec, range(COUNT), 0))
    distance = [(model[:4](each) - features).square().sum() for each in (start, first, last)]
    assert distance[0] < distance[1] < distance[2]
    assert (last - images).abs().max() <= 0.1 + 1e-6
    for wrong in ({"norm": "L2"}, {"targeted": True}):
        with pytest.raises(ValueError, match="not an attack"):
            replace(spec, **wrong)


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e-25, 1e-37, 1e25])
def test_a_step_in_l2_is_as_long_whatever_the_gradient_is(scale: float) -> None:
    """Of a sure model, whose gradient has squares below fp32, and of one whose are above; without one it stays."""
    weights = torch.linspace(0.1, 1, 48).view(3, 4, 4)
    images = torch.full((2, 3, 4, 4), 0.5)
    spec = replace(L2, eps=0.3, step=0.3, steps=1, random_start=False)
    moved = ascend(
        lambda x: (x * weights).flatten(1).sum(1) * scale, images, images, spec, images, lambda y, _: y.sum()
    )
    torch.testing.assert_close(moved - images, (0.3 * weights / weights.norm()).expand(2, -1, -1, -1))
    still = ascend(lambda x: 0 * x, images, images, spec, images, lambda y, _: y.sum())
    assert torch.equal(still, images)


def test_one_class_has_no_other_to_be_led_to() -> None:
    """A target is another class."""
    with pytest.raises(UserError, match=r"targeted=false"):
        random_targets(torch.zeros(2, dtype=torch.int64), 1, [0, 1], 0)
