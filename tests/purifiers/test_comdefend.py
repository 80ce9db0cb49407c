"""ComDefend: the published networks by size and cost, bits and their noise, what is saved, what is refused."""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, elu
from torch.utils.flop_counter import FlopCounterMode

from maep import load_purifier
from maep.cli.checkpoint import main
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.models.code_network import CodeNetwork
from maep.pipeline.execution import run_pipeline
from maep.purifiers import save_purifier
from maep.purifiers.comdefend import ComDefendPurifier, ComDefendSettings
from maep.runtime.errors import Paused, UserError
from maep.storage.array_pickles import read_array_list
from maep.storage.atomic import read_json, sha256_file
from maep.training.pretrain import pretrain
from tests.tiny import Problem

WORDS = ["purifier.kind=comdefend", "pretrain.mask_ratio=0", "objective.name=code"]


def purifier(test_noise: float = 0.5, **options: int) -> ComDefendPurifier:
    """Small; its logits are of about the size of the noise."""
    network = ComDefendSettings([6, 8], 5, test_noise=test_noise)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ComDefendPurifier.build(network).requires_grad_(False)
    model.encoder[-1].weight *= 10  # type: ignore[operator]
    return ComDefendPurifier(model, network, PurifySettings(**options)).eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_the_published_size() -> None:
    """Parameters of both networks; operations of a CIFAR-10 image within 1 % of the specification."""
    settings = ComDefendSettings()
    with torch.device("meta"):
        model, image = CodeNetwork(settings.widths, settings.bits, settings.noise), torch.empty(1, 3, 32, 32)
    sizes = [sum(each.numel() for each in part.parameters()) for part in (model.encoder, model.decoder)]
    assert sizes == [783_372, 783_363]
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert counter.get_total_flops() / 2 == pytest.approx(1.60e9, rel=0.01)


def written_out(layers: list[Tensor], x: Tensor) -> Tensor:
    """Convolutions with ELU between them, from weights and biases in turn."""
    for number in range(0, len(layers), 2):
        x = conv2d(x, layers[number], layers[number + 1], padding=1)
        x = elu(x) if number + 2 < len(layers) else x
    return x


def test_the_image_is_drawn_from_bits_alone() -> None:
    """Without noise: the sign of the encoder's logits, decoded; the soft code of a training is their sigmoid."""
    defense = purifier(test_noise=0)
    logits = written_out(list(defense.model.encoder.parameters()), pictures())
    bits = (logits > 0).float()
    decoder = list(defense.model.decoder.parameters())
    torch.testing.assert_close(defense(pictures()), written_out(decoder, bits).sigmoid())
    assert 0.1 < bits.mean() < 0.9
    decoded, code = defense.model(pictures(), torch.ones(3, 5, 12, 12), soft=True)
    torch.testing.assert_close(code, (logits - 1).sigmoid())
    torch.testing.assert_close(decoded, written_out(decoder, code).sigmoid())
    assert not defense.is_random


def test_noise_turns_the_bits_it_should() -> None:
    """Bits are 1 as often as normal noise of `test_noise` leaves a logit above 0; another draw at every call."""
    defense, seen = purifier(), list[Tensor]()
    defense.model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = pictures(1)
    first = defense(image.expand(400, -1, -1, -1))
    logits = defense.model.encoder(image)
    expected = 0.5 * (1 + torch.erf(logits / 0.5 / math.sqrt(2)))
    bits = torch.cat(seen)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    error = bits.mean(0) - expected[0]
    assert error.abs().mean() < 0.02
    assert error.mean().abs() < 0.002
    assert first[0].ne(first[1]).any()
    defense.reseed(0)
    torch.testing.assert_close(defense(image), first[:1], rtol=0, atol=1e-6)


def test_few_images_at_a_time_are_the_same() -> None:
    """`batch_tiles` bounds pixels; draws do not depend on it."""
    images = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(purifier(batch_tiles=2)(images), purifier()(images), rtol=0, atol=1e-6)


def test_what_is_saved_is_used_otherwise_without_a_training(tmp_path: Path) -> None:
    """The noise at use is saved with the weights; settings of a run change it, and nothing else of the network."""
    save_purifier(purifier(test_noise=0), tmp_path / "purifier")
    loaded = load_purifier(tmp_path)
    assert torch.equal(loaded(pictures()), purifier(test_noise=0)(pictures()))
    other = loaded.used_as(load_settings(None, [*WORDS, "comdefend.test_noise=0.5"]))
    assert torch.equal(other(pictures()), purifier()(pictures()))
    plain, noisy = (load_settings(None, [*WORDS, f"comdefend.test_noise={value}"]) for value in (0, 3))
    assert ComDefendPurifier.use_facts(plain) != ComDefendPurifier.use_facts(noisy)


WIDTHS = [16, 32, 64, 128, 256, 128, 64, 32]


def published(directory: Path, widths: Sequence[int] = WIDTHS, bits: int = 12, *, grouped: bool = False) -> Path:
    """Lists of the names, shapes and layout of its authors' files, with random numbers."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True)
    for name, channels in (("enc", [3, *widths, bits]), ("dec", [bits, *reversed(widths), 3])):
        kernels = [rng.normal(0, 0.1, (3, 3, *pair)).astype("f4") for pair in pairwise(channels)]
        biases = [rng.normal(0, 0.1, width).astype("f4") for width in channels[1:]]
        arrays = (
            [*kernels, *biases] if grouped else [each for pair in zip(kernels, biases, strict=True) for each in pair]
        )
        objects = np.empty(len(arrays), object)
        objects[:] = arrays
        np.save(directory / f"{name}20_0.0001.npy", objects, allow_pickle=True)
    return directory


def correlated(arrays: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """TensorFlow's convolutions of one image [H, W, channels] with ELU between them, sum by sum."""
    for number in range(0, len(arrays), 2):
        kernel, (height, width, _) = arrays[number].astype(float), x.shape
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        x = sum(
            padded[row : row + height, column : column + width] @ kernel[row, column]
            for row in range(3)
            for column in range(3)
        ) + arrays[number + 1]  # fmt: skip
        x = np.where(x > 0, x, np.expm1(x)) if number + 2 < len(arrays) else x
    return x


