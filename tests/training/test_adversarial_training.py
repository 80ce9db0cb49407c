"""Adversarial training: formulas against definitions, modes and buffers, limits that are cross-entropy, resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from maep.__main__ import run
from maep.config.data_settings import ClassifierSettings
from maep.models.classifiers.resnet import CifarResNet
from maep.runtime.errors import UserError, exit_code
from maep.runtime.randomness import keyed_rng
from maep.training.adversarial_training import AdversarialTraining, DklTable, kl, untracked
from maep.training.batch_loss import Progress
from tests.training.test_classifier import settings_of, shards, start, train, wait_for_checkpoint

assert shards  # a fixture, used by name
MODES = ("pgd_at", "trades", "awp", "trades_awp", "dkl")
OPTIONS = ClassifierSettings(training="trades", train_eps=0.1, train_step=0.03, train_steps=4, trades_weight=2.0)
AT = Progress(seed=1, step=5, epoch=1, epochs=4)
CPU = torch.device("cpu")


def network(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    model = CifarResNet(8, classes)
    model(torch.rand(16, 3, 16, 16))  # batch norms with statistics of their own
    return model


def batch(count: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 16, 16, generator=generator)
    return images, torch.randint(classes, (count,), generator=generator)


def training(mode: str, model: nn.Module | None = None, **options: object) -> AdversarialTraining:
    settings = replace(OPTIONS, training=mode, **options)  # type: ignore[arg-type]
    return AdversarialTraining(model or network(), settings, 4, CPU)


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attack_mode", ["eval", "train"])
def test_the_attack_stays_in_its_ball_and_changes_nothing_else(mode: str, attack_mode: str) -> None:
    """Within the budget and [0, 1], the same bits for the same step, others for another; buffers and mode untouched."""
    model, (images, labels) = network().train(), batch()
    method, before = training(mode, model, attack_mode=attack_mode), copies(model)
    adversarial = method.attacked(images, labels, AT)
    eps = 0.1 * (AT.epoch + 1) / AT.epochs if mode == "dkl" else 0.1
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    assert torch.equal(method.attacked(images, labels, AT), adversarial)
    assert not torch.equal(method.attacked(images, labels, replace(AT, step=6)), adversarial)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    with untracked(model, "eval"), torch.no_grad():
        goal = (lambda x: kl(model(images), model(x))) if "trades" in mode else None
        raised = goal or (lambda x: F.cross_entropy(model(x), labels, reduction="none"))
        if attack_mode == "eval" and mode != "dkl":
            assert raised(adversarial).mean() > 1.02 * raised(images).mean() + 1e-6


@pytest.mark.parametrize("mode", ["pgd_at", "trades"])
def test_in_linf_the_bits_are_those_before_there_was_l2(mode: str) -> None:
    """The very arithmetic of then, so that a classifier that is trained again is the one that was."""
    model, (images, labels) = network().train(), batch()
    method = training(mode, model)
    rng = keyed_rng("classifier-attack", AT.seed, AT.step)
    if mode == "pgd_at":
        noise = (2 * torch.from_numpy(rng.random(tuple(images.shape), dtype="float32")) - 1) * 0.1
        moved = (images + 1.0 * noise).clamp(0, 1)
    else:
        moved = images + 0.001 * torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype="float32"))
    with untracked(model, "eval"):
        clean = model(images).detach()
        for _ in range(4):
            at = moved.detach().requires_grad_()
            loss = kl(clean, model(at)) if mode == "trades" else F.cross_entropy(model(at), labels, reduction="none")
            (gradient,) = torch.autograd.grad(loss.sum(), at)
            moved = moved + 0.03 * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, images - 0.1), images + 0.1).clamp(0, 1)
    assert torch.equal(method.attacked(images, labels, AT), moved)


L2 = {"train_norm": "L2", "train_eps": 0.5, "train_step": 0.2}


@pytest.mark.parametrize("mode", ["pgd_at", "trades"])
def test_in_l2_the_attack_takes_the_published_steps(mode: str) -> None:
    """From anywhere in the ball, or TRADES' noise of 0.001; along each image's gradient of length 1; into ball and box,
    which TRADES does the other way round, in steps of two budgets over their number, whatever train_step is."""
    model, (images, labels) = network().train(), batch()
    images = images.round()  # black and white: cut to [0, 1] before the ball is not cut after it
    method = training(mode, model, **L2)
    found = method.attacked(images, labels, AT)
    rng = keyed_rng("classifier-attack", AT.seed, AT.step)
    if mode == "pgd_at":
        moves = []
        for image in images:
            noise = torch.from_numpy(rng.standard_normal(image.shape, dtype="float32"))
            moves.append(noise / noise.norm() * rng.random() ** (1 / image.numel()))
        moved = (images + 0.5 * torch.stack(moves)).clamp(0, 1)
    else:
        moved = images + 0.001 * torch.from_numpy(rng.standard_normal(images.shape, dtype="float32"))
    model.eval()
    clean = model(images).detach()
    for _ in range(4):
        at = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(raised(mode, method, clean, model(at), labels), at)
        length = 0.2 if mode == "pgd_at" else 2 * 0.5 / 4
        moved = at.detach() + length * torch.stack([each / each.norm() for each in gradient])
        delta = (moved.clamp(0, 1) if mode == "trades" else moved) - images
        moved = images + torch.stack([each * min(1.0, 0.5 / float(each.norm())) for each in delta])
        moved = moved.clamp(0, 1)
    torch.testing.assert_close(found, moved, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["pgd_at", "awp", "trades", "trades_awp"])
def test_in_l2_the_attack_stays_in_its_ball_and_raises_its_loss(mode: str) -> None:
    """Each image within the budget and [0, 1]: also under late steps; a ball that is reached, where no image is cut."""
    model, (images, labels) = network().train(), batch()
    images = 0.4 + 0.2 * images
    for options in ({}, {"train_late_steps": 2, "train_late_from": 0.25}) if mode in ("pgd_at", "awp") else ({},):
        method = training(mode, model, **(L2 | options))
        for given in (images, images.round()):
            adversarial = method.attacked(given, labels, AT)
            norms = (adversarial - given).flatten(1).norm(dim=1)
            assert norms.max() <= 0.5 * (1 + 1e-5)
            assert 0 <= adversarial.min() <= adversarial.max() <= 1
            assert given is not images or norms.min() > 0.49
        base = method.base
        with untracked(model, "eval"), torch.no_grad():
            clean, adversarial = model(images), method.attacked(images, labels, AT)
            before, after = (float(raised(base, method, clean, model(each), labels)) for each in (images, adversarial))
            assert after > 1.01 * before + 1e-4


def test_late_steps_in_l2_are_those_of_pgd() -> None:
    """So many steps of 1.25 budgets together, whatever the attack before them was."""
    images, labels = batch()
    late = training("pgd_at", **L2, train_late_steps=2, train_late_from=0.25).attacked(images, labels, AT)
    pgd = training("pgd_at", **(L2 | {"train_step": 1.25 * 0.5 / 2}), train_steps=2).attacked(images, labels, AT)
    assert torch.equal(late, pgd)


@pytest.mark.parametrize(("mode", "most"), [("pgd_at", 1e-6), ("trades", 1e-3)])
def test_in_l2_an_image_is_attacked_as_it_is_alone(mode: str, most: float) -> None:
    """No image's start, step or projection knows of those that come after it in the batch; TRADES' first gradient, next
    to the image, is hardly more than rounding, which knows."""
    images, labels = batch()
    images = images * torch.tensor([1.0, 0.1, 1, 1, 0.3, 1])[:, None, None, None]
    many = training(mode, **L2).attacked(images, labels, AT)
    for count in (1, 2, 5):
        few = training(mode, **L2).attacked(images[:count], labels[:count], AT)
        torch.testing.assert_close(few, many[:count], rtol=0, atol=most)


def test_the_start_in_l2_is_uniform_in_the_ball() -> None:
    """Of steps of no length: in d dimensions the d-th power of the radius is uniform, and no direction is preferred."""
    images = torch.full((2000, 3, 1, 1), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 4))
    method = training("pgd_at", model, train_norm="L2", train_eps=0.4, train_step=1e-9, train_steps=1)
    moves = (method.attacked(images, torch.zeros(2000, dtype=torch.int64), AT) - images).flatten(1) / 0.4
    shares = moves.norm(dim=1) ** 3
    for share in (0.1, 0.5, 0.9):
        assert (shares < share).float().mean() == pytest.approx(share, abs=0.04)
    assert moves.mean(0).abs().max() < 0.04


@pytest.mark.parametrize("mode", ["pgd_at", "trades"])
def test_in_l2_an_image_without_a_gradient_stays_where_it_is(mode: str) -> None:
    """No division by 0; where only some images have a gradient, those move."""

    class Dark(nn.Module):
        """Has no gradient but for its first image."""

        def forward(self, images: Tensor) -> Tensor:
            first = images.flatten(1)[:1] @ torch.ones(images[0].numel(), 4).tril()
            return torch.cat([first, 0 * images.flatten(1)[1:, :4]])

    images, labels = batch()
    images = 0.4 + 0.2 * images
    one, four = (training(mode, Dark(), **L2, train_steps=n).attacked(images, labels, AT) for n in (1, 4))
    assert four.isfinite().all()
    torch.testing.assert_close(four[1:], one[1:], rtol=0, atol=1e-6)
    assert (four - one)[0].norm() > 0.01


def raised(mode: str, method: AdversarialTraining, clean: Tensor, moved: Tensor, labels: Tensor) -> Tensor:
    """What an attack raises, summed over images, from logits of the clean images, which are constant, and the moved."""
    if mode == "pgd_at":
        return F.cross_entropy(moved, labels, reduction="sum")
    p = clean.softmax(1)
    if mode == "trades":
        return (p * (p.log() - moved.log_softmax(1))).sum()
    assert method.table is not None
    n, a = (logits[:, :, None] - logits[:, None] for logits in (clean, moved))
    s = method.table.rows[labels]
    pairs = s[:, :, None] * s[:, None] * (n - a) ** 2
    return -(p * moved.log_softmax(1)).sum() + pairs.sum() / 4


@pytest.mark.parametrize("mode", ["pgd_at", "trades", "dkl"])
def test_the_attack_takes_the_published_steps(mode: str) -> None:
    """PGD-AT's from anywhere in the ball; TRADES' from noise of 0.001, also beyond black and white, up the divergence;
    DKL's up its own loss with both weights 1, in five steps of half of a budget that grows epoch by epoch.
    """
    model, (images, labels) = network().train(), batch()
    images = images.round()  # black and white: the start is not clipped where it is not
    method = training(mode, model, dkl_alpha=7.0, dkl_beta=9.0)
    if method.table is not None:
        method.table.rows.copy_(torch.rand(4, 4, generator=torch.Generator().manual_seed(2)))
    found = method.attacked(images, labels, AT)
    rng = keyed_rng("classifier-attack", AT.seed, AT.step)
    eps, step, steps = (0.1 / 2, 0.1 / 4, 5) if mode == "dkl" else (0.1, 0.03, 4)
    if mode == "pgd_at":
        moved = (images + eps * (2 * torch.from_numpy(rng.random(images.shape, dtype="float32")) - 1)).clamp(0, 1)
    else:
        moved = images + 0.001 * torch.from_numpy(rng.standard_normal(images.shape, dtype="float32"))
    model.eval()
    clean = model(images).detach()
    for _ in range(steps):
        at = moved.requires_grad_()
        (gradient,) = torch.autograd.grad(raised(mode, method, clean, model(at), labels), at)
        moved = (images + (at + step * gradient.sign() - images).clamp(-eps, eps)).clamp(0, 1).detach()
    differs = (found - moved).abs() > 1e-6
    assert differs.float().mean() < 0.01  # signs of gradients that are nearly 0
    assert (found - images).abs().max() == pytest.approx(eps, abs=1e-6)


def test_trades_is_its_formula() -> None:
    """CE of the clean images and beta times the batch's mean KL(f(x) ‖ f(x')), gradients through both."""
    model, (images, labels) = network().train(), batch()
    adversarial = training("trades", model).attacked(images, labels, AT)
    state = copies(model)
    loss = training("trades", model).loss(images, adversarial, labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    model.load_state_dict(state)
    clean, other = model(images), model(adversarial)
    p, q = clean.softmax(1), other.softmax(1)
    expected = -clean.log_softmax(1)[range(6), labels].mean() + 2.0 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, list(model.parameters())))


def test_dkl_is_its_formula() -> None:
    """The distances as a double sum over classes; all three terms."""
    model, (images, labels) = network().eval(), batch()
    method = training("dkl", model, dkl_alpha=3.0, dkl_beta=5.0)
    assert method.table is not None
    method.table.rows.copy_(torch.rand(4, 4))
    adversarial = (images + 0.05).clamp(0, 1)
    n, a = model(images), model(adversarial)
    expected = F.cross_entropy(n, labels) + 3.0 * F.cross_entropy(a, n.softmax(1).detach())
    for row, label in enumerate(labels):
        s = method.table.rows[label]
        for j in range(4):
            for k in range(4):
                gap = (n[row, j] - n[row, k]) - (a[row, j] - a[row, k])
                expected = expected + 5.0 * 0.25 / 6 * s[j] * s[k] * gap**2
    torch.testing.assert_close(method.loss(images, adversarial, labels), expected)


def test_dkls_distances_know_nothing_of_what_logits_share() -> None:
    """A number that all attacked logits have more changes no difference between two: in fp32 neither, and none is
    below 0, where the difference of two large squares was."""
    table, generator = DklTable(10, 4.0, CPU), torch.Generator().manual_seed(0)
    clean, change = (torch.randn(50, 10, generator=generator).double() for _ in range(2))
    table.rows.copy_(torch.rand(10, 10, generator=generator))
    labels = torch.arange(50) % 10
    d, s = 0.01 * change, table.rows.double()[labels]
    expected = (s[:, :, None] * s[:, None] * (d[:, :, None] - d[:, None]) ** 2).sum((1, 2)) / 4
    found = table.distances(clean.float(), (clean + d + 30).float(), labels)
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0)


def test_dkls_table_is_the_mean_of_the_epoch_before() -> None:
    """1/C in the first epoch; then each class's mean softmax; a class that was not seen keeps its row."""
    table = DklTable(3, 4.0, CPU)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 1, 1])
    table.gather(logits[:2], labels[:2])
    table.gather(logits[2:], labels[2:])
    table.begin(0)
    assert table.rows.eq(1 / 3).all()
    table.begin(1)
    soft = (logits / 4).softmax(1)
    torch.testing.assert_close(table.rows, torch.stack([soft[:2].mean(0), soft[2:].mean(0), torch.full((3,), 1 / 3)]))
    assert table.counts.sum() == 0


