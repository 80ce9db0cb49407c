"""The losses of the paper, one function each, all with the same signature, per sample; and others beside them.

Losses are not averaged over the batch here, so that any split of a batch over processes adds up to the same.
Every objective calls the model once, on a batch that holds all the images it needs, so that whatever wraps the
model sees one forward a step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config.implementations import OBJECTIVES, implementation
from maep.config.training_settings import ObjectiveSettings
from maep.models.discriminator import relativistic_losses
from maep.models.noise_schedule import alpha_bar, clean_estimate, diffused, per_image
from maep.models.normalized_patches import normalized_patches
from maep.models.pixel_cnn import log_likelihood
from maep.runtime.keyed_noise import normal_of, uniform_of

Model = Callable[..., Any]
EARLIEST = 1e-5  # the time that denoisers are trained from, as Song et al.: at 0 there is no noise to tell
SMALLEST = 0.01  # deviation that score networks are trained from, in [0, 1] pixels, as Yoon et al.'s
TIME_STREAM, NOISE_STREAM, STRENGTH_STREAM, END_STREAM = 0, 1, 2, 3  # of a sample's random numbers
STRONGEST = 0.05 / (8 / 255)  # the authors' flow is trained up to 0.05 and judged at 8/255


@dataclass(frozen=True)
class Judge:
    """What an objective that classifies asks. classify: purified images, not clipped, to logits in fp32 by the frozen
    classifier. labels: int64 [N]. features: the same images to its feature map in fp32, which sees them as they are
    (`maep.models.feature_maps`). soft: a teacher's probabilities, float32 [N, classes], where there is one.
    """

    classify: Callable[[Tensor], Tensor]
    labels: Tensor
    features: Callable[[Tensor], Tensor]
    soft: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """total: [N], what is minimised; parts: [N] each, by name, what is logged beside it."""

    total: Tensor
    parts: dict[str, Tensor]


def _distances(a: Tensor, b: Tensor, settings: ObjectiveSettings) -> Tensor:
    """d of every entry, pixels or latents, by `settings.distance` (Table 11)."""
    if settings.distance == "l1":
        return (a - b).abs()
    if settings.distance == "mse":
        return (a - b).square()
    return F.smooth_l1_loss(a, b, reduction="none", beta=settings.smoothing)


def distance(a: Tensor, b: Tensor, settings: ObjectiveSettings) -> Tensor:
    """d(a, b) of whole images or latents [N, …]: the mean over their entries, [N]."""
    return _distances(a, b, settings).flatten(1).mean(1)


def patch_distances(images: Tensor, targets: Tensor, patches: int, settings: ObjectiveSettings) -> Tensor:
    """d(images, targets) of every patch: the mean over its pixels and channels.

    images, targets: [N, 3, H, W]; patches: T, square ones, row by row. Returns [N, T].
    """
    n, channels, height, width = images.shape
    side = round((height * width / patches) ** 0.5)
    values = _distances(images, targets, settings)
    return values.reshape(n, channels, height // side, side, width // side, side).mean((1, 3, 5)).flatten(1)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of [N, T] over the chosen patches of each row; 0 for a row without any."""
    weights = chosen.to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)


def _hidden_distance(images: Tensor, targets: Tensor, visible: Tensor, settings: ObjectiveSettings) -> Tensor:
    """d(images ⊙ (1-M), targets ⊙ (1-M)), the mean over hidden pixels, [N]."""
    return _mean_where(patch_distances(images, targets, visible.shape[1], settings), ~visible)


def _require_no_mask(name: str, visible: Tensor | None) -> None:
    """`maep.config.load` refuses such settings; a caller of the library is told here."""
    if visible is not None:
        raise ValueError(f"{name}: is defined on whole images; give visible=None (r = 0)")


def mae(
    model: Model,
    clean: Tensor,
    adversarial: Tensor,
    visible: Tensor | None,
    settings: ObjectiveSettings,
    patch: int | None = None,
) -> Losses:
    """d(P(x⊙M)⊙(1-M), x⊙(1-M)): a plain masked autoencoder, which sees no adversarial image (Eq. 1).

    Arguments as `maep`'s. patch: side of the patches that the model predicts normalized, and that are compared so
    (MAE's norm_pix_loss, He et al. 2022); None: pixels are. Raises ValueError without a mask, where nothing would be
    learnt.
    """
    if visible is None:
        raise ValueError("mae: learns from hidden patches alone; give a mask (r > 0)")
    predicted, target = _predicted(model, clean, visible, clean, patch)
    l_rec = _hidden_distance(predicted, target, visible, settings)
    return Losses(l_rec, {"l_rec": l_rec})


