"""Frequency prompts, our reconstruction: what is added to which image, its gradient, its clusters, its training."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import load_purifier
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.pipeline.execution import run_pipeline
from maep.purifiers import save_purifier
from maep.purifiers.base import Source
from maep.purifiers.frequency_prompts import (
    PROTOTYPES,
    FrequencyPromptsPurifier,
    FrequencyPromptsSettings,
    prototypes_of,
)
from maep.runtime.errors import Paused, UserError
from maep.storage.atomic import sha256_file
from maep.training.pretrain import pretrain
from tests.small import digits, train_small
from tests.tiny import Problem

WORDS = ["purifier.kind=frequency_prompts", "pretrain.mask_ratio=0", "objective.name=robust"]


def purifier(clusters: int = 3, side: int = 16) -> FrequencyPromptsPurifier:
    """With random prompts, and the clusters of some digits before a small classifier."""
    network = FrequencyPromptsSettings(clusters, side=side, calibration_images=60)
    instance = FrequencyPromptsPurifier(FrequencyPromptsPurifier.build(network), network, PurifySettings())
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        instance.model.prompts.normal_(std=3.0)
    instance.prepare(images, [train_small()])
    return instance.eval().requires_grad_(False)


def images(count: int = 12) -> Tensor:
    return 0.3 + 0.4 * digits()[0][:count]


def test_the_prompt_is_added_to_the_spectrum_above_the_cutoff() -> None:
    """F⁻¹(F(x) + M·P_k) by the formula, k of the nearest mean of features; no lower frequency changes."""
    instance, x = purifier(), images()
    model = instance.model
    spectrum = torch.fft.rfft2(x)
    rows, columns = torch.meshgrid(torch.fft.fftfreq(16) * 16, torch.arange(9.0), indexing="ij")
    high = (rows**2 + columns**2).sqrt() > 16 / 4
    features = train_small()[:4](x).mean((2, 3))
    number = torch.stack([(features - each).square().sum(1) for each in model.prototypes], 1).argmin(1)
    assert len(set(number.tolist())) > 1
    prompt = torch.view_as_complex(model.prompts)[number]
    expected = torch.fft.irfft2(spectrum + high * prompt, s=(16, 16))
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(instance(x), expected.clamp(0, 1), atol=1e-5, rtol=1e-5)
    moved = torch.fft.rfft2(model(x)) - spectrum
    assert moved[..., ~high].abs().max() < 1e-3
    assert moved[..., high].abs().mean() > 1


def test_gradients_are_exact_where_the_cluster_stays() -> None:
    """They are the identity's where nothing is clipped."""
    instance, x = purifier(), images().requires_grad_()
    weight = torch.rand(12, 3, 16, 16)
    (gradient,) = torch.autograd.grad((instance(x) * weight).sum(), x)
    inside = (instance.model(x) > 0) & (instance.model(x) < 1)
    assert torch.equal(gradient[inside], weight[inside])
    assert (gradient[~inside] == 0).all()


def test_images_of_other_sizes_have_the_pattern_repeated() -> None:
    """As a periodic function is; smaller images have a part of it."""
    instance = purifier(clusters=1)
    grey = torch.full((1, 3, 40, 10), 0.5)
    added = instance.model(grey) - grey
    torch.testing.assert_close(added[:, :, :16], added[:, :, 16:32])
    torch.testing.assert_close(added[0, :, :16], instance.model.patterns()[0, :, :, :10], atol=1e-6, rtol=0)


