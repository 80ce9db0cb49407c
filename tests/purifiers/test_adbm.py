"""ADBM: bridges in closed form, the attack of its training, DiffPure's samplers, refusals; trained and resumed."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maep import load_purifier
from maep.attacks.attack_spec import AttackSpec
from maep.config.data_settings import AttackSettings
from maep.config.implementations import OBJECTIVES, implementation
from maep.config.load import load_settings
from maep.config.training_settings import ObjectiveSettings, RobustSettings
from maep.models.denoiser import Denoiser
from maep.models.noise_schedule import alpha_bar, diffused
from maep.objectives import bridge, bridged, denoise
from maep.pipeline.execution import run_pipeline
from maep.purifiers.adbm import AdbmPurifier
from maep.purifiers.diffpure import DiffPurePurifier
from maep.runtime.errors import Paused, UserError
from maep.runtime.keyed_noise import normal_of, uniform_of
from maep.storage.atomic import read_json, sha256_file
from maep.training.pretrain import pretrain, seeded_purifier
from maep.training.robust import AgainstWhole, AttackedWhole, RobustTraining
from tests.purifiers.denoisers import pictures, random_purifier
from tests.small import digits, train_small
from tests.tiny import Problem

NETWORK = ["width=16", "multipliers=[1]", "unshuffle=2"]
SMALL = [
    "purifier.kind=adbm", *(f"adbm.{word}" for word in NETWORK), "objective.name=bridge", "pretrain.mask_ratio=0",
    "attack.online=true", "attack.steps=2", "pretrain.attacked=whole", "robust.check_every=0",
]  # fmt: skip
SEEDS = torch.tensor([5, 6, 7])


class Told:
    """A network that answers what it was told; keeps what it was asked."""

    latest = 0.2

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer

    def __call__(self, u: Tensor, times: Tensor) -> Tensor:
        self.u, self.times = u, times
        return self.answer


def test_who_takes_the_bridge_away_has_the_clean_image() -> None:
    """Whatever the attack; at the bridge's end u is the attacked image, noised; without an attack it is `denoise`."""
    clean = pictures().float()
    attacked = (clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    end = 0.1 * (1 + uniform_of(SEEDS, 3))
    told = Told(torch.zeros_like(clean))
    settings, noise = ObjectiveSettings(), normal_of(SEEDS, 1, clean.shape[1:])
    bridge(told, clean, attacked, None, settings, SEEDS)
    assert bool((told.times <= end).all())
    assert 0.1 <= float(end.min()) < float(end.max()) <= 0.2
    left, last = (alpha_bar(each).view(-1, 1, 1, 1) for each in (told.times, end))
    share = (1 / left - 1).sqrt() * last / (1 - last)
    knowing = Told(noise + share * 2 * (attacked - clean))
    torch.testing.assert_close(bridged(knowing, clean, attacked, SEEDS), clean, rtol=1e-4, atol=1e-5)
    assert bridge(knowing, clean, attacked, None, settings, SEEDS).total.max() < 1e-10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maep.objectives.uniform_of", lambda seeds, stream: torch.ones(len(seeds)))
        bridge(told, clean, attacked, None, settings, SEEDS)
        at_the_end = diffused(2 * attacked - 1, told.times, noise)
        torch.testing.assert_close(told.u, at_the_end, rtol=1e-4, atol=1e-5)
        plain, bridging = (each(told, clean, clean, None, settings, SEEDS).total for each in (denoise, bridge))
        assert torch.equal(plain, bridging)


def test_its_attack_is_on_what_the_loss_asks() -> None:
    """Within the budget it raises the classifier's loss of the estimate at each sample's own time and noise, more than
    at others'; no weight gets a gradient.
    """
    torch.manual_seed(0)
    network = Denoiser(16, [1], 1, 2, 0.2)
    nn.init.normal_(network.tail.weight, std=0.05)
    classifier, (images, labels) = train_small(), (part[:24] for part in digits())
    attack = AttackSettings(eps=0.2, step=0.2, steps=3)
    estimate = implementation(OBJECTIVES["bridge"].attacked)
    against = AgainstWhole((classifier,), attack, RobustSettings(), 0, estimate)
    robust = RobustTraining(against, network, torch.device("cpu"), torch.float32, compiled=False)
    own, others = torch.arange(24), torch.arange(24) + 100
    moved = robust.attack(
        dict(network.named_parameters()), images, labels, None, AttackSpec.of(attack), range(24), seeds=own
    )

    def loss(adversarial: Tensor, seeds: Tensor) -> float:
        with torch.no_grad():
            logits = classifier(bridged(network, images, adversarial, seeds).clamp(0, 1))
        return float(nn.functional.cross_entropy(logits, labels))

    assert (moved - images).abs().max() <= 0.2 + 1e-6
    risen = loss(moved, own) - loss(images, own)
    assert risen > 0.1
    assert risen > loss(moved, others) - loss(images, others)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_its_attack_is_one_graph() -> None:
    """torch.compile meets no break in what an attack on bridges asks, as it meets none in the loss."""
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).eval().requires_grad_(False)
    estimate = implementation(OBJECTIVES["bridge"].attacked)
    whole = AttackedWhole(Denoiser(8, [1], 1, 1, 0.2), (classifier,), torch.float32, estimate)
    images = pictures().float()
    torch._dynamo.reset()
    report = torch._dynamo.explain(whole)(images.clone().requires_grad_(), None, None, 0, (images, SEEDS))
    assert (report.graph_count, report.graph_break_count) == (1, 0)