def _predicted(
    model: Model, images: Tensor, visible: Tensor | None, target: Tensor, patch: int | None
) -> tuple[Tensor, Tensor]:
    """What the model makes of the images, and what it is to be like: pixels, or patches normalized."""
    if patch is None:
        return model(images, visible), target
    return model(images, visible, normalized=True), normalized_patches(target, patch)


def purification(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings
) -> Losses:
    """d(P(x_a), x), as DISCO's (Eq. 2). Arguments as `maep`'s, visible None."""
    _require_no_mask("purification", visible)
    l_pu = distance(model(adversarial, None), clean, settings)
    return Losses(l_pu, {"l_pu": l_pu})


def mlm(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings
) -> Losses:
    """Two stages: d(P(x_a⊙M)⊙(1-M), x_a⊙(1-M)) while patches are hidden, then d(P(x_a), x) (Eq. 9 and 10).

    Arguments as `maep`'s. The mask tells the stage: training hides patches until `mask_until`, and none after it.
    """
    purified = model(adversarial, visible)
    if visible is None:
        total = distance(purified, clean, settings)
        return Losses(total, {"l_pu": total, "l_rec": torch.zeros_like(total)})
    total = _hidden_distance(purified, adversarial, visible, settings)
    return Losses(total, {"l_pu": torch.zeros_like(total), "l_rec": total})


def maep(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings
) -> Losses:
    """L_pu + λ·L_rec (Eq. 11-12).

    model: P, any callable (images, visible) -> images; with latent=True, which `trades_latent` asks for, it
    returns (images, latents [N, …]). clean, adversarial: [N, 3, H, W] in [0, 1].
    visible: bool [N, T], True = shown; None = all, which leaves the purification loss (Eq. 2).
    settings: distance, rec_weight (λ) and target of the hidden patches.

    Each term is a mean over its own pixels, in units of the [0, 1] range: L_pu over the visible ones, L_rec
    over the hidden ones (0 if none is). So at λ = 1 and r = 0.5, with a clean target, the total is twice the
    mean distance of the whole image. At another r the two terms keep equal weight, where a sum over pixels
    (the full-image L1) would weight them by area; λ = r / (1 - r) gives that.
    """
    purified = model(adversarial, visible)
    if visible is None:
        l_pu = distance(purified, clean, settings)
        return Losses(l_pu, {"l_pu": l_pu, "l_rec": torch.zeros_like(l_pu)})
    l_pu = _mean_where(patch_distances(purified, clean, visible.shape[1], settings), visible)
    target = adversarial if settings.target == "adversarial" else clean
    l_rec = _hidden_distance(purified, target, visible, settings)
    return Losses(l_pu + settings.rec_weight * l_rec, {"l_pu": l_pu, "l_rec": l_rec})


def nim(
    model: Model,
    clean: Tensor,
    adversarial: Tensor,
    visible: Tensor | None,
    settings: ObjectiveSettings,
    patch: int | None = None,
) -> Losses:
    """d(P(x + σn), x): noise in place of masks, on clean images alone (You et al. 2023, NIM-MAE).

    Arguments as `maep`'s, visible None; adversarial: x + σn, not clipped, as `maep.training.noise` makes it. patch: as
    `mae`'s; the authors' predicts normalized patches.
    """
    _require_no_mask("nim", visible)
    l_noise = distance(*_predicted(model, adversarial, None, clean, patch), settings)
    return Losses(l_noise, {"l_noise": l_noise})


def reconstruction(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings
) -> Losses:
    """d(P(x_a), x) + d(P(x), x) (Eq. 13). Arguments as `maep`'s, visible None."""
    _require_no_mask("reconstruction", visible)
    of_adversarial, of_clean = model(torch.cat([adversarial, clean]), None).chunk(2)
    l_pu, l_clean = distance(of_adversarial, clean, settings), distance(of_clean, clean, settings)
    return Losses(l_pu + l_clean, {"l_pu": l_pu, "l_clean": l_clean})


def trades_pixel(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings
) -> Losses:
    """d(P(x), x) + β·d(P(x_a), P(x)) (Eq. 15). Arguments as `maep`'s, visible None; β: settings.trades_weight."""
    _require_no_mask("trades_pixel", visible)
    of_adversarial, of_clean = model(torch.cat([adversarial, clean]), None).chunk(2)
    l_clean, l_pair = distance(of_clean, clean, settings), distance(of_adversarial, of_clean, settings)
    return Losses(l_clean + settings.trades_weight * l_pair, {"l_clean": l_clean, "l_pair": l_pair})


