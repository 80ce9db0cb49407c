"""Every objective equals its formula in plain NumPy, its gradient finite differences."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maep.config.implementations import OBJECTIVES
from maep.config.load import load_settings
from maep.config.training_settings import ObjectiveSettings
from maep.objectives import Judge, Losses, maep, objective
from maep.runtime.errors import UserError
from maep.runtime.keyed_noise import normal_of, uniform_of


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
    alone = objective("maep")(model, *args, ObjectiveSettings()).total
    assert torch.equal(together[1:], alone)


class Linear:
    """P(z) = A·z and E(z) = B·z on flattened images, hidden pixels 0: every objective in closed form, float64."""

    def __init__(self) -> None:
        self.a = numbers(10, (48, 48)).astype(np.float64) / 24
        self.b = numbers(11, (8, 48)).astype(np.float64) / 24
        self.calls = 0

    def __call__(self, images: Tensor, visible: Tensor | None = None, *, latent: bool = False) -> Any:
        self.calls += 1
        masked = images.flatten(1)
        if visible is not None:
            masked = masked * torch.tensor(np.stack([pixels_of(row).ravel() for row in visible.numpy()]))
        purified = (masked @ torch.as_tensor(self.a).T).reshape(images.shape)
        return (purified, masked @ torch.as_tensor(self.b).T) if latent else purified


def pixels_of(visible: np.ndarray) -> np.ndarray:
    """A row of the patch mask as a pixel mask [3, 4, 4]."""
    return np.broadcast_to(np.kron(visible.reshape(2, 2), np.ones((2, 2))), (3, 4, 4))


def numpy_distance(a: np.ndarray, b: np.ndarray, where: np.ndarray, distance: str, smoothing: float) -> float:
    """d over the entries where `where` is 1."""
    size = np.abs(a - b)
    smooth = np.where(size < smoothing, size**2 / (2 * smoothing), size - smoothing / 2)
    return float({"l1": size, "mse": size**2, "smooth_l1": smooth}[distance][where == 1].mean())


def numpy_objective(name: str, n: int, visible: np.ndarray | None, settings: ObjectiveSettings) -> float:
    """The paper's formula for one image, as it is written there."""
    model, x, x_a = Linear(), CLEAN[n].astype(np.float64), ADVERSARIAL[n].astype(np.float64)
    shown = np.ones((3, 4, 4)) if visible is None else pixels_of(visible[n])
    everywhere, hidden = np.ones((3, 4, 4)), 1 - shown

    def p(image: np.ndarray) -> np.ndarray:
        return (model.a @ image.ravel()).reshape(3, 4, 4)

    def e(image: np.ndarray) -> np.ndarray:
        return model.b @ image.ravel()

    def d(a: np.ndarray, b: np.ndarray, where: np.ndarray = everywhere) -> float:
        return numpy_distance(a, b, where, settings.distance, settings.smoothing)

    beta, lam = settings.trades_weight, settings.rec_weight
    formulas = {
        "mae": lambda: d(p(x * shown), x, hidden),
        "purification": lambda: d(p(x_a), x),
        "mlm": lambda: d(p(x_a), x) if visible is None else d(p(x_a * shown), x_a, hidden),
        "maep": lambda: d(p(x_a * shown), x, shown) + lam * d(p(x_a * shown), x, hidden),
        "nim": lambda: d(p(x_a), x),
        "reconstruction": lambda: d(p(x_a), x) + d(p(x), x),
        "trades_pixel": lambda: d(p(x), x) + beta * d(p(x_a), p(x)),
        "trades_latent": lambda: d(p(x), x) + beta * d(e(x_a), e(x), np.ones(8)),
        "denoise": lambda: numpy_denoise(n, x, p),
        "bridge": lambda: numpy_bridge(n, x, x_a, p),
        "score": lambda: numpy_score(n, x, p),
        "energy": lambda: numpy_energy(n, x, x_a, p),
        "flow": lambda: numpy_flow(n, x, x_a, p),
        "likelihood": lambda: numpy_likelihood(x, p),
        "code": lambda: numpy_code(n, x, model, d) + settings.code_weight * numpy_code(n, x, model, None),
        "robust": lambda: numpy_robust(n, p(x_a * shown), p(x * shown), d(p(x_a * shown), x), settings),
        "feature": lambda: (
            d(numpy_features(p(x_a * shown)), numpy_features(x), np.ones(7))
            + settings.pixel_weight * d(p(x_a * shown), x)
        ),
        "stability": lambda: numpy_stability(p(x_a * shown), x, d(p(x_a * shown), x), settings),
    }
    return formulas[name]()