def test_clusters_are_those_of_k_means() -> None:
    """Of points around three centres these, in whatever order the points come; more clusters than points: refused."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centres[:, None] + torch.randn(3, 50, 2, generator=generator)).flatten(0, 1)
    found = prototypes_of(points, 3)
    means = points.view(3, 50, 2).mean(1)
    assert torch.cdist(found, means).amin(1).max() < 1e-5
    shuffled = prototypes_of(points[torch.randperm(150, generator=generator)], 3)
    assert torch.cdist(found, shuffled).amin(1).max() < 1e-5
    assert prototypes_of(torch.zeros(4, 2), 3).isfinite().all()  # equal points
    with pytest.raises(UserError, match=r"clusters=4: more than the 3 images"):
        prototypes_of(points[:3], 4)


def test_it_is_saved_with_its_clusters(tmp_path: Path) -> None:
    """And asks a classifier again; without clusters, as in a checkpoint, it is refused, as are those of others."""
    instance = purifier()
    save_purifier(instance, tmp_path / "purifier")
    loaded = load_purifier(tmp_path)
    with pytest.raises(UserError, match="kind frequency_prompts asks a classifier: attach one"):
        loaded(images())
    loaded.attach(train_small())
    assert torch.equal(loaded(images()), instance(images()))
    weights = dict(instance.weights())
    bare = FrequencyPromptsPurifier.from_config(instance.config(), {"prompts": weights["prompts"]})
    bare.attach(train_small())
    with pytest.raises(UserError, match="these prompts have no clusters yet; take those of purifier/"):
        bare(images())
    for wrong in (weights[PROTOTYPES][:2], weights[PROTOTYPES] * torch.nan):
        with pytest.raises(UserError, match=r"weights: frequency_prompts\.prototypes is \[\d, 24\]; expected finite"):
            FrequencyPromptsPurifier.from_config(instance.config(), {**weights, PROTOTYPES: wrong}, Source())


def test_a_classifier_of_other_features_is_refused() -> None:
    """Its clusters would be none of these."""
    instance = purifier()
    instance.attach(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(UserError, match=r"its clusters are of 24 features, and this classifier has 5; judge it before"):
        instance(images())


def test_settings_that_do_not_fit_are_refused() -> None:
    """By name: an objective that asks no classifier, masks, options; a classifier that has no map of features."""
    with pytest.raises(UserError, match=r"objective\.name=purification: asks no classifier, .*name=robust"):
        load_settings(None, [*WORDS, "objective.name=purification"])
    load_settings(None, [*WORDS, "objective.name=purification", "frequency_prompts.clusters=1"])
    with pytest.raises(UserError, match=r"frequency_prompts\.cutoff=0\.6"):
        load_settings(None, [*WORDS, "frequency_prompts.cutoff=0.6"])
    with pytest.raises(UserError, match=r"mask_ratio=0\.5: frequency_prompts sees whole images"):
        load_settings(None, [*WORDS, "pretrain.mask_ratio=0.5"])
    with pytest.raises(UserError, match="has no map of features"):
        purifier().prepare(lambda count: digits()[0][:count], [train_small(kind="perceptron")])


def test_prompts_learn_what_the_classifier_needs() -> None:
    """By its cross-entropy alone they bring attacked digits back, without a change of the classifier."""
    (x, labels), classifier = (part[:60] for part in digits()), train_small()
    attacked = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(attacked), labels), attacked)
    attacked = (x + 0.1 * gradient.sign()).clamp(0, 1)
    instance = purifier()
    instance.prepare(lambda count: x[:count], [classifier])
    prompts = instance.model.prompts
    with torch.no_grad():
        prompts.zero_()
    assert torch.equal(instance(attacked), attacked)
    optimizer = torch.optim.Adam([prompts.requires_grad_()], lr=0.1)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(classifier(instance(attacked)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_it_is_trained_by_the_classifier(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """A training that was paused ends with the same bits, and the purifier has its clusters and prompts."""
    words = [*WORDS, "frequency_prompts.clusters=2", "frequency_prompts.side=16", "objective.pixel_weight=0",
             "pretrain.steps=12", "pretrain.lr=0.1", "pretrain.log_every=1", "pretrain.ema=0"]  # fmt: skip
    whole = Path(shutil.copytree(run_dir, tmp_path / "whole"))
    for run, more in ((whole, []), (run_dir, ["pretrain.pause_at=5"]), (run_dir, [])):
        settings = load_settings("digits", problem.arguments(run, *words, *more)[1:])
        with pytest.raises(Paused) if more else nullcontext():
            run_pipeline(settings, "pretrain", lambda _, given: pretrain(given))
    first, second = (sha256_file(run / "purifier/model.safetensors") for run in (whole, run_dir))
    assert first == second
    weights = dict(load_purifier(whole).weights())
    assert weights[PROTOTYPES].shape[0] == 2
    assert weights["prompts"].abs().max() > 0