@pytest.mark.parametrize("mode", ["awp", "trades_awp", "dkl"])
def test_awp_moves_the_weights_and_back(mode: str) -> None:
    """Each matrix by gamma of its norm along the gradient, vectors not at all; taken back within rounding."""
    model, (images, labels) = network().train(), batch()
    method, before = training(mode, model, awp_gamma=0.01), copies(model)
    adversarial = method.attacked(images, labels, AT)
    with untracked(model, "train"):
        weak = float(method.loss(images, adversarial, labels).detach())
    loss = method.begin(images, labels, AT)
    assert float(loss.detach()) > weak
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).norm()
        expected = 0.01 * before[name].norm() if parameter.ndim > 1 else torch.tensor(0.0)
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)
    method.end()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=1e-6, atol=1e-7)
    once = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    forwards = 1 if mode == "awp" else 2  # those of the loss alone, of the clean and of the attacked images
    assert all(value == before[name] + forwards for name, value in once.items())


def test_awp_waits_for_its_epoch_and_can_be_off() -> None:
    """Before awp_warmup, and with gamma 0, it is the training without it, bit for bit."""
    images, labels = batch()
    plain = training("trades").begin(images, labels, AT)
    assert torch.equal(training("trades_awp", awp_gamma=0.0).begin(images, labels, AT), plain)
    assert torch.equal(training("trades_awp", awp_warmup=2).begin(images, labels, AT), plain)
    assert not torch.equal(training("trades_awp", awp_warmup=1).begin(images, labels, AT), plain)