class TimedLinear:
    """ε̂(u, t) = (1 + t)·A·u."""

    latest = 0.2

    def __init__(self, model: Linear) -> None:
        self.model = model

    def __call__(self, u: Tensor, times: Tensor) -> Tensor:
        return self.model(u) * (1 + times.double())[:, None, None, None]


SEEDS = torch.tensor([77, 78])


def numpy_denoise(n: int, x: np.ndarray, p: Callable[[np.ndarray], np.ndarray]) -> float:
    """mean (ε̂(√ᾱ·(2x-1) + √(1-ᾱ)·ε, t) - ε)²; ᾱ the integral of β = 0.1 + 19.9 t by the trapezoidal rule."""
    t = 1e-5 + (0.2 - 1e-5) * float(uniform_of(SEEDS, 0)[n])
    noise = normal_of(SEEDS, 1, x.shape)[n].double().numpy()
    left = np.exp(-t * (0.1 + 0.1 + 19.9 * t) / 2)
    u = np.sqrt(left) * (2 * x - 1) + np.sqrt(1 - left) * noise
    return float(((p(u) * (1 + t) - noise) ** 2).mean())


def numpy_bridge(n: int, x: np.ndarray, a: np.ndarray, p: Callable[[np.ndarray], np.ndarray]) -> float:
    """mean (ε̂(u_t, t) - ε_t)² as ADBM writes u_t and ε_t, the attack in [-1, 1] units; T of [0.1, 0.2]."""
    end = 0.1 + 0.1 * float(uniform_of(SEEDS, 3)[n])
    t = 1e-5 + (end - 1e-5) * float(uniform_of(SEEDS, 0)[n])
    noise, attack = normal_of(SEEDS, 1, x.shape)[n].double().numpy(), 2 * a - 2 * x
    left, last = (np.exp(-time * (0.1 + 0.1 + 19.9 * time) / 2) for time in (t, end))
    u = np.sqrt(left) * (2 * x - 1) + np.sqrt(1 - left) * noise
    u = u + attack * last * (1 - left) / ((1 - last) * np.sqrt(left))
    wanted = noise + attack * np.sqrt(1 / left - 1) * last / (1 - last)
    return float(((p(u) * (1 + t) - wanted) ** 2).mean())


def numpy_score(n: int, x: np.ndarray, p: Callable[[np.ndarray], np.ndarray]) -> float:
    """mean (ε̂(2(x + σN) - 1) - N)², σ log-uniform from 0.01 to 0.2, whatever the time: it is always 0."""
    sigma = 0.01 * 20 ** float(uniform_of(SEEDS, 0)[n])
    noise = normal_of(SEEDS, 1, x.shape)[n].double().numpy()
    return float(((p(2 * (x + sigma * noise) - 1) - noise) ** 2).mean())


class QuadraticEnergy:
    """U = mean of (A·u)² over 100, told of noise of 0.1 and 0.3 of the chains' and the images'."""

    noise, data_noise = 0.1, 0.3

    def __init__(self, model: Linear) -> None:
        self.model = model

    def __call__(self, u: Tensor) -> Tensor:
        return self.model(u).flatten(1).square().mean(1) / 100


def numpy_energy(n: int, x: np.ndarray, a: np.ndarray, p: Callable[[np.ndarray], np.ndarray]) -> float:
    """(U(2x - 1 + 0.3·n) - U(u)) / (0.1²/2), u as it is given."""
    noise = normal_of(SEEDS, 1, x.shape)[n].double().numpy()
    image, chain = (float((p(u) ** 2).mean()) / 100 for u in (2 * x - 1 + 0.3 * noise, a))
    return (image - chain) / 0.005


def numpy_flow(n: int, x: np.ndarray, a: np.ndarray, p: Callable[[np.ndarray], np.ndarray]) -> float:
    """mean (v((1-t)·x₀ + t·x₁, t) - (x₁ - x₀))², from an attack of 0 to 1.6 times its strength, clipped."""
    t, k = (float(uniform_of(SEEDS, stream)[n]) for stream in (0, 2))
    start = 2 * np.clip((1 - 1.59375 * k) * x + 1.59375 * k * a, 0, 1) - 1
    end = 2 * x - 1
    return float(((p((1 - t) * start + t * end) * (1 + t) - (end - start)) ** 2).mean())