def test_the_published_lists_are_read_as_their_authors_use_them(tmp_path: Path) -> None:
    """Names, shapes and layout of the files; pixels less a half, bits without noise, both written out in NumPy."""
    read = ComDefendPurifier.from_published(published(tmp_path / "whole"))
    assert read.network == ComDefendSettings(offset=0.5, test_noise=0.0)
    assert (read.network.widths, read.network.bits) == (WIDTHS, 12)
    assert sum(tensor.numel() for tensor in read.weights().values()) == 783_372 + 783_363
    small = published(tmp_path / "small", [4, 6], 5)
    read = ComDefendPurifier.from_published(small).eval()
    image = pictures(1)
    encoder, decoder = (read_array_list(small / f"{name}20_0.0001.npy") for name in ("enc", "dec"))
    bits = correlated(encoder, image[0].permute(1, 2, 0).numpy() - 0.5) > 0
    expected = 1 / (1 + np.exp(-correlated(decoder, bits.astype(float))))
    assert 0.1 < bits.mean() < 0.9
    torch.testing.assert_close(read(image)[0].permute(1, 2, 0).double(), torch.from_numpy(expected), atol=1e-5, rtol=0)
    grouped = ComDefendPurifier.from_published(published(tmp_path / "grouped", [4, 6], 5, grouped=True)).eval()
    assert grouped.weights().keys() == read.weights().keys()
    assert main(["import", str(small), "--kind", "comdefend", "--to", str(tmp_path / "out")]) == 0
    assert torch.equal(load_purifier(tmp_path / "out")(image), read(image))
    used = load_purifier(tmp_path / "out").used_as(load_settings(None, [*WORDS, "comdefend.test_noise=0"]))
    assert torch.equal(used(image), read(image))  # the offset is the network's, whatever a run's settings say


def test_what_is_no_such_pair_of_lists_is_refused(tmp_path: Path) -> None:
    """No directory, a file too few, other shapes, other arrays: by name, with the first that differ."""
    with pytest.raises(UserError, match=r"expected a directory with ComDefend's enc\*\.npy and dec\*\.npy"):
        ComDefendPurifier.from_published(tmp_path / "enc.npy")
    directory = published(tmp_path / "weights", [4], 5)
    decoder = directory / "dec20_0.0001.npy"
    arrays = read_array_list(decoder)
    for changed, message in (
        (
            arrays[:-1],
            r"dec20_0\.0001\.npy: expected a bias \[out\] for every kernel .*it has 3 arrays: \(3, 3, 5, 4\)",
        ),
        ([arrays[0][:2], *arrays[1:]], r"decoder\.0\.0\.weight \(is \(4, 5, 2, 3\), expected \(4, 5, 3, 3\)\)"),
        ([arrays[0] * np.nan, *arrays[1:]], r"decoder\.0\.0\.weight \(holds NaN"),
    ):
        objects = np.empty(len(changed), object)
        objects[:] = changed
        np.save(decoder, objects, allow_pickle=True)
        with pytest.raises(UserError, match=message):
            ComDefendPurifier.from_published(directory)
    decoder.unlink()
    with pytest.raises(UserError, match=r"weights: expected one dec\*\.npy; it has none"):
        ComDefendPurifier.from_published(directory)


def test_a_checkpoint_of_before_there_was_an_offset_is_gone_on_with() -> None:
    """The architecture that is compared says nothing of an offset of 0, and that of another is another's."""
    plain, moved = (
        ComDefendPurifier.from_settings(load_settings(None, [*WORDS, f"comdefend.offset={value}"]))
        for value in (0, 0.5)
    )
    assert "offset" not in plain.config()["model"]
    assert moved.config()["model"]["offset"] == 0.5


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(UserError, match=r"comdefend\.widths=\[\]: expected at least one width"):
        load_settings(None, [*WORDS, "comdefend.widths=[]"])
    with pytest.raises(UserError, match=r"objective\.name=purification: trains no network .*choose one of code"):
        load_settings(None, [*WORDS, "objective.name=purification"])
    with pytest.raises(UserError, match=r"purify\.passes=2: comdefend has no such option; it has purify\.batch_tiles"):
        load_settings(None, [*WORDS, "purify.passes=2"])


def test_it_is_trained_on_clean_images(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """No attack is asked for, the loss falls, and a training that was paused ends with the same bits."""
    words = [*WORDS, "comdefend.widths=[8]", "comdefend.bits=4", "comdefend.noise=1", "objective.distance=mse",
             "pretrain.steps=12", "pretrain.lr=0.01", "pretrain.log_every=1"]  # fmt: skip
    whole = Path(shutil.copytree(run_dir, tmp_path / "whole"))
    for run, more in ((whole, []), (run_dir, ["pretrain.pause_at=5"]), (run_dir, [])):
        settings = load_settings("digits", problem.arguments(run, *words, *more)[1:])
        with pytest.raises(Paused) if more else nullcontext():
            run_pipeline(settings, "pretrain", lambda _, given: pretrain(given))
    first, second = (sha256_file(run / "purifier/model.safetensors") for run in (whole, run_dir))
    assert first == second
    losses = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert "attack" not in read_json(whole / "stages/pretrain.json")["inputs"]