@pytest.mark.parametrize("mode", ["pgd_at", "awp"])
def test_n_fgsm_is_one_step_of_the_budget_from_noise_of_twice_that(mode: str) -> None:
    """Not cut to the budget; train_step and train_steps do not matter; from the start that its noise gives."""
    model, (images, labels) = network().train(), batch()
    images = 0.4 + 0.2 * images  # no pixel reaches 0 or 1, which would hide the sizes
    method = training(mode, model, train_attack="nfgsm", train_eps=0.1, train_step=0.5, train_steps=7)
    adversarial = method.attacked(images, labels, AT)
    noise = torch.from_numpy(keyed_rng("classifier-attack", AT.seed, AT.step).random(images.shape, dtype="float32"))
    start = (images + 0.2 * (2 * noise - 1)).requires_grad_()
    with untracked(model, "eval"):
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), labels, reduction="sum"), start)
    torch.testing.assert_close(adversarial, (start + 0.1 * gradient.sign()).detach())
    assert 0.25 < (adversarial - images).abs().max() <= 0.3 + 1e-6


def test_late_epochs_are_attacked_by_pgd() -> None:
    """N-FGSM until `train_late_from` of the epochs are done, then the very PGD of so many steps of 1.25 budgets."""
    images, labels = batch()
    method = training("pgd_at", train_attack="nfgsm", train_late_steps=2, train_late_from=0.5)
    pgd = training("pgd_at", train_step=1.25 * 0.1 / 2, train_steps=2)
    early = training("pgd_at", train_attack="nfgsm").attacked(images, labels, AT)
    assert torch.equal(method.attacked(images, labels, AT), early)
    late = replace(AT, epoch=2)
    assert torch.equal(method.attacked(images, labels, late), pgd.attacked(images, labels, late))
    assert (pgd.attacked(images, labels, late) - images).abs().max() <= 0.1 + 1e-6