class CodingLinear:
    """c = sigmoid(B·x - noise), two bits a pixel of which 8 count, and D(c) = A·(c, c, …)."""

    noise, bits = 3.0, 2

    def __init__(self, model: Linear) -> None:
        self.model = model

    def __call__(self, images: Tensor, shift: Tensor, *, soft: bool) -> tuple[Tensor, Tensor]:
        assert soft
        code = (self.model(images, latent=True)[1] - shift.double().flatten(1)[:, :8]).sigmoid()
        return (code.repeat(1, 6) @ torch.as_tensor(self.model.a).T).reshape(images.shape), code


def numpy_code(n: int, x: np.ndarray, model: Linear, d: Callable[[np.ndarray, np.ndarray], float] | None) -> float:
    """d(D(c), x), or the mean square of c, at c = 1 / (1 + e^(σn - E(x)))."""
    noise = normal_of(SEEDS, 1, (2, 4, 4))[n].double().numpy().ravel()[:8]
    code = 1 / (1 + np.exp(3 * noise - model.b @ x.ravel()))
    return d((model.a @ np.tile(code, 6)).reshape(x.shape), x) if d else float((code**2).mean())


class MixingLinear:
    """Mixtures of two components: the 48 numbers of A·x, again and again."""

    def __init__(self, model: Linear) -> None:
        self.model = model

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(images).flatten(1).repeat(1, 7)[:, :320].reshape(-1, 20, 4, 4)


def numpy_likelihood(x: np.ndarray, p: Callable[[np.ndarray], np.ndarray]) -> float:
    """-log₂ of the mixture's probability of each pixel, over its three values, by plain loops."""
    numbers, v = np.tile(p(x).ravel(), 7)[:320].reshape(10, 2, 16), (2 * x - 1).reshape(3, 16)
    bits = []
    for pixel in range(16):
        weight, mean, scale, tie = np.split(numbers[:, :, pixel], [1, 4, 7])
        shift = np.tanh(tie) * v[[0, 0, 1], pixel][:, None]
        mean = mean + np.stack([0 * shift[0], shift[0], shift[1] + shift[2]])
        ends = [1 / (1 + np.exp((mean - v[:, pixel][:, None] - side / 255) / np.exp(scale))) for side in (1, -1)]
        shares = np.exp(weight[0]) / np.exp(weight[0]).sum()
        bits.append(-np.log2((shares * (ends[0] - ends[1]).prod(0)).sum()) / 3)
    return float(np.mean(bits))


CLASSES = np.random.default_rng(12).standard_normal((5, 48))  # a linear classifier f
LABELS = np.array([3, 0])


def numpy_stability(image: np.ndarray, clean: np.ndarray, pixels: float, settings: ObjectiveSettings) -> float:
    """CE(f(P(x_a)), argmax f(x)) + λ_p·d, through a softmax."""
    logits = CLASSES @ image.ravel()
    shares = np.exp(logits) / np.exp(logits).sum()
    return float(-np.log(shares[(CLASSES @ clean.ravel()).argmax()]) + settings.pixel_weight * pixels)


def numpy_robust(n: int, attacked: np.ndarray, kept: np.ndarray, pixels: float, settings: ObjectiveSettings) -> float:
    """CE(f(P(x_a)), y) + λ_c·CE(f(P(x)), y) + β·KL(f(P(x)) ‖ f(P(x_a))) + λ_p·d, through softmaxes."""
    a, k = (np.exp(CLASSES @ image.ravel()) for image in (attacked, kept))
    a, k = a / a.sum(), k / k.sum()
    entropies = -np.log(a[LABELS[n]]) - settings.clean_weight * np.log(k[LABELS[n]])
    return float(entropies + settings.kl_weight * (k * np.log(k / a)).sum() + settings.pixel_weight * pixels)


FEATURES = np.random.default_rng(13).standard_normal((7, 48)) / 7  # a linear feature map φ
JUDGE = Judge(
    lambda images: images.flatten(1) @ torch.tensor(CLASSES).T, torch.tensor(LABELS),
    lambda images: images.flatten(1) @ torch.tensor(FEATURES).T,
)  # fmt: skip


def numpy_features(image: np.ndarray) -> np.ndarray:
    """φ of one image."""
    return FEATURES @ image.ravel()