def trades_latent(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings
) -> Losses:
    """d(P(x), x) + β·d(E(x_a), E(x)) (Eq. 16). Arguments as `maep`'s, visible None; β: settings.trades_weight."""
    _require_no_mask("trades_latent", visible)
    images, latents = model(torch.cat([adversarial, clean]), None, latent=True)
    l_clean = distance(images.chunk(2)[1], clean, settings)
    of_adversarial, of_clean = latents.chunk(2)
    l_pair = distance(of_adversarial, of_clean, settings)
    return Losses(l_clean + settings.trades_weight * l_pair, {"l_clean": l_clean, "l_pair": l_pair})


def robust(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings, judge: Judge
) -> Losses:
    """CE(f(P(x_a)), y) + λ_c·CE(f(P(x)), y) + β·KL(f(P(x)) ‖ f(P(x_a))) + λ_p·d(P(x_a), x), through a frozen f.

    Madry's loss with a purifier before the network, TRADES' regulariser (Zhang et al. 2019) and the paper's pixels.
    With a robust teacher its answer to the clean image takes the place of y (RSLAD, Zi et al. 2021), or a share of it,
    settings.soft_weight.
    Arguments as `maep`'s; λ_c, β, λ_p: settings.clean_weight, kl_weight, pixel_weight. Clean images are purified where
    one of the first two is above 0.
    """
    paired = bool(settings.clean_weight or settings.kl_weight)
    images = torch.cat([adversarial, clean]) if paired else adversarial
    shown = torch.cat([visible, visible]) if paired and visible is not None else visible
    purified = model(images, shown)
    logits = judge.classify(purified)
    count, wanted = len(clean), _wanted(judge, settings)
    parts = {
        "l_adversarial": F.cross_entropy(logits[:count], wanted, reduction="none"),
        "l_pixel": distance(purified[:count], clean, settings),
    }
    total = parts["l_adversarial"] + settings.pixel_weight * parts["l_pixel"]
    if paired:
        parts["l_clean"] = F.cross_entropy(logits[count:], wanted, reduction="none")
        parts["l_kl"] = _divergence(logits[count:], logits[:count])
        total = total + settings.clean_weight * parts["l_clean"] + settings.kl_weight * parts["l_kl"]
    return Losses(total, parts)


def _wanted(judge: Judge, settings: ObjectiveSettings) -> Tensor:
    """What a cross-entropy asks for: labels [N], or with a teacher probabilities [N, classes]."""
    if judge.soft is None:
        return judge.labels
    hard = F.one_hot(judge.labels, judge.soft.shape[1]).to(judge.soft.dtype)
    return settings.soft_weight * judge.soft + (1 - settings.soft_weight) * hard


def stability(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings, judge: Judge
) -> Losses:
    """CE(f(P(x_a)), argmax f(x)) + λ_p·d(P(x_a), x): f is to say under noise what it says of the clean image.

    Denoised smoothing's stability loss (Salman et al. 2020), which needs no labels. Arguments as `maep`'s, x_a being
    the noisy image; λ_p: settings.pixel_weight.
    """
    purified = model(adversarial, visible)
    with torch.no_grad():
        said = judge.classify(clean).argmax(1)
    parts = {
        "l_stability": F.cross_entropy(judge.classify(purified), said, reduction="none"),
        "l_pixel": distance(purified, clean, settings),
    }
    return Losses(parts["l_stability"] + settings.pixel_weight * parts["l_pixel"], parts)


def feature(
    model: Model,
    clean: Tensor,
    adversarial: Tensor,
    visible: Tensor | None,
    settings: ObjectiveSettings,
    judge: Judge,
    discriminator: nn.Module | None = None,
) -> Losses:
    """d(φ(P(x_a)), φ(x)) + λ_p·d(P(x_a), x), φ a feature map of the frozen classifier: NRP (Naseer et al., CVPR 2020).

    With a discriminator C: + λ_g times what fools it, + what it learns by (`maep.models.discriminator`), which P does
    not see. Their φ is VGG-16's. Arguments as `maep`'s, x_a being moved farthest in φ (`attack.method=ssp`); λ_p, λ_g:
    settings.pixel_weight, gan_weight.
    """
    purified = model(adversarial, visible)
    with torch.no_grad():
        wanted = judge.features(clean)
    parts = {
        "l_feature": distance(judge.features(purified), wanted, settings),
        "l_pixel": distance(purified, clean, settings),
    }
    total = parts["l_feature"] + settings.pixel_weight * parts["l_pixel"]
    if discriminator is not None:
        parts["l_gan"], parts["l_discriminator"] = relativistic_losses(discriminator, purified, clean)
        total = total + settings.gan_weight * parts["l_gan"] + parts["l_discriminator"]
    return Losses(total, parts)


