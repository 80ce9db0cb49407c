"""DRAM: the published descent for each image, a threshold that clean images exceed as often as asked, what is saved."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maep import load_purifier
from maep.ablation.running.reuse import pretraining_key
from maep.config.evaluation_settings import PurifySettings
from maep.config.identity import decisive_settings
from maep.config.load import load_settings
from maep.config.training_settings import ModelSettings
from maep.data.images.build import clean_split
from maep.data.shards import to_float
from maep.evaluation.stage import purifier_identity
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.normalized_patches import normalized_patches
from maep.pipeline.execution import run_pipeline
from maep.purifiers import save_purifier
from maep.purifiers.dram import DramPurifier, DramSettings
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from tests.tiny import Problem

SMALL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=8, encoder_depth=1, encoder_heads=1, decoder_width=8, decoder_depth=1,
    decoder_heads=1,
)  # fmt: skip


def dram(prediction: str = "pixels", **values: float | str) -> DramPurifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskedAutoencoder(replace(SMALL, prediction=prediction))
        for parameter in model.parameters():  # so that what is seen matters
            parameter.data += 0.2 * torch.randn_like(parameter)
    return DramPurifier(model, PurifySettings(), DramSettings(**values)).eval().requires_grad_(False)  # type: ignore[arg-type]


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def literal(purifier: DramPurifier, x: Tensor) -> Tensor:
    """One image of one tile, as the paper says it, pixel masks and patches by hand."""
    draws, repair = purifier._drawn(x, purifier._grid(x)), purifier.repair
    shift = draws.start.clone()
    for number in range(repair.steps):
        seen = draws.repair[number if repair.fresh_masks else 0]
        at = (x + shift).requires_grad_()
        answer, target = purifier.model(at, seen, normalized=True), at.detach()
        if purifier.model.config.prediction == "normalized":
            target = normalized_patches(target, 4)
        hidden = [(divmod(place, 4)) for place in range(16) if not seen[0, place]]
        errors = [
            (answer - target)[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].square().mean()
            for row, column in hidden
        ]
        (gradient,) = torch.autograd.grad(torch.stack(errors).mean(), at)
        shift = (shift - repair.step * gradient.sign()).clamp(-repair.eps, repair.eps)
    return (x + shift).clamp(0, 1)


@pytest.mark.parametrize("prediction", ["pixels", "normalized"])
@pytest.mark.parametrize("fresh", [False, True])
def test_each_image_takes_the_published_steps(fresh: bool, prediction: str) -> None:
    """Within eps; a quarter of the patches is seen; with one mask, hidden patches keep what was drawn. Of a network
    that predicts normalized patches those are compared.
    """
    purifier = dram(prediction, steps=4, eps=0.1, step=0.03, fresh_masks=fresh)
    expected = torch.cat([literal(purifier, x) for x in pictures(3).split(1)])
    purifier.reseed(0)
    purified = purifier(pictures(3))
    torch.testing.assert_close(purified, expected)
    assert (purified - pictures(3)).abs().max() <= 0.1 + 1e-6
    purifier.reseed(0)
    draws = purifier._drawn(pictures(1), purifier._grid(pictures(1)))
    assert (draws.repair.sum(-1) == 4).all()
    assert len(draws.repair) == (4 if fresh else 1)


def test_its_path_is_what_each_step_gives() -> None:
    """As a repair with fewer steps would return it, and last what purifying returns; what is left alone stays."""
    purifier = dram(steps=3, eps=0.1, step=0.03)
    path = purifier.path(pictures(3))
    for steps, image in enumerate(path, 1):
        purifier = dram(steps=steps, eps=0.1, step=0.03)
        assert torch.equal(image, purifier(pictures(3)))
    assert len(path) == 3
    careful = dram(steps=3, false_alarms=0.5)
    careful.threshold.fill_(math.inf)
    assert all(torch.equal(image, pictures(2)) for image in careful.path(pictures(2)))
    assert [len(image) for image in careful.path(pictures(0))] == [0]


def test_its_loss_can_be_descended() -> None:
    """By an attacker: the mean over the masks that it judges by, the same as judging by them, and with a gradient."""
    purifier, x = dram(false_alarms=0.5, detection_masks=2), pictures(2).requires_grad_()
    loss = purifier.auxiliary_loss(x)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    purifier.reseed(0)
    assert torch.equal(purifier.suspicions(x), loss)
    purifier.reseed(0)
    moved = x.detach() - 1e-3 * gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
    assert (purifier.suspicions(moved) < loss).all()


def test_the_loss_falls() -> None:
    """Of the patches that are seen, against the same masks: what the descent is for."""
    purifier, x = dram(steps=10, eps=0.2, step=0.05), pictures(8)
    grid = purifier._grid(x)
    draws = purifier._drawn(x, grid)
    before = purifier._losses(x + draws.start, grid, draws.repair[0])
    purifier.reseed(0)
    after = purifier._losses(purifier(x), grid, draws.repair[0])
    assert (after < before).float().mean() > 0.8


def test_clean_images_set_it_off_as_often_as_asked() -> None:
    """A tenth of those it was calibrated on, about a tenth of others; odd ones are found, others left alone."""
    purifier = dram(false_alarms=0.1, detection_masks=8, calibration_images=200, steps=1)
    coarse = [pictures(400, seed)[:, :, :4, :4] for seed in (0, 1)]
    smooth = [nn.functional.interpolate(images, (16, 16), mode="bilinear") for images in coarse]
    asked: list[int] = []
    purifier = purifier.calibrated(lambda count: (asked.append(count), smooth[0][:count])[1])
    assert asked == [200]
    purifier.reseed(0)
    assert purifier.detects
    assert purifier.detected(smooth[0][:200]).sum() == 20
    assert 0.05 < purifier.detected(smooth[1]).float().mean() < 0.16
    odd = (smooth[1] + 0.3 * torch.randn(smooth[1].shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert purifier.detected(odd).float().mean() > 0.5
    changed = (purifier(smooth[1]) != smooth[1]).flatten(1).any(1).float().mean()
    assert 0.05 < changed < 0.16


def test_as_many_as_asked_exceed_the_threshold_whatever_the_share() -> None:
    """Not one fewer where the floating-point share of so many images lies just above or below a whole number."""
    for percent in range(1, 100):
        purifier = dram(false_alarms=percent / 100, calibration_images=100)
        losses = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(percent))]
        purifier.detection_losses = lambda _, losses=losses: losses[None]  # type: ignore[method-assign, misc]
        assert (losses > purifier.calibrated(pictures).threshold).sum() == percent


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_clean_images_are_as_often_unlike_others_as_asked(share: float) -> None:
    """By Kolmogorov and Smirnov: an image's losses beside those of all calibration images, whose own are left out where
    their suspicions decide the threshold.
    """
    purifier = dram(detection="ks", false_alarms=share, detection_masks=5, calibration_images=100)
    coarse = [pictures(300, seed)[:, :, :4, :4] for seed in (0, 1)]
    clean, others = (nn.functional.interpolate(images, (16, 16), mode="bilinear") for images in coarse)
    purifier = purifier.calibrated(lambda count: clean[:count])
    purifier.reseed(0)
    losses = purifier.detection_losses(clean[:100]).T
    assert torch.equal(purifier.clean_losses.sort().values, losses.flatten().sort().values)
    own = [statistic(losses[n], torch.cat([losses[:n], losses[n + 1 :]]).flatten()) for n in range(100)]
    assert sum(each > purifier.threshold for each in own) <= round(100 * share)
    # Of so few masks several images have the same: the threshold is the least that no more exceed.
    assert sum(each >= purifier.threshold for each in own) > round(100 * share)
    purifier.reseed(1)
    found = purifier.suspicions(others)
    purifier.reseed(1)
    expected = [statistic(each, losses.flatten()) for each in purifier.detection_losses(others).T]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert share / 3 < (found > purifier.threshold).float().mean() < share + 0.12
    odd = (others + 0.3 * torch.randn(others.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert purifier.detected(odd).float().mean() > 0.5
    purifier.reseed(1)
    descended = purifier.auxiliary_loss(others)  # by an attacker: a statistic has no gradient
    purifier.reseed(1)
    assert torch.equal(descended, purifier.detection_losses(others).mean(0))


def statistic(losses: Tensor, clean: Tensor) -> float:
    """The greatest difference of two empirical distribution functions, at each value of either."""
    at = torch.cat([losses, clean])
    shares = [(each[:, None] <= at).double().mean(0) for each in (losses, clean)]
    return float((shares[0] - shares[1]).abs().max())


def test_what_images_are_compared_with_is_saved(tmp_path: Path) -> None:
    """The same verdicts after loading, and with other options; a file that lacks it is refused, one image compared
    with itself as well.
    """
    purifier = dram(detection="ks", false_alarms=0.2, calibration_images=20).calibrated(pictures)
    save_purifier(purifier, tmp_path)
    again = load_purifier(tmp_path)
    assert isinstance(again, DramPurifier)
    for other in (purifier, again, again.with_options(PurifySettings(batch_tiles=2))):
        assert isinstance(other, DramPurifier)
        other.reseed(2)
        assert torch.equal(other.clean_losses, purifier.clean_losses)
        verdicts = other.detected(pictures(40, 3))
        other.reseed(2)
        assert torch.equal(verdicts, other.suspicions(pictures(40, 3)) > purifier.threshold)
        assert 0 < verdicts.sum() < 40
    tensors = dict(purifier.weights())
    with pytest.raises(UserError, match=r"dram\.clean_losses is \(1, 80\); expected one row"):
        DramPurifier.from_config(purifier.config(), {**tensors, "dram.clean_losses": purifier.clean_losses[None]})
    del tensors["dram.clean_losses"]
    with pytest.raises(UserError, match=r"lacks dram\.clean_losses, which dram\.detection=ks compares"):
        DramPurifier.from_config(purifier.config(), tensors)
    words = ["purifier.kind=dram", "objective.name=mae", "finetune.method=none", "dram.detection=ks"]
    with pytest.raises(UserError, match=r"dram\.calibration_images=1: dram\.detection=ks compares each image with"):
        load_settings(None, [*words, "dram.false_alarms=0.1", "dram.calibration_images=1"])
    load_settings(None, [*words, "dram.calibration_images=1"])


def test_one_that_repairs_every_image_judges_none() -> None:
    """And one that was not calibrated has no verdict."""
    assert not dram().detects
    with pytest.raises(UserError, match=r"dram\.false_alarms=0\.2: this purifier was not calibrated"):
        dram(false_alarms=0.2).detected(pictures(2))


def test_an_image_is_judged_by_the_mean_over_its_masks() -> None:
    """Of the squared errors on hidden pixels, by hand: tiles of a large image together, masks one after another."""
    purifier, x = dram(detection_masks=3), torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    purifier.reseed(4)
    found = purifier.suspicions(x)
    purifier.reseed(4)
    seen = purifier._drawn(x, purifier._grid(x)).detection.view(3, 2, 2, 16)
    for number, image in enumerate(x):
        losses = []
        for mask in seen[:, number]:
            errors = []
            for tile, own in zip(image.split(16, 2), mask, strict=True):
                error = (purifier.model(tile[None], own[None])[0] - tile).square()
                errors += [
                    error[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
                    for row, column in (divmod(place, 4) for place in range(16)) if not own[4 * row + column]
                ]  # fmt: skip
            assert len(errors) == 2 * 12
            losses.append(torch.cat(errors).mean())
        torch.testing.assert_close(found[number], torch.stack(losses).mean())


def test_what_is_asked_of_the_network() -> None:
    """Steps forward and backward, and a forward pass for each mask of the detection; a large image is in tiles."""
    purifier, calls = dram(steps=5, detection_masks=3, false_alarms=0.5).calibrated(pictures), [0]
    purifier.model.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    purifier(pictures(2))
    assert calls == [5 + 3]
    large = torch.rand(1, 3, 40, 20, generator=torch.Generator().manual_seed(0))
    assert purifier.with_options(PurifySettings(batch_tiles=2))(large).shape == large.shape


def test_threshold_and_steps_are_saved_and_one_that_lacks_it_says_so(tmp_path: Path) -> None:
    """The same bits after loading, also with other options; a network that was not calibrated is refused."""
    purifier = dram(false_alarms=0.2, steps=2, calibration_images=20)
    with pytest.raises(UserError, match=r"dram\.false_alarms=0\.2: this purifier was not calibrated"):
        purifier(pictures(1))
    purifier = purifier.calibrated(pictures)
    save_purifier(purifier, tmp_path / "purifier")
    again = load_purifier(tmp_path)
    assert isinstance(again, DramPurifier)
    assert again.repair == purifier.repair
    for other in (again, again.with_options(PurifySettings(batch_tiles=1)), purifier):
        other.reseed(3)
    assert torch.equal(again(pictures(4)), purifier(pictures(4)))
    assert again.with_options(PurifySettings(batch_tiles=1)).threshold == purifier.threshold
    words = ["purifier.kind=dram", "dram.false_alarms=0.2", "dram.calibration_images=20", "purify.batch_tiles=1"]
    used = again.used_as(load_settings(None, [*words, "dram.steps=3", "dram.eps=0.1", "dram.fresh_masks=true"]))
    assert used.settings.batch_tiles == 1
    assert (used.repair.steps, used.repair.eps, used.repair.fresh_masks) == (3, 0.1, True)
    assert used.threshold == purifier.threshold
    assert again.used_as(load_settings(None, [])).repair == purifier.repair
    with pytest.raises(UserError, match=r"dram\.mask_ratio=0\.5: this purifier was saved with 0\.75, which is part of"):
        again.used_as(load_settings(None, [*words, "dram.mask_ratio=0.5"]))
    with pytest.raises(UserError, match=r"dram\.threshold is \(2,\)"):
        DramPurifier.from_config(purifier.config(), {**purifier.weights(), "dram.threshold": torch.zeros(2)})


@pytest.mark.parametrize("line", ["dram.eps=0", "dram.false_alarms=0", "dram.mask_ratio=1", "dram.steps=0"])
def test_bad_settings_are_refused(line: str) -> None:
    """By name."""
    with pytest.raises(UserError, match=rf"{line.split('=')[0].replace('.', '[.]')}="):
        load_settings(None, ["purifier.kind=dram", line])


def test_a_network_of_one_patch_has_none_to_hide() -> None:
    """There would be no loss to descend, and images would only get the noise that the descent starts from."""
    words = ["purifier.kind=dram", "objective.name=mae", "finetune.method=none", "data.image_size=16"]
    with pytest.raises(UserError, match=r"model\.patch_size=16: dram hides patches, and this one is all of an image"):
        load_settings(None, [*words, "model.image_size=16", "model.patch_size=16"])
    load_settings(None, [*words, "model.image_size=16", "model.patch_size=8"])


@pytest.mark.parametrize("word", ["dram.eps=0.1", "dram.step=0.01", "dram.steps=3", "dram.fresh_masks=true"])
def test_how_an_image_is_repaired_is_no_part_of_the_training(word: str, tmp_path: Path) -> None:
    """Another setting of it trains nothing anew, and is another purifier to every record, also of one that is given."""
    words = ["purifier.kind=dram", "objective.name=mae", "finetune.method=none"]
    before, after = (load_settings(None, [*words, *more]) for more in ([], [word]))
    for artefact, differs in (("pretrain", False), ("evaluate", True), ("records", True), ("point", True)):
        same = decisive_settings(before, artefact) == decisive_settings(after, artefact)
        assert same != differs, artefact
    assert pretraining_key(before) == pretraining_key(after)
    save_purifier(dram(), tmp_path / "purifier")
    for settings in (before, after):
        settings.evaluation.purifier = str(tmp_path)
    assert purifier_identity(before, "purifier") != purifier_identity(after, "purifier")


@pytest.mark.parametrize(
    "word", ["dram.mask_ratio=0.5", "dram.false_alarms=0.5", "dram.detection_masks=2", "dram.detection=ks"]
)
def test_what_the_threshold_rests_on_is_part_of_it(word: str) -> None:
    """It is measured once the network is trained."""
    words = ["purifier.kind=dram", "objective.name=mae", "finetune.method=none"]
    before, after = (load_settings(None, [*words, *more]) for more in ([], [word]))
    assert decisive_settings(before, "pretrain") != decisive_settings(after, "pretrain")


def test_it_is_trained_calibrated_and_judged(problem: Problem, run_dir: Path) -> None:
    """By the pipeline: a twentieth of its clean training images set it off, a checkpoint repairs as it
    does and is not calibrated; other steps of descent are another purifier to the evaluation's records."""
    words = [
        "purifier.kind=dram", "objective.name=mae", "pretrain.mask_until=1", "pretrain.steps=8", "dram.steps=2",
        "dram.false_alarms=0.05", "dram.calibration_images=100", "finetune.method=none", "evaluation.images=6",
        "evaluation.adaptive_images=6", "evaluation.attacks=[pgd-2]", "evaluation.threat_models=[oblivious, adaptive]",
        "evaluation.check_images=1", "evaluation.draws=1",
    ]  # fmt: skip
    done = problem.run("pretrain", run_dir, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = load_settings("digits", problem.arguments(run_dir, *words)[1:])
    purifier = load_purifier(run_dir)
    assert isinstance(purifier, DramPurifier)
    assert asdict(purifier.repair) == asdict(settings.dram)  # type: ignore[attr-defined]
    train = clean_split(settings, "train")
    purifier.reseed(0)
    assert purifier.detected(to_float(train.batch(range(100))[0])).sum() == 5
    checkpoint = load_purifier(sorted((run_dir / "checkpoints").iterdir())[-1])
    assert isinstance(checkpoint, DramPurifier)
    assert checkpoint.repair == purifier.repair
    assert checkpoint.threshold.isnan()
    run_pipeline(settings, "all", lambda name, _: pytest.fail(f"{name} was launched"))
    rows = read_json(run_dir / "report.json")["results"]
    assert {row["purifier"] for row in rows} == {"dram"}
    for row in rows:  # of six images each
        shares = {round(100 * count / 6, 4) for count in range(7)}
        assert {row["detected_clean"], row["detected_adversarial"]} <= shares
    assert f"{rows[0]['detected_adversarial']:.1f} % detected" in (run_dir / "report.html").read_text()
    other = load_settings("digits", problem.arguments(run_dir, *words, "dram.steps=3")[1:])
    assert purifier_identity(other, "pretrained") != purifier_identity(settings, "pretrained")