WEIGHTS = {"clean_weight": 0.6, "kl_weight": 2.0, "pixel_weight": 0.4, "code_weight": 0.2}
NETWORKS: dict[str, Callable[[Linear], Any]] = {
    "images": lambda model: model, "denoiser": TimedLinear, "score": TimedLinear, "velocity": TimedLinear,
    "energy": QuadraticEnergy,
    "code": CodingLinear, "likelihood": MixingLinear,
}  # fmt: skip


CASES = [
    ("mae", VISIBLE), ("purification", None), ("mlm", VISIBLE), ("mlm", None), ("maep", VISIBLE),
    ("reconstruction", None), ("trades_pixel", None), ("trades_latent", None), ("robust", None), ("robust", VISIBLE),
    ("nim", None), ("stability", None), ("stability", VISIBLE), ("denoise", None), ("bridge", None),
    ("score", None), ("energy", None), ("flow", None), ("code", None), ("likelihood", None), ("feature", None),
    ("feature", VISIBLE),
]  # fmt: skip


def total_of(name: str, model: Linear, visible: np.ndarray | None, settings: ObjectiveSettings) -> Tensor:
    """Losses [2] of the two hand-made pairs, in float64."""
    clean, adversarial = (torch.tensor(images.astype(np.float64)) for images in (CLEAN, ADVERSARIAL))
    mask = None if visible is None else torch.tensor(visible)
    asked: list[Judge | Tensor] = [JUDGE] if OBJECTIVES[name].classifies else []
    asked += [SEEDS] if OBJECTIVES[name].draws else []
    network = NETWORKS[OBJECTIVES[name].network](model)
    return objective(name)(network, clean, adversarial, mask, settings, *asked).total


def test_every_objective_has_a_case() -> None:
    """An objective that is added must be added here."""
    assert {name for name, _ in CASES} == set(OBJECTIVES)


@pytest.mark.parametrize("distance", ["l1", "mse", "smooth_l1"])
@pytest.mark.parametrize(("name", "visible"), CASES)
def test_every_objective_equals_its_formula(name: str, visible: np.ndarray | None, distance: str) -> None:
    """Each image's loss, at λ = 0.7 and β = 3, in every distance; the model is called once (Eq. 1, 2, 9-16)."""
    settings = ObjectiveSettings(distance=distance, rec_weight=0.7, trades_weight=3.0, smoothing=0.3, **WEIGHTS)
    model = Linear()
    found = total_of(name, model, visible, settings)
    expected = [numpy_objective(name, n, visible, settings) for n in range(2)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6 if OBJECTIVES[name].draws else 1e-10)  # fp32 draws
    assert model.calls == 1


@pytest.mark.parametrize("distance", ["l1", "mse", "smooth_l1"])
@pytest.mark.parametrize(("name", "visible"), CASES)
def test_every_gradient_equals_finite_differences(name: str, visible: np.ndarray | None, distance: str) -> None:
    """Along a random direction of the model's weights, encoder and decoder, in float64."""
    settings = ObjectiveSettings(distance=distance, rec_weight=0.7, trades_weight=3.0, smoothing=0.3, **WEIGHTS)
    model, step = Linear(), 1e-6
    along = [np.random.default_rng(20 + k).standard_normal(m.shape) for k, m in enumerate((model.a, model.b))]

    def at(length: Any) -> Tensor:
        moved = Linear()
        moved.a = torch.tensor(model.a) + length * torch.tensor(along[0])
        moved.b = torch.tensor(model.b) + length * torch.tensor(along[1])
        return total_of(name, moved, visible, settings).sum()

    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(at(zero), zero)
    assert gradient.item() == pytest.approx(((at(step) - at(-step)) / (2 * step)).item(), rel=1e-6)
    assert abs(gradient.item()) > 1e-3


