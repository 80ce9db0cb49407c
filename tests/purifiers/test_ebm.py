"""Hill et al.'s energy model: its network, walks in closed form, exact gradients, chains that are checkpointed."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import conv2d, leaky_relu

from maep import load_purifier
from maep.attacks.threat_models import StraightThrough
from maep.cli.checkpoint import main as checkpoint_command
from maep.config.load import load_settings
from maep.models.energy_network import EnergyNetwork, chains_after
from maep.pipeline.execution import run_pipeline
from maep.purifiers.ebm import EbmPurifier
from maep.purifiers.stepwise import GraphMemory, stepwise, walk
from maep.runtime.errors import Paused, UserError
from maep.storage.atomic import sha256_file
from maep.storage.tensor_files import ShardedTensors
from maep.training.chains import Chains
from maep.training.pretrain import pretrain
from tests.purifiers.denoisers import assert_same_in_inference_mode
from tests.tiny import Problem

SMALL = ["purifier.kind=ebm", "ebm.width=4", "objective.name=energy", "pretrain.mask_ratio=0"]


def purifier(*words: str) -> EbmPurifier:
    """Of random weights large enough to move an image, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = EbmPurifier.from_settings(load_settings(None, [*SMALL, "ebm.steps=3", *words]))
        for weight in made.model.parameters():
            nn.init.normal_(weight, std=0.15)
    return made.double().eval().requires_grad_(False)


def pictures(count: int = 2, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def published(width: int = 32) -> dict[str, Tensor]:
    """The tensors of the authors' file by the specification's table, random."""
    channels, kernels = [3, width, 2 * width, 4 * width, 8 * width, 1], [3, 4, 4, 4, 4]
    generator, tensors = torch.Generator().manual_seed(0), {}
    for number, (kernel, before, after) in enumerate(zip(kernels, channels, channels[1:], strict=False)):
        scale = 1 / math.sqrt(before * kernel**2)
        tensors[f"f.{2 * number}.weight"] = scale * torch.randn(after, before, kernel, kernel, generator=generator)
        tensors[f"f.{2 * number}.bias"] = 0.1 * torch.randn(after, generator=generator)
    return tensors


def test_the_authors_file_is_taken_in_key_for_key(tmp_path: Path) -> None:
    """0.69 million parameters; the energy is what the layers say; another width is read off; a renamed key is named."""
    tensors = published()
    assert sum(tensor.numel() for tensor in tensors.values()) == 693_569
    torch.save(tensors, tmp_path / "ebm.pth")
    words = ["import", str(tmp_path / "ebm.pth"), "--kind", "ebm", "--to", str(tmp_path / "purifier")]
    assert checkpoint_command(words) == 0
    subject = load_purifier(tmp_path / "purifier")
    assert isinstance(subject, EbmPurifier)
    assert (subject.network.noise, subject.network.steps, subject.network.chain_steps) == (0.01, 1500, 100)
    assert all(torch.equal(subject.weights()[name], tensor) for name, tensor in tensors.items())
    x = u = 2 * pictures().float() - 1
    for number, options in enumerate([{"padding": 1}, *[{"stride": 2, "padding": 1}] * 3, {}]):
        x = conv2d(x, tensors[f"f.{2 * number}.weight"], tensors[f"f.{2 * number}.bias"], **options)  # type: ignore[arg-type]
        x = x if number == 4 else leaky_relu(x, 0.05)
    torch.testing.assert_close(subject.model(u), x.flatten())
    torch.save(published(4), tmp_path / "small.pth")
    assert EbmPurifier.from_published(tmp_path / "small.pth").network.width == 4
    torch.save({name.replace("f.2.", "f.3."): tensor for name, tensor in tensors.items()}, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"other\.pth: weights do not fit: f\.2\.weight \(missing\), f\.2\.bias \(missing"
    ):
        EbmPurifier.from_published(tmp_path / "other.pth")


class Quadratic(nn.Module):
    """U = Σ u²·k/2, whose walk has a stationary deviation in closed form."""

    factor, noise = 1, 0.1

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, u: Tensor) -> Tensor:
        return self.k / 2 * u.square().flatten(1).sum(1)


def test_a_walk_draws_from_its_energy() -> None:
    """u ← (1-k)·u + ε·n ends with the variance ε²/(1-(1-k)²), whatever it began with; the gradient shrinks alike."""
    subject = purifier("ebm.noise=0.1", "ebm.steps=60", "ebm.activation=silu")
    subject.model = Quadratic(0.2)
    images = pictures(8, 16).requires_grad_()
    states = 2 * subject(images) - 1
    inside = states.abs() < 1
    assert inside.all()
    assert float(states.detach().std()) == pytest.approx(0.1 / math.sqrt(1 - 0.8**2), rel=0.05)
    (gradient,) = torch.autograd.grad(subject(images).sum(), images)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.8**60))


