"""AutoAttack in steps gives exactly what pyautoattack gives in one go, and asks the same questions."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from maep.attacks.attack_state import AttackState
from maep.attacks.autoattack import AttackSuite, autoattack, check_model, square_warning
from maep.config.attack_names import SUITES, VERSIONS, check_classes
from maep.runtime.errors import UserError
from tests.small import digits, train_small

# Some fall to APGD-CE, some to APGD-T only, one is misclassified, some stand.
SAMPLES = [14, 15, 20, 22, 32, 100, 5, 0, 1, 2, 3, 4, 41, 112, 113, 118]
BUDGETS = {"Linf": 0.1, "L2": 1.6}
HOW = {"seed": 3, "batch_size": 6}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """FAB and Square with fewer iterations, four targets, two restarts at most; in pyautoattack's own runs too."""
    original = AutoAttack.__init__

    def shortened(self: AutoAttack, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.fab.n_iter, self.square.n_queries = 8, 150
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 4
        for attack in (self.apgd, self.fab):
            attack.n_restarts = min(attack.n_restarts, 2)
        self.apgd.eot_iter = min(self.apgd.eot_iter, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoAttack, "__init__", shortened)
        yield


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return train_small()


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[SAMPLES], labels[SAMPLES]


@pytest.fixture(scope="module")
def uninterrupted(model: nn.Module, samples: tuple[Tensor, Tensor]) -> AttackState:
    return autoattack(model, *samples, norm="Linf", eps=BUDGETS["Linf"], **HOW)


def assert_same(one: AttackState, other: AttackState) -> None:
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.predictions, other.predictions)
    assert torch.equal(one.robust, other.robust)
    assert one.survivors == other.survivors


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_equals_pyautoattack(
    model: nn.Module, samples: tuple[Tensor, Tensor], norm: str, uninterrupted: AttackState
) -> None:
    """The same batches and seed give the images and predictions of plain pyautoattack, bit for bit."""
    plain = AutoAttack(model, norm=norm, eps=BUDGETS[norm], seed=HOW["seed"], version="standard")
    images, predictions = plain.run_standard_evaluation(*samples, batch_size=HOW["batch_size"])
    ours = uninterrupted if norm == "Linf" else autoattack(model, *samples, norm=norm, eps=BUDGETS[norm], **HOW)
    assert torch.equal(ours.images, images)
    assert torch.equal(ours.predictions, predictions)
    survivors = ours.survivors
    assert list(survivors) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert survivors["clean"] > survivors["apgd-ce"] > survivors["apgd-t"] > 0


@pytest.mark.parametrize("seed", [0, 11])
@pytest.mark.parametrize("kind", ["convolutions", "perceptron"])
def test_cross_check(kind: str, seed: int) -> None:
    """On two nets and with two seeds, 24 images, every image and prediction is pyautoattack's own, bit for bit."""
    net, (images, labels) = train_small(kind=kind), digits()
    images, labels = images[100:124], labels[100:124]
    plain = AutoAttack(net, norm="Linf", eps=0.1, seed=seed, version="standard")
    expected, predictions = plain.run_standard_evaluation(images, labels, batch_size=15)
    ours = autoattack(net, images, labels, norm="Linf", eps=0.1, seed=seed, batch_size=15)
    assert torch.equal(ours.images, expected)
    assert torch.equal(ours.predictions, predictions)
    assert 0 < ours.survivors["square"] < ours.survivors["clean"]


LISTS = [
    AttackSuite("plus"), AttackSuite("rand"), AttackSuite("custom", ("apgd-ce", "square")),
    AttackSuite("custom", ("fab-t", "fab", "apgd-dlr")),
]  # fmt: skip


@pytest.mark.parametrize("suite", LISTS, ids=lambda suite: suite.version + "+".join(suite.attacks))
def test_other_versions_equal_pyautoattack(
    model: nn.Module, samples: tuple[Tensor, Tensor], suite: AttackSuite, tmp_path: Path
) -> None:
    """`plus`, `rand` and custom lists give pyautoattack's images too, also when resumed after the first attack."""
    attacks = list(suite.attacks) or None
    plain = AutoAttack(model, norm="Linf", eps=0.1, seed=3, version=suite.version, attacks=attacks)
    expected, predictions = plain.run_standard_evaluation(*samples, batch_size=6)
    path, cpu = tmp_path / "state.safetensors", torch.device("cpu")

    def save(state: AttackState) -> None:
        if len(state.survivors) == 2:
            state.save(path, "it")

    how = {"norm": "Linf", "eps": 0.1, **HOW, "suite": suite}
    ours = autoattack(model, *samples, **how, on_state=save)
    for state in (ours, autoattack(model, *samples, **how, state=AttackState.load(path, "it", cpu))):
        assert torch.equal(state.images, expected)
        assert torch.equal(state.predictions, predictions)
        assert list(state.survivors) == ["clean", *plain.attacks_to_run]


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"])
def test_one_attack_alone(model: nn.Module, samples: tuple[Tensor, Tensor], name: str) -> None:
    """One attack alone is the one of `standard`, run by pyautoattack itself."""
    plain = AutoAttack(model, norm="Linf", eps=0.2, seed=3, version="standard")
    plain.attacks_to_run = [name]
    expected, _ = plain.run_standard_evaluation(*samples, batch_size=6)
    ours = autoattack(model, *samples, norm="Linf", eps=0.2, **HOW, suite=AttackSuite(single=name, queries=150))
    assert torch.equal(ours.images, expected)
    assert ours.survivors[name] < ours.survivors["clean"]


class _Stop(Exception):
    pass