def _divergence(a: Tensor, b: Tensor) -> Tensor:
    """KL(softmax(a) ‖ softmax(b)) of logits [N, classes], [N]."""
    return F.kl_div(b.log_softmax(1), a.log_softmax(1), log_target=True, reduction="none").sum(1)


def denoise(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings, seeds: Tensor
) -> Losses:
    """Mean of (ε̂(u_t, t) - ε)² over an image's pixels: denoising score matching (Ho et al. 2020, continuous time).

    model: (u [N, 3, H, W], t [N]) -> ε̂, with `latest`, the end of its times. Arguments otherwise as `maep`'s, visible
    None. seeds: int64 [N]; of each depend the time, uniform up to `latest`, and the noise ε of its image.
    """
    _require_no_mask("denoise", visible)
    times = EARLIEST + (model.latest - EARLIEST) * uniform_of(seeds, TIME_STREAM)  # type: ignore[attr-defined]
    noise = normal_of(seeds, NOISE_STREAM, clean.shape[1:])
    predicted = model(diffused(2 * clean - 1, times, noise), times)
    l_noise = (predicted - noise).square().flatten(1).mean(1)
    return Losses(l_noise, {"l_noise": l_noise})


def bridge(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings, seeds: Tensor
) -> Losses:
    """Mean of (ε̂(u_t, t) - ε_t)² over an image's pixels: an adversarial diffusion bridge (ADBM, Li et al., ICLR 2025).

    u_t is noised as `denoise`'s, and has as much of the attack a = 2(x_a - x) as leads from all of it at a time T to
    none at 0: a·ᾱ_T(1-ᾱ_t) / ((1-ᾱ_T)√ᾱ_t). ε_t is the noise and that part, so that who takes ε_t away has x. Of an
    image that was not attacked it is `denoise`'s loss, up to T. model: as `denoise`'s. Arguments otherwise as `maep`'s,
    visible None. seeds: int64 [N]; of each depend T, uniform in [latest/2, latest] (the authors' is one for a batch),
    t, uniform up to T, and the noise.
    """
    _require_no_mask("bridge", visible)
    u, times, wanted = _on_bridge(model, clean, adversarial, seeds)
    l_noise = (model(u, times) - wanted).square().flatten(1).mean(1)
    return Losses(l_noise, {"l_noise": l_noise})


def bridged(model: Model, clean: Tensor, adversarial: Tensor, seeds: Tensor) -> Tensor:
    """What the network takes the clean image for from where `bridge` asks it, [N, 3, H, W], about [0, 1], not clipped.

    Differentiable with respect to the adversarial images; arguments as `bridge`'s.
    """
    u, times, _ = _on_bridge(model, clean, adversarial, seeds)
    return (clean_estimate(u, times, model(u, times)) + 1) / 2


