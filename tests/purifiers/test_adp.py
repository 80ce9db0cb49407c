"""ADP: its adaptive step, what stays, the authors' drift, exact gradients, refusals; trained without being told σ."""

import pytest
import torch
from torch import Tensor, nn

from maep.config.load import load_settings
from maep.purifiers.adp import AdpPurifier, adaptive_step
from maep.purifiers.stepwise import stepwise, walk
from maep.runtime.errors import UserError
from tests.purifiers.denoisers import pictures, random_purifier

SMALL = [
    "purifier.kind=adp", "adp.width=16", "adp.multipliers=[1]", "adp.unshuffle=2", "adp.steps=3",
    "objective.name=score", "pretrain.mask_ratio=0",
]  # fmt: skip


def purifier(*words: str) -> AdpPurifier:
    """Of random weights that do not predict 0, in float64."""
    return random_purifier(AdpPurifier, [*SMALL, *words])


class Well(nn.Module):
    """The noise in u of pictures that are all grey: f = -slope·(y - 1/2)."""

    factor = 1

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.times = slope, set[float]()

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        self.times |= set(t.tolist())
        return self.slope * u / 2


class Steepening(nn.Module):
    """The noise in u is u + u³: how much it changes along itself depends on where it is asked."""

    factor = 1

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        return u + u**3


def test_the_step_is_what_the_change_along_the_score_allows() -> None:
    """f' = (1 - c)·f has 1 - ⟨f, f'⟩/⟨f, f⟩ = c: λδ/c between 1e-5 and 0.1; the shortest where f grows."""
    found = pictures(5) - 0.5
    shares = torch.tensor([0.002, 1e-7, 40.0, -0.002, 0.0], dtype=torch.float64)
    sizes = adaptive_step(found, (1 - shares.view(-1, 1, 1, 1)) * found, 0.05)
    expected = [0.025, 0.1, 1e-5, 1e-5]
    torch.testing.assert_close(sizes[:4], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_it_ascends_to_where_the_pictures_are() -> None:
    """Of a well of slope s, α = λ/s, so a step goes λ of the way, and after ten (1-λ)^10 is left; told no noise."""
    subject = purifier("adp.sigma=0", "adp.steps=10", "adp.rate=0.05")
    subject.model = Well(2.0)
    images = 0.8 * pictures() + 0.1
    left = 0.95**10
    torch.testing.assert_close(subject(images), 0.5 + left * (images - 0.5), rtol=1e-4, atol=1e-4)
    assert subject.model.times == {0.0}
    steep = purifier("adp.sigma=0", "adp.steps=10")
    steep.model = Well(60.0)  # α = 0.05/60 is below 1e-3: it stays
    torch.testing.assert_close(steep(images), images)


def test_who_stays_stays_for_good() -> None:
    """An image that has stopped is left, whatever a longer step would do of it later."""
    subject = purifier("adp.sigma=0")
    subject.model = Well(2.0)
    at = 2 * pictures(2) - 1
    state = subject.start(at, torch.tensor([1, 2]))
    state[0, 3] = 0
    after = subject.steps(torch.tensor([1, 2]))[0](state, at)
    assert torch.equal(after[0], state[0])
    assert not torch.equal(after[1], state[1])


def test_the_authors_drift_widens_contrast() -> None:
    """Where nothing is found, ten steps of it are 256/255 to the tenth of the distance from grey, less their first."""
    subject = purifier("adp.sigma=0", "adp.steps=10", "adp.drift=true")
    subject.model = Well(0.0)
    images = 0.5 * pictures() + 0.25
    torch.testing.assert_close(subject(images), 0.5 + (256 / 255) ** 9 * (images - 0.5), rtol=1e-6, atol=1e-6)
    still = purifier("adp.sigma=0", "adp.steps=10")
    still.model = Well(0.0)
    torch.testing.assert_close(still(images), images)


def test_noise_is_drawn_and_clipped() -> None:
    """Of the deviation in [0, 1] pixels, another for each image, clipped to the range before anything is asked."""
    subject, seeds = purifier("adp.sigma=0.1"), torch.tensor([1, 2])
    grey = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    start = (subject.start(grey, seeds)[:, :3] - 1 / 512) * 256 / 255
    assert float((start - 0.5).std()) == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(start[0], start[1])
    white = (subject.start(grey + 1, seeds)[:, :3] - 1 / 512) * 256 / 255
    assert float(white.max()) == pytest.approx(1)


@pytest.mark.parametrize("model", [None, Steepening()])
def test_gradients_are_exact(model: nn.Module | None) -> None:
    """Plain autograd's through three steps, and near finite differences, which the way through α belongs to."""
    subject, seeds = purifier("adp.sigma=0.1"), torch.tensor([5, 6])
    if model is not None:
        subject.model = model
        found = subject._score(pictures(2))
        sizes = adaptive_step(found, subject._score(pictures(2) + 1e-3 * found), 0.05)
        assert ((sizes > 2e-3) & (sizes < 0.09)).all(), "no bound holds α"
    side = pictures(2).flip(0)

    def loss(images: Tensor, follow: object = stepwise) -> Tensor:
        state = (walk if follow is walk else stepwise)(subject.start(images, seeds), images, subject.steps(seeds))
        return (subject.result(state, seeds) * side).sum()

    images = (2 * pictures(2) - 1).requires_grad_()
    (exact,) = torch.autograd.grad(loss(images), images)
    (plain,) = torch.autograd.grad(loss(images, walk), images)
    torch.testing.assert_close(exact, plain)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ahead, behind = (loss(images.detach() + by * way) for by in (1e-7, -1e-7))
    assert float((ahead - behind) / 2e-7) == pytest.approx(float((exact * way).sum()), rel=1e-3)
    assert (exact - side).abs().max() > 1e-3, "the identity's is another"


def test_every_image_is_purified_as_if_it_were_alone() -> None:
    """No step is a batch's."""
    subject = purifier("adp.sigma=0.1")
    subject.reseed(0)
    together = subject(pictures())
    subject.reseed(0)
    torch.testing.assert_close(torch.cat([subject(image) for image in pictures().split(1)]), together)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("adp.sigma=0.6", r"adp\.sigma=0\.6: the network is trained up to adp\.most=0\.5; choose less"),
        ("adp.rate=0", r"adp\.rate=0\.0 .*: must be above 0"),
        ("adp.most=0.01", r"adp\.most=0\.01 .*: must be above 0\.01"),
        ("objective.name=denoise", r"objective\.name=denoise: trains no network of purifier\.kind=adp; .*score"),
    ],
)
def test_settings_that_do_not_fit_are_refused(word: str, message: str) -> None:
    """On the command line, before anything is made; noise beyond the range of pixels is its authors'."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*SMALL, word])
    load_settings(None, [*SMALL, "adp.most=50"])
