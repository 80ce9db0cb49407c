"""FlowPure: Euler's steps of a known flow, no randomness, exact gradients, refusals; trained on pairs."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maep import load_purifier
from maep.attacks.threat_models import StraightThrough
from maep.config.load import load_settings
from maep.pipeline.execution import run_pipeline
from maep.purifiers.flowpure import FlowPurePurifier
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from maep.training.pretrain import pretrain
from tests.purifiers.denoisers import random_purifier
from tests.tiny import Problem

SMALL = [
    "purifier.kind=flowpure", "flowpure.width=16", "flowpure.multipliers=[1]", "flowpure.unshuffle=2",
    "flowpure.steps=3", "objective.name=flow", "pretrain.mask_ratio=0",
]  # fmt: skip


def purifier(*words: str) -> FlowPurePurifier:
    """Of random weights that do not predict 0, in float64."""
    return random_purifier(FlowPurePurifier, [*SMALL, *words])


def pictures(count: int = 2, side: int = 8) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Known(nn.Module):
    """v(u, t) = 2t - u/2."""

    factor = 1

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        return 2 * t.view(-1, 1, 1, 1) - u / 2


def test_it_follows_the_velocity_from_0_to_1() -> None:
    """Two steps by hand; many are the flow, u(1) = 4t - 8 + (u + 8)·exp(-t/2) at t = 1; no network moves nothing."""
    images = 0.1 * pictures() + 0.2
    subject = purifier("flowpure.steps=2")
    subject.model = Known()
    u = 2 * images - 1
    u = u + (0 - u / 2) / 2
    u = u + (1 - u / 2) / 2
    torch.testing.assert_close(subject(images), (u + 1) / 2)
    many = purifier("flowpure.steps=2000")
    many.model = Known()
    u = 4 - 8 + (2 * images - 1 + 8) * torch.tensor(-0.5, dtype=torch.float64).exp()
    torch.testing.assert_close(many(images), (u + 1) / 2, rtol=1e-3, atol=1e-3)
    still = purifier()
    nn.init.zeros_(still.model.tail.weight)
    torch.testing.assert_close(still(images), images)


def test_it_draws_nothing() -> None:
    """Other seeds, the same bits; each image alone as among others."""
    subject = purifier()
    assert not subject.is_random
    subject.reseed(1)
    first = subject(pictures())
    subject.reseed(2)
    assert torch.equal(first, subject(pictures()))
    torch.testing.assert_close(torch.cat([subject(image) for image in pictures().split(1)]), first)
    assert (first - pictures()).abs().max() > 0.05


def test_gradients_are_exact() -> None:
    """Through three steps, on images that must be padded: plain autograd's, which weights in training get; BPDA's is
    another.
    """
    subject = purifier()

    def gradient(model: nn.Module) -> Tensor:
        images = pictures(2, 7).requires_grad_()
        (found,) = torch.autograd.grad((model(images) * pictures(2, 7).flip(0)).sum(), images)
        return found

    exact, straight = gradient(subject), gradient(StraightThrough(subject))
    subject.requires_grad_(True)
    torch.testing.assert_close(exact, gradient(subject))
    assert (exact - straight).abs().max() > 0.05


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("flowpure.steps=0", r"flowpure\.steps=0 .*: must be at least 1"),
        ("flowpure.latest=0.2", r"flowpure\.latest"),
        ("objective.name=denoise", r"objective\.name=denoise: trains no network of purifier\.kind=flowpure; .* flow$"),
        ("attack.online=true pretrain.attacked=whole", r"pretrain\.attacked=whole: flowpure is trained on pairs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(word: str, message: str) -> None:
    """On the command line, before anything is made."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*SMALL, *word.split()])


def test_it_is_trained_on_the_runs_own_pairs(problem: Problem, run_dir: Path) -> None:
    """The loss falls, the adversarial images are an input of the training, and what is saved moves what is attacked."""
    words = [*SMALL, "pretrain.steps=12", "pretrain.lr=0.01"]
    settings = load_settings("digits", problem.arguments(run_dir, *words)[1:])
    run_pipeline(settings, "pretrain", lambda _, given: pretrain(given))
    losses = [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    assert set(read_json(run_dir / "stages/pretrain.json")["inputs"]) >= {"shards", "attack"}
    trained = load_purifier(run_dir)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert trained.kind == "flowpure"
    assert not torch.equal(trained(images), images)
