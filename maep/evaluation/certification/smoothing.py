"""Randomised smoothing (Cohen et al. 2019): a classifier's answer under Gaussian noise, and how far it holds.

    g(x) = argmax over classes c of Pr[f(P(x + n)) = c],  n ~ N(0, σ²I)

is constant within σ·Φ⁻¹(p) of x in L2, p being a lower bound of the probability of its class. The images with noise
are not clipped: the guarantee is of g as it is written here. Under certify.sampling=integer f is the classifier of
images rounded to levels of 1/255, and the noise is drawn as whole levels (`integer_noise`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn

from maep.attacks.reseeding import reseeded
from maep.config.evaluation_settings import CertifySettings
from maep.evaluation.certification.certificate_record import Certificate
from maep.evaluation.certification.integer_noise import LEVELS, level_noise
from maep.runtime.errors import fail
from maep.runtime.keyed_noise import keyed_gaussian

CHOOSING, CERTIFYING = "certify-choose", "certify"  # purposes of the keyed noise: the two sets of draws share none
DRAWS = 2**32  # more than certify.draws allows, so that (image, draw) has a key of its own
HALF = 0.5  # a class that has more of the probability is the most probable one, whatever the others have
WHOLE = 1e-3  # of a level: what fp32 makes of k/255, times 255


def lower_bound(count: int, draws: int, alpha: float) -> float:
    """Clopper and Pearson's exact lower confidence bound, of level 1 - alpha, of a probability.

    count: how often it came true in `draws`. Raises ValueError unless 0 <= count <= draws and draws > 0.
    """
    if not 0 <= count <= draws or not draws:
        raise ValueError(f"{count} of {draws}")
    return float(stats.beta.ppf(alpha, count, draws - count + 1)) if count else 0.0


def certified_radius(count: int, draws: int, sigma: float, alpha: float, error: float = 0.0) -> float | None:
    """L2 radius, in [0,1] pixels, within which the class holds that was drawn `count` times; None: none can be said.

    error: total variation, at most, between the noise of a draw and Gaussian noise.
    """
    bound = lower_bound(count, draws, alpha) - error
    return sigma * float(stats.norm.ppf(bound)) if bound > HALF else None


def largest_radius(draws: int, sigma: float, alpha: float) -> float:
    """That of an image whose draws all agree, in [0,1] pixels; 0 where even that is too few."""
    return certified_radius(draws, draws, sigma, alpha) or 0.0


@dataclass(frozen=True)
class Smoothed:
    """g of a classifier. classify: [N, 3, H, W], not clipped → logits [N, classes], in eval mode; protection: the part
    of it that may draw random numbers, whose draws count with the noise. seed: of all draws.
    """

    classify: Callable[[Tensor], Tensor]
    protection: nn.Module
    settings: CertifySettings
    sigma: float
    seed: int

    def certify(self, image: Tensor, label: int, sample: int, key: str = "") -> Certificate:
        """The certificate of an image [3, H, W] in [0, 1], whose number in the image set is `sample`.

        All draws are keyed by (seed, sample, draw). key: what tells the image apart, for the record. Raises UserError
        for logits that are not finite, and for an image that has no whole levels where they are asked for.
        """
        settings = self.settings
        prediction = int(self.votes(image, sample, CHOOSING, settings.first_draws).argmax())
        count = int(self.votes(image, sample, CERTIFYING, settings.draws)[prediction])
        error = level_noise(self.sigma).error * image.numel() if self.is_integer else 0.0
        radius = certified_radius(count, settings.draws, self.sigma, settings.alpha, error)
        return Certificate(sample, label, prediction, count, radius or 0.0, radius is None, key)

    @property
    def is_integer(self) -> bool:
        """Whether the noise is drawn as whole levels."""
        return self.settings.sampling == "integer"

    @torch.no_grad()
    def votes(self, image: Tensor, sample: int, purpose: str, draws: int) -> Tensor:
        """How often each class was the answer under noise, int64 [classes]."""
        answers = [self._answers(image, sample, purpose, part) for part in _batches(draws, self.settings.batch_size)]
        return torch.stack(answers).sum(0).cpu()

    def _answers(self, image: Tensor, sample: int, purpose: str, draws: range) -> Tensor:
        noisy = self.noisy(image, purpose, [sample * DRAWS + draw for draw in draws])
        with reseeded(self.protection, self.seed, sample, draws.start, purpose == CHOOSING):
            logits = self.classify(noisy)
        if not bool(logits.isfinite().all()):  # argmax would answer all the same, and certify it
            fail(
                f"image {sample}: its logits under noise of {self.sigma:g} are not finite; lower certify.sigma, or "
                "load other weights"
            )
        return torch.bincount(logits.argmax(1), minlength=logits.shape[1])

    def noisy(self, image: Tensor, purpose: str, keys: Sequence[int]) -> Tensor:
        """The image under noise, float32 [N, 3, H, W], not clipped; row i depends on (purpose, seed, keys[i])."""
        shape = tuple(image.shape)
        if not self.is_integer:
            return image + self.sigma * keyed_gaussian(purpose, self.seed, keys, shape, image.device)
        levels = (image * LEVELS).round()
        if float((image * LEVELS - levels).abs().max()) > WHOLE:
            fail("certify.sampling=integer: the images are not of 8 bits; use certify.sampling=float")
        noise = level_noise(self.sigma).draw(purpose, self.seed, keys, shape, image.device)
        return (levels.long() + noise).to(torch.float32) / LEVELS


def _batches(draws: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, draws)) for first in range(0, draws, size))