QUICK = [
    "classifier.train_steps=2", "classifier.train_eps=0.1", "classifier.train_step=0.06", "classifier.epochs=2",
]  # fmt: skip


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_trades_without_a_weight_is_cross_entropy(norm: str, shards: Path, tmp_path: Path) -> None:
    """beta = 0: the very bits of the standard training, batch norms' statistics included."""
    standard = train(settings_of(shards, tmp_path / "a", *QUICK[3:]))
    words = ["classifier.training=trades", "classifier.trades_weight=0", f"classifier.train_norm={norm}"]
    trades = train(settings_of(shards, tmp_path / "b", *QUICK, *words))
    tensors, others = load_file(standard), load_file(trades)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize(
    ("mode", "more"),
    [("trades_awp", []), ("dkl", ["classifier.averaging=epochs"]),
     ("awp", ["classifier.train_norm=L2", "classifier.averaging=steps"])],
)  # fmt: skip
def test_killed_training_ends_with_the_same_weights(mode: str, more: list[str], shards: Path, tmp_path: Path) -> None:
    """Killed by SIGKILL and started again: the bits of one that nobody stopped, and no other mode's."""
    words = [*QUICK, f"classifier.training={mode}", *more]
    whole = train(settings_of(shards, tmp_path / "whole", *words))
    process = start(shards, tmp_path / "killed", *words)
    wait_for_checkpoint(tmp_path / "killed", 4)
    process.kill()
    process.communicate()
    resumed = train(settings_of(shards, tmp_path / "killed", *words))
    assert resumed.read_bytes() == whole.read_bytes()
    assert resumed.parent.name == whole.parent.name
    other = settings_of(shards, tmp_path / "whole", *QUICK, "classifier.training=pgd_at")
    assert train(other).read_bytes() != whole.read_bytes()