def test_seeds_decide_and_each_image_is_alone() -> None:
    """The same key, the same bits; in a batch as by itself; of other sizes than the network's own too."""
    subject = purifier()
    for side in (32, 20):
        images = pictures(side=side)
        subject.reseed(0)
        together = subject(images)
        subject.reseed(0)
        torch.testing.assert_close(torch.cat([subject(image) for image in images.split(1)]), together)
        subject.reseed(1)
        assert (subject(images) - together).abs().max() > 1e-3
        assert (together - images).abs().max() > 0.01


@pytest.mark.parametrize("side", [31, 20, 33])
def test_images_of_other_sizes_walk_as_part_of_a_larger_one(side: int) -> None:
    """Continued by their border to what the network sees as it is, where each pixel takes its own steps; cut out."""
    subject, seeds = purifier("ebm.steps=1"), torch.tensor([5, 6])
    images = 0.3 + 0.4 * pictures(side=side)
    more = (32 if side < 32 else 40) - side
    whole = F.pad(2 * images - 1, (0, more, 0, more), mode="replicate")
    expected = (walk(whole, whole, subject.steps(seeds))[:, :, :side, :side] + 1) / 2
    torch.testing.assert_close(subject._purified(images, seeds, GraphMemory(0)), expected)
    assert subject.images_at_once(8, 8) == subject.images_at_once(32, 32)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_it_walks_where_a_caller_derives_nothing(activation: str) -> None:
    """In torch.inference_mode, whose tensors autograd refuses, to the same bits."""
    assert_same_in_inference_mode(purifier(f"ebm.activation={activation}"), pictures())