def test_masks_that_do_not_fit_are_refused() -> None:
    """Whole-image objectives take no mask, and mae needs one."""
    for name, visible in (("trades_pixel", VISIBLE), ("trades_latent", VISIBLE), ("reconstruction", VISIBLE),
                          ("purification", VISIBLE), ("nim", VISIBLE), ("denoise", VISIBLE), ("flow", VISIBLE),
                          ("bridge", VISIBLE),
                          ("energy", VISIBLE),
                          ("code", VISIBLE), ("likelihood", VISIBLE), ("mae", None)):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            total_of(name, Linear(), visible, ObjectiveSettings())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["objective.name=purification"], "set pretrain.mask_ratio=0"),
        (["objective.name=mae", "pretrain.mask_until=0.5"], "pretrain.mask_until=1"),
        (["objective.name=mae"], "set finetune.mask_ratio above 0"),
        (["objective.name=nim"], "set pretrain.mask_ratio=0"),
        (["objective.name=nim", "pretrain.mask_ratio=0", "attack.online=true"], "leave out attack.online"),
        (["objective.name=mlm"], "pretrain.mask_until within (0, 1)"),
        (["objective.name=denoise", "pretrain.mask_ratio=0"], "trains no network of purifier.kind=maep; choose one of"),
        (
            ["purifier.kind=diffpure", "pretrain.mask_ratio=0"],
            "objective.name=maep: trains no network of purifier.kind=diffpure; choose one of denoise",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], told: str) -> None:
    """One line that names the setting to change, before anything runs."""
    with pytest.raises(UserError) as refused:
        load_settings(None, overrides)
    assert told in str(refused.value)


def test_robust_without_clean_terms_purifies_no_clean_image() -> None:
    """Half the work: the model sees the attacked images alone, and the loss is that of the formula."""
    settings, model = ObjectiveSettings(clean_weight=0.0, pixel_weight=0.4), Linear()
    seen = []
    clean, adversarial = (torch.tensor(images.astype(np.float64)) for images in (CLEAN, ADVERSARIAL))

    def counted(images: Tensor, visible: Tensor | None) -> Any:
        seen.append(len(images))
        return model(images, visible)

    found = objective("robust")(counted, clean, adversarial, None, settings, JUDGE).total
    np.testing.assert_allclose(found.numpy(), [numpy_objective("robust", n, None, settings) for n in range(2)])
    assert seen == [2]


def test_a_discriminator_is_fooled_and_taught() -> None:
    """λ_g times what fools a linear C and what C learns by, beside the other terms; each moves its own side."""
    settings = ObjectiveSettings(gan_weight=0.3, **WEIGHTS)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1, bias=False).double(), torch.nn.Flatten(0))
    clean, adversarial = (torch.tensor(images.astype(np.float64)) for images in (CLEAN, ADVERSARIAL))
    made = objective("feature")(Linear(), clean, adversarial, None, settings, JUDGE, network)
    row = network[1].weight.detach().numpy()[0]
    for n in range(2):
        margin = float(row @ (Linear().a @ ADVERSARIAL[n].astype(np.float64).ravel() - CLEAN[n].ravel()))
        terms = 0.3 * np.log1p(np.exp(-margin)) + np.log1p(np.exp(margin))
        assert made.total[n].item() == pytest.approx(numpy_objective("feature", n, None, settings) + terms, rel=1e-5)
    assert set(made.parts) == {"l_feature", "l_pixel", "l_gan", "l_discriminator"}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_teachers_answer_takes_the_labels_place(share: float) -> None:
    """Both cross-entropies ask for the mixture, against NumPy; the rest of the loss is as without a teacher."""
    soft = np.random.default_rng(5).dirichlet(np.ones(len(CLASSES)), 2)
    settings = ObjectiveSettings(**{**WEIGHTS, "soft_weight": share})
    judge = dataclasses.replace(JUDGE, soft=torch.tensor(soft))
    clean, adversarial = (torch.tensor(images.astype(np.float64)) for images in (CLEAN, ADVERSARIAL))
    taught, plain = (objective("robust")(Linear(), clean, adversarial, None, settings, each) for each in (judge, JUDGE))
    for part, images in (("l_adversarial", ADVERSARIAL), ("l_clean", CLEAN)):
        for n in range(2):
            logits = CLASSES @ (Linear().a @ images[n].astype(np.float64).ravel())
            wanted = share * soft[n] + (1 - share) * np.eye(len(CLASSES))[LABELS[n]]
            expected = -(wanted * (logits - np.log(np.exp(logits).sum()))).sum()
            assert float(taught.parts[part][n]) == pytest.approx(expected, rel=1e-9)
    for name in ("l_pixel", "l_kl"):
        torch.testing.assert_close(taught.parts[name], plain.parts[name])
    changed = [taught.parts[name] - plain.parts[name] for name in ("l_adversarial", "l_clean")]
    torch.testing.assert_close(taught.total - plain.total, changed[0] + settings.clean_weight * changed[1])