def small_bridging(compiled: bool) -> RobustTraining:
    """An attack on the bridges of the smallest network, before a perceptron."""
    torch.manual_seed(0)
    network = Denoiser(8, [1], 1, 1, 0.2)
    nn.init.normal_(network.tail.weight, std=0.05)
    attack, estimate = AttackSettings(eps=0.2, step=0.05, steps=2), implementation(OBJECTIVES["bridge"].attacked)
    against = AgainstWhole((train_small(kind="perceptron"),), attack, RobustSettings(), 0, estimate)
    return RobustTraining(against, network, torch.device("cpu"), torch.float32, compiled=compiled)


def test_a_compiled_attack_on_bridges_is_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch.compile the adversarial images are the same but for a few signs of vanishing gradients, with the
    weights as they are now, other seeds and another number of images.

    By the backend that needs no C++ compiler; generating code for the CPU takes minutes on a slow machine.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    (images, labels), robust = (part[:6] for part in digits()), {each: small_bridging(each) for each in (False, True)}
    for count, seed, scale in ((6, 5, 1.0), (6, 9, 2.0), (4, 5, 2.0)):
        weights = {name: scale * tensor for name, tensor in small_bridging(False).whole.purifier.named_parameters()}
        args = (weights, images[:count], labels[:count], None, AttackSpec.of(robust[True].against.attack), range(count))
        plain, compiled = (each.attack(*args, seeds=torch.arange(count) + seed) for each in robust.values())
        assert ((plain - compiled).abs() > 1e-5).float().mean() < 0.02
        assert (plain - images[:count]).abs().max() > 0.05
    assert not robust[True].compiled.has_failed  # type: ignore[union-attr]


def test_it_purifies_as_diffpure_with_five_steps_of_ddim() -> None:
    """The same bits of the same weights; its own settings decide, and the gradient is plain autograd's."""
    ours = random_purifier(AdbmPurifier, SMALL)
    words = ["purifier.kind=diffpure", *(f"diffpure.{word}" for word in NETWORK), "objective.name=bridge"]
    theirs = random_purifier(
        DiffPurePurifier, [*words, "pretrain.mask_ratio=0", "diffpure.sampler=ddim", "diffpure.steps=5"]
    )
    assert (ours.network.time, ours.network.steps, ours.network.sampler) == (0.1, 5, "ddim")
    purified = []
    for each in (ours, theirs):
        each.reseed(3)
        purified.append(each(pictures()))
    assert torch.equal(*purified)
    assert ours.is_random
    assert ours.used_as(load_settings(None, [*SMALL, "adbm.steps=2"])).network.steps == 2

    def gradient() -> Tensor:
        images = pictures(2, 7).requires_grad_()
        ours.reseed(0)
        (found,) = torch.autograd.grad((ours(images) * pictures(2, 7).flip(0)).sum(), images)
        return found

    exact = gradient()
    ours.requires_grad_(True)
    torch.testing.assert_close(exact, gradient())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("robust.check_every=5", r"robust\.check_every=5: attacks held-out images .* objective\.name=bridge .* to 0$"),
        ("adbm.time=0.3", r"adbm\.time=0\.3: is at time 0\.3 of .* trained up to adbm\.latest=0\.2"),
        ("adbm.sampler=euler", r"adbm\.sampler=euler .*: choose one of sde, ode, ddpm, ddim"),
        ("objective.name=flow", r"objective\.name=flow: trains no network of purifier\.kind=adbm; .* denoise, bridge$"),
        ("attack.online=false", r"pretrain\.attacked=whole: changes with every step; set attack\.online=true"),
        ("pretrain.mask_ratio=0.5", r"objective\.name=bridge: is defined on whole images"),
    ],
)
def test_settings_that_do_not_fit_are_refused(word: str, message: str) -> None:
    """On the command line, before anything is made."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*SMALL, word])


def test_it_is_trained_first_without_attack_and_then_on_bridges(
    problem: Problem, run_dir: Path, tmp_path: Path
) -> None:
    """Paused under attack and gone on with: the same bits as in one go; the loss falls. A training may start from its
    network, and not from another kind's.
    """
    trained = [*SMALL, "pretrain.steps=10", "pretrain.save_every=4", "pretrain.lr=0.01", "robust.clean_until=0.5"]
    whole = Path(shutil.copytree(problem.prepared, tmp_path / "whole"))

    def train(run: Path, *more: str) -> None:
        settings = load_settings("digits", problem.arguments(run, *trained, *more)[1:])
        run_pipeline(settings, "pretrain", lambda _, given: pretrain(given))

    train(whole)
    with pytest.raises(Paused):
        train(run_dir, "pretrain.pause_at=7")
    train(run_dir)
    first, second = (sha256_file(run / "purifier/model.safetensors") for run in (whole, run_dir))
    assert first == second
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["attack_steps"] for line in lines] == [0] * 5 + [2] * 5
    assert lines[-1]["loss"] < 0.97 * lines[0]["loss"]  # a loss of 1 is that of predicting nothing
    assert set(read_json(whole / "stages/pretrain.json")["inputs"]) == {"shards", "attack"}
    loaded = load_purifier(whole)
    assert (loaded.kind, loaded.config()["purify"]["sampler"]["sampler"]) == ("adbm", "ddim")
    further = seeded_purifier(load_settings("digits", [*trained, f"model.init={whole}"]))
    for name, tensor in further.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[f"model.{name}"])
    for words, message in (
        (["adbm.width=24"], r"weights do not fit"),
        (["purifier.kind=flowpure", "objective.name=flow"], r"model\.init=.*: is of kind adbm, whose network"),
    ):
        own = [word for word in trained if words[0] == "adbm.width=24" or word.startswith("pretrain.mask")]
        with pytest.raises(UserError, match=message):
            seeded_purifier(load_settings("digits", [*own, *words, f"model.init={whole}"]))