def test_bad_settings_are_refused(shards: Path, tmp_path: Path) -> None:
    """An unknown training or norm; a budget in levels."""
    for word, message in (
        (
            "classifier.training=tradess",
            r"choose one of standard, pgd_at, trades, awp, trades_awp, dkl, soap, soap_rotation",
        ),
        ("classifier.train_eps=8", r"classifier\.train_eps=8: above 1.*8/255"),
        ("classifier.train_attack=nfgsm", r"classifier\.train_attack=nfgsm: only for .*pgd_at or awp, not standard"),
        ("classifier.train_late_steps=2", r"classifier\.train_late_steps=2: only for .*pgd_at or awp, not standard"),
        ("classifier.train_norm=L1", r"classifier\.train_norm=L1 .*choose one of Linf, L2"),
    ):
        with pytest.raises(UserError, match=message):
            settings_of(shards, tmp_path, word)


@pytest.mark.parametrize(
    ("words", "named"),
    [(["classifier.training=dkl"], "training=dkl"),
     (["classifier.training=awp", "classifier.train_attack=nfgsm"], "train_attack=nfgsm"),
     (["classifier.training=pgd_at", "classifier.train_attack=nfgsm", "classifier.train_late_steps=2"],
      "train_attack=nfgsm")],
)  # fmt: skip
def test_what_is_of_linf_alone_is_refused_in_l2(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and exit code 2, before anything is written; with late steps, which would be PGD's, too."""
    monkeypatch.chdir(tmp_path)
    assert exit_code(lambda: run(["run", "cfg=digits", "data.root=nowhere", *words, "classifier.train_norm=L2"])) == 2
    line = f"error: classifier.train_norm=L2: classifier.{named} is defined in Linf alone; set it to Linf"
    assert capsys.readouterr().err.strip() == line
    assert not list(tmp_path.iterdir())