def _on_bridge(model: Model, clean: Tensor, adversarial: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u_t, t and ε_t of `bridge`."""
    end = model.latest * (1 + uniform_of(seeds, END_STREAM)) / 2  # type: ignore[attr-defined]
    times = EARLIEST + (end - EARLIEST) * uniform_of(seeds, TIME_STREAM)
    noise, moved = normal_of(seeds, NOISE_STREAM, clean.shape[1:]), 2 * (adversarial - clean)
    left, last = per_image(alpha_bar(times)), per_image(alpha_bar(end))
    share = last / (1 - last)
    u = diffused(2 * clean - 1, times, noise) + share * (1 - left) / left.sqrt() * moved
    return u, times, noise + share * (1 / left - 1).sqrt() * moved


def score(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings, seeds: Tensor
) -> Losses:
    """Mean of (f(x + σN) + N)² over an image's pixels, f = -model: a score that is not told σ (Yoon et al. 2021, ADP).

    model: as `denoise`'s, in [-1, 1] and told the time 0 always; `latest`: the largest σ in [0, 1] pixels. Arguments
    otherwise as `maep`'s, visible None. seeds: int64 [N], of which N and σ depend, log-uniform from SMALLEST on.
    """
    _require_no_mask("score", visible)
    share = uniform_of(seeds, TIME_STREAM).to(clean)
    sigma = SMALLEST * (model.latest / SMALLEST) ** share  # type: ignore[attr-defined]
    noise = normal_of(seeds, NOISE_STREAM, clean.shape[1:]).to(clean)
    found = model(2 * (clean + sigma[:, None, None, None] * noise) - 1, torch.zeros_like(share))
    l_score = (found - noise).square().flatten(1).mean(1)
    return Losses(l_score, {"l_score": l_score})


def energy(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings, seeds: Tensor
) -> Losses:
    """(U(x + σn) - U(u)) / (ε²/2): energies of images fall, those of its own chains rise (Hill et al., ICLR 2021).

    Its mean over a batch swings around 0 while chains and images are alike; its gradient is the likelihood's.
    model: pictures of [-1, 1] → U, [N], with ε, `noise`, and σ, `data_noise` (`maep.models.energy_network`).
    adversarial: u, the chains' states in [-1, 1] units, not clipped (`maep.training.chains`). Arguments otherwise as
    `maep`'s, visible None. seeds: int64 [N], of which n depends.
    """
    _require_no_mask("energy", visible)
    shift = model.data_noise * normal_of(seeds, NOISE_STREAM, clean.shape[1:])  # type: ignore[attr-defined]
    of_images, of_chains = model(torch.cat([2 * clean - 1 + shift, adversarial])).chunk(2)
    difference = (of_images - of_chains) / (model.noise**2 / 2)  # type: ignore[attr-defined]
    return Losses(difference, {"l_energy": difference})


def flow(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings, seeds: Tensor
) -> Losses:
    """Mean of (v((1-t)·x₀ + t·x₁, t) - (x₁ - x₀))² over an image's pixels of [-1, 1]: flow matching of pairs.

    x₁ is the clean image, x₀ is x + k·(x_a - x), clipped: attacks of all strengths are met, as with Collaert et al.
    (2025). model: (u [N, 3, H, W], t [N]) -> v. Arguments otherwise as `maep`'s, visible None. seeds: int64 [N]; of
    each depend t, uniform in [0, 1), and k, uniform up to 1.6.
    """
    _require_no_mask("flow", visible)
    times, strengths = (uniform_of(seeds, stream)[:, None, None, None] for stream in (TIME_STREAM, STRENGTH_STREAM))
    start = 2 * (clean + STRONGEST * strengths * (adversarial - clean)).clamp(0, 1) - 1
    way = 2 * clean - 1 - start
    predicted = model(start + times * way, times.flatten())
    l_flow = (predicted - way).square().flatten(1).mean(1)
    return Losses(l_flow, {"l_flow": l_flow})


def code(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings, seeds: Tensor
) -> Losses:
    """d(D(c), x) + λ·mean c², c = sigmoid(E(x) - σn): noise leaves of a code what is nearly bits (ComDefend).

    model: (images, σn [N, bits, H, W], soft=True) -> (decoded images, c), with `bits` and the deviation σ of its
    `noise`. Arguments otherwise as `maep`'s, visible None; λ: settings.code_weight. seeds: int64 [N],
    of which n depends.
    """
    _require_no_mask("code", visible)
    shift = model.noise * normal_of(seeds, NOISE_STREAM, (model.bits, *clean.shape[2:]))  # type: ignore[attr-defined]
    decoded, bits = model(clean, shift, soft=True)
    parts = {"l_decoded": distance(decoded, clean, settings), "l_code": bits.square().flatten(1).mean(1)}
    return Losses(parts["l_decoded"] + settings.code_weight * parts["l_code"], parts)


def likelihood(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings
) -> Losses:
    """-log₂ p(x) over the number of values: bits that a value of a clean image takes (van den Oord et al. 2016).

    model: images to the mixtures of their pixels (`maep.models.pixel_cnn`). Arguments otherwise as `maep`'s, visible
    None; clean: of 8 bits.
    """
    _require_no_mask("likelihood", visible)
    mixtures = model(clean).to(clean.dtype)  # of bf16 the levels would have no more than eight bits
    bits = -log_likelihood(mixtures, clean).flatten(1).mean(1) / (3 * math.log(2))
    return Losses(bits, {"l_bits": bits})


Objective = Callable[..., Losses]


def objective(name: str) -> Objective:
    """The loss of a name in `maep.config.implementations.OBJECTIVES`."""
    function: Objective = implementation(OBJECTIVES[name].path)
    return function