@pytest.mark.parametrize("last", ["clean", "apgd-t", "fab-t"])
def test_resumes_after_any_attack(
    model: nn.Module, samples: tuple[Tensor, Tensor], uninterrupted: AttackState, tmp_path: Path, last: str
) -> None:
    """Stopped after any attack and continued from the saved file, the result is the uninterrupted one."""
    path = tmp_path / "state.safetensors"

    def save_and_stop(state: AttackState) -> None:
        state.save(path, "it")
        if last in state.survivors:
            raise _Stop

    how = {"norm": "Linf", "eps": BUDGETS["Linf"], **HOW}
    with pytest.raises(_Stop):
        autoattack(model, *samples, **how, on_state=save_and_stop)
    torch.manual_seed(99)
    state = AttackState.load(path, "it", torch.device("cpu"))
    assert state is not None
    assert list(state.survivors)[-1] == last
    assert_same(autoattack(model, *samples, **how, state=state), uninterrupted)


def test_keeps_the_budget(samples: tuple[Tensor, Tensor], uninterrupted: AttackState) -> None:
    """No image leaves the ball or [0, 1]; images that stood are the clean ones."""
    images, _ = samples
    assert (uninterrupted.images - images).abs().max() <= BUDGETS["Linf"] + 1e-6
    assert uninterrupted.images.min() >= 0
    assert uninterrupted.images.max() <= 1
    assert torch.equal(uninterrupted.images[uninterrupted.robust], images[uninterrupted.robust])


def test_fewer_than_ten_classes() -> None:
    """With four classes the targeted attacks take three targets, as plain pyautoattack set to do so."""
    model, (images, labels) = train_small(4), digits(4)
    images, labels = images[:8], labels[:8]
    plain = AutoAttack(model, norm="Linf", eps=0.12, seed=0, version="standard")
    plain.apgd_targeted.n_target_classes = plain.fab.n_target_classes = 3
    expected, _ = plain.run_standard_evaluation(images, labels, batch_size=8)
    ours = autoattack(model, images, labels, norm="Linf", eps=0.12, seed=0, batch_size=8)
    assert torch.equal(ours.images, expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes(classes: int) -> None:
    """Two or three classes, which the targeted DLR loss cannot rank, end in one clear line."""
    model, (images, labels) = train_small(classes, steps=5), digits(classes)
    with pytest.raises(UserError, match=f"apgd-t: needs at least 4 classes.*has {classes}; choose pgd-K"):
        autoattack(model, images[:4], labels[:4], norm="Linf", eps=0.1, seed=0, batch_size=4)


@pytest.mark.parametrize("version", VERSIONS)
def test_suites_are_those_of_the_library(model: nn.Module, version: str) -> None:
    """What is asked of the classes before an attack is asked of the attacks that it runs."""
    assert tuple(AutoAttack(model, version=version, eps=0.1).attacks_to_run) == SUITES[version]


@pytest.mark.parametrize(
    ("name", "fewest"),
    [("autoattack-standard", 4), ("autoattack-plus", 4), ("autoattack-rand", 3), ("apgd-dlr", 3), ("square-9", 1),
     ("autoattack-custom:apgd-ce+fab-t", 1), ("autoattack-custom:square+apgd-t", 4), ("pgd-20", 1)],
)  # fmt: skip
def test_how_many_classes_an_attack_needs(name: str, fewest: int) -> None:
    """So many pass, one less is refused, by the setting that names it."""
    check_classes([name], "x.attacks", fewest)
    if fewest > 1:
        message = f"^x.attacks: {re.escape(name)}: needs at least {fewest} classes .* images have {fewest - 1}; choose"
        with pytest.raises(UserError, match=message):
            check_classes(["fgsm", name], "x.attacks", fewest - 1)


def test_state_file_of_something_else(
    uninterrupted: AttackState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A state of another identity is not taken, a damaged or truncated one is not taken either and is named."""
    path, cpu = tmp_path / "state.safetensors", torch.device("cpu")
    uninterrupted.save(path, "mine")
    assert AttackState.load(path, "other", cpu) is None
    loaded = AttackState.load(path, "mine", cpu)
    assert loaded is not None
    assert_same(loaded, uninterrupted)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert AttackState.load(path, "mine", cpu) is None
    path.write_bytes(data[:-50])
    assert AttackState.load(path, "mine", cpu) is None
    assert capsys.readouterr().out.replace("\n", "").count("damaged") == 2


def test_check_model(model: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    """Probabilities, random outputs and a wrong number of classes are noticed; a plain model passes."""

    class Noisy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return model(images + 0.1 * torch.rand_like(images))

    assert check_model(model, *samples, 10) == []
    assert "probability distribution" in check_model(nn.Sequential(model, nn.Softmax(1)), *samples, 10)[0]
    (warning,) = check_model(Noisy(), *samples, 10)
    assert "randomized" in warning
    assert not warning.endswith("."), "reports put it themselves"
    with pytest.raises(UserError, match="gives 10 logits, the test set has 7 classes"):
        check_model(model, *samples, 7)


def test_square_warning() -> None:
    """Square breaking over 0.2 points that the gradient attacks left is called a sign of unreliability."""
    assert square_warning({"clean": 95, "apgd-ce": 60, "square": 60}, 100) == []
    assert "unreliable" in square_warning({"clean": 95, "apgd-ce": 60, "square": 50}, 100)[0]


def test_zero_gradients_are_reported(samples: tuple[Tensor, Tensor], model: nn.Module) -> None:
    """A model that rounds its input has no gradients: the attack's warning is kept with the result."""

    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return model((images * 4).round() / 4)

    images, labels = samples
    state = autoattack(Rounded(), images[:2], labels[:2], norm="Linf", eps=0.3, seed=0, batch_size=2)
    assert state.warnings == ["some points had zero gradient: gradient-based attacks may be unreliable"]