def test_exact_gradients_are_hessian_products() -> None:
    """With a smooth energy: plain autograd's through three steps, near finite differences, not BPDA's."""
    subject, seeds, side = purifier("ebm.activation=silu"), torch.tensor([5, 6]), pictures().flip(0)

    def loss(u: Tensor, follow: bool) -> Tensor:
        state = (stepwise if follow else walk)(subject.start(u, seeds), u, subject.steps(seeds))
        return (state * side).sum()

    u = (2 * pictures() - 1).requires_grad_()
    exact, plain = (torch.autograd.grad(loss(u, follow), u)[0] for follow in (True, False))
    torch.testing.assert_close(exact, plain)
    assert (exact - side).abs().max() > 1e-3
    way = torch.randn(u.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ahead, behind = (float(loss(u.detach() + by * way, True)) for by in (1e-6, -1e-6))
    assert (ahead - behind) / 2e-6 == pytest.approx(float((exact * way).sum()), rel=1e-4)


def test_with_leaky_rectifiers_the_exact_gradient_is_bpdas() -> None:
    """U is linear in pieces: its second derivative, asked of autograd step after step, leaves the identity's."""
    u = at = (2 * pictures() - 1).requires_grad_()
    network = purifier().model
    for number in range(3):
        (slope,) = torch.autograd.grad(network(at).sum(), at, create_graph=True)
        at = at - slope + 0.01 * pictures().roll(number, 3)
    assert (at - u).abs().max() > 0.05
    (plain,) = torch.autograd.grad((at * pictures().flip(0)).sum(), u)
    torch.testing.assert_close(plain, pictures().flip(0))
    subject = purifier()
    found = []
    for model in (subject, StraightThrough(subject)):
        images = (0.3 + 0.4 * pictures()).requires_grad_()
        subject.reseed(0)
        (gradient,) = torch.autograd.grad((model(images) * pictures().flip(0)).sum(), images)
        found.append(gradient)
    subject.reseed(0)
    kept = subject(0.3 + 0.4 * pictures())
    inside = (kept > 0) & (kept < 1)  # elsewhere the last clip has no gradient
    torch.testing.assert_close(found[0][inside], found[1][inside])
    assert inside.float().mean() > 0.9


def test_chains_go_on_where_they_were_left() -> None:
    """Starts uniform in [-1, 1] and keyed; what is advanced counts from `commit` on; another visit, other noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EnergyNetwork(4, "leaky_relu", noise=0.02, chain_steps=3, data_noise=0.0)
    unused = torch.full((2, 3, 32, 32), 0.5)
    chains = Chains(network, 5, (3, 32, 32), 0, torch.device("cpu"))
    start = chains.states.clone()
    assert torch.equal(start, Chains(network, 5, (3, 32, 32), 0, torch.device("cpu")).states)
    assert 0.99 < float(start.max()) <= 1
    assert -1 <= float(start.min()) < -0.99
    first = chains.advance([3, 1], [3, 1], unused)
    assert torch.equal(chains.states, start)
    chains.commit()
    assert torch.equal(chains.states[[3, 1]], first)
    assert torch.equal(chains.states[[0, 2, 4]], start[[0, 2, 4]])
    moved = (first - start[[3, 1]]).std()
    assert float(moved) == pytest.approx(0.02 * math.sqrt(3), rel=0.1)  # of so weak an energy mostly noise
    assert not torch.equal(chains.advance([3], [8], unused), chains_after(network, first[:1], 0, lambda number: first))
    assert not torch.equal(chains.advance([1], [1], unused)[0] - first[1], first[1] - start[1])


def test_a_batch_may_hold_an_image_twice() -> None:
    """Across the end of an epoch: its chain goes on from the later visit, in whatever order ranks and parts have it."""
    network = EnergyNetwork(4, "leaky_relu", noise=0.02, chain_steps=1, data_noise=0.0)
    unused = torch.full((2, 3, 32, 32), 0.5)
    for order in ((0, 1), (1, 0)):
        chains, visits = Chains(network, 5, (3, 32, 32), 0, torch.device("cpu")), ([3, 8], [1, 6])  # keys; 8 % 5 = 3
        found = {key: state for part in order for key, state in advanced(chains, visits[part], unused)}
        chains.commit()
        assert torch.equal(chains.states[[3, 1]], torch.stack([found[8], found[6]]))
    twice, later = chains.advance([2, 2], [12, 7], unused)
    chains.commit()
    assert torch.equal(chains.states[2], twice)
    assert not torch.equal(twice, later)


def advanced(chains: Chains, keys: list[int], images: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """The states of some visits by their keys, of five images."""
    return list(zip(keys, chains.advance([key % 5 for key in keys], keys, images), strict=True))


def test_chains_may_start_at_the_images() -> None:
    """At an image's first visit from its picture, afterwards from where they were left; the rest waits."""
    network = EnergyNetwork(4, "leaky_relu", noise=0.02, chain_steps=1, data_noise=0.0, chain_start="images")
    chains = Chains(network, 3, (3, 32, 32), 0, torch.device("cpu"))
    picture = (2 * pictures(1) - 1).float()
    first = chains.advance([1], [1], (picture + 1) / 2)
    assert float((first - picture).std()) == pytest.approx(0.02, rel=0.1)
    chains.commit()
    again = chains.advance([1], [4], torch.zeros_like(picture))
    assert float((again - first).std()) == pytest.approx(0.02, rel=0.1)
    assert chains.states[[0, 2]].isnan().all()


def trained_here(problem: Problem, run: Path, *words: str) -> None:
    """The pretrain stage, its training in this process."""
    settings = load_settings("digits", problem.arguments(run, *words)[1:])
    run_pipeline(settings, "pretrain", lambda _, given: pretrain(given))


def test_it_is_trained_with_chains_that_a_checkpoint_holds(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """Paused and gone on with: the same bits as in one go, chains included; near the same on two processes. The
    difference of energies that it begins with is gone after it. Another data set's chains are refused.
    """
    words = [*SMALL, "ebm.chain_steps=3", "pretrain.steps=10", "pretrain.save_every=4", "pretrain.lr=0.002",
             "pretrain.ema=0", "pretrain.log_every=1"]  # fmt: skip
    whole, two = (Path(shutil.copytree(problem.prepared, tmp_path / name)) for name in ("whole", "two"))
    trained_here(problem, whole, *words)
    with pytest.raises(Paused):
        trained_here(problem, run_dir, *words, "pretrain.pause_at=5")
    trained_here(problem, run_dir, *words)
    first, second = (sha256_file(run / "purifier/model.safetensors") for run in (whole, run_dir))
    assert first == second
    banks = [ShardedTensors(run / "checkpoints/step-000010").tensor("extra/chains") for run in (whole, run_dir)]
    assert torch.equal(*banks)
    assert banks[0].abs().max() > 1  # they walked
    done = problem.run("pretrain", two, *words, nproc=2)
    assert done.returncode == 0, done.stdout + done.stderr
    losses, of_two = (
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, two)
    )
    assert of_two == pytest.approx(losses, rel=0.02, abs=0.02 * max(map(abs, losses)))
    assert load_purifier(whole).network.steps == 1500  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ebm.steps=0"], r"ebm\.steps=0 .*: must be at least 1"),
        (
            ["model.image_size=31", "model.patch_size=1"],
            r"model\.image_size=31: is halved .* a multiple of 8 from 32 on",
        ),
        (["model.image_size=16"], r"model\.image_size=16: .* a multiple of 8 from 32 on"),
        (["ebm.activation=relu"], r"ebm\.activation=relu .*: choose one of leaky_relu, silu"),
        (["compute.zero_stage=3"], r"compute\.zero_stage=3: the chains of ebm need the network whole"),
        (["objective.name=denoise"], r"objective\.name=denoise: trains no network of purifier\.kind=ebm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: list[str], message: str) -> None:
    """On the command line, before anything is made."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*SMALL, *words])
