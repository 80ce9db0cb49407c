"""The plain convolutional denoiser: its network written out, sizes its scale does not divide, its cost, learning."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maep.benchmarks.compute_rates import flops_of
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.models.convolutions import ResidualDenoiser
from maep.purifiers.residual_cnn import ResidualCnnPurifier, ResidualCnnSettings
from maep.runtime.errors import UserError


def purifier(scale: int = 1, **options: int) -> ResidualCnnPurifier:
    """Of random weights, the last convolution's among them."""
    network = ResidualCnnSettings(width=8, depth=2, scale=scale, unit=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualCnnPurifier.build(network)
        torch.nn.init.normal_(model.tail.weight, std=0.1)
        torch.nn.init.normal_(model.tail.bias, std=0.1)  # type: ignore[arg-type]
    return ResidualCnnPurifier(model.requires_grad_(False), network, PurifySettings(**options)).eval()


def pictures(height: int = 12, width: int = 12) -> Tensor:
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0))


def written_out(weights: dict[str, Tensor], images: Tensor, scale: int, unit: float) -> Tensor:
    """The network from its tensors by name, convolution after convolution."""

    def convolved(name: str, inputs: Tensor) -> Tensor:
        return F.conv2d(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    x = convolved("head", F.pixel_unshuffle(2 * images - 1, scale))
    for block in range(2):
        x = x + convolved(f"blocks.{block}.conv2", convolved(f"blocks.{block}.conv1", x).relu())
    return images + unit * F.pixel_shuffle(convolved("tail", x), scale)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_network_is_that_written_out(scale: int) -> None:
    """At every scale; clipped; two passes are P(P(x)); what the scale does not divide is continued and cut off."""
    defense, weights = purifier(scale), purifier(scale).model.state_dict()
    expected = written_out(weights, pictures(), scale, 0.1)
    assert expected.amax() > 1 or expected.amin() < 0
    torch.testing.assert_close(defense(pictures()), expected.clamp(0, 1))
    assert torch.equal(purifier(scale, passes=2)(pictures()), defense(defense(pictures())))
    continued = F.pad(pictures(11, 9), (0, -9 % scale, 0, -11 % scale), mode="replicate")
    cut = written_out(weights, continued, scale, 0.1)[:, :, :11, :9]
    torch.testing.assert_close(defense(pictures(11, 9)), cut.clamp(0, 1))


def test_it_starts_as_the_identity_and_learns() -> None:
    """Untrained it changes nothing; a few steps take away most of a shift of all pixels."""
    torch.manual_seed(0)
    model, images = ResidualDenoiser(8, 1, 2, 8 / 255), 0.2 + 0.6 * pictures()
    assert torch.equal(model(images), images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(40):
        loss = (model(images + 0.03) - images).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01


@pytest.mark.parametrize(("width", "depth", "scale"), [(32, 5, 1), (64, 5, 2), (64, 2, 4)])
def test_its_cost_is_that_of_its_convolutions(width: int, depth: int, scale: int) -> None:
    """Operations of an image: 18 a pixel, input and output channel of each."""
    pixels, ends = 32 * 32 / scale**2, 2 * 3 * scale**2
    expected = 18 * pixels * width * (ends + 2 * depth * width)
    assert flops_of(ResidualDenoiser(width, depth, scale, 0.1), torch.rand(1, 3, 32, 32)) == pytest.approx(expected)


def test_its_sizes_are_read_off_its_weights(tmp_path: Path) -> None:
    """All but the unit, which is the default's; another file is refused by name."""
    torch.save(purifier(2).model.state_dict(), tmp_path / "weights.pth")
    read = ResidualCnnPurifier.from_published(tmp_path / "weights.pth")
    assert read.network == ResidualCnnSettings(width=8, depth=2, scale=2)
    torch.save({"conv1.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: weights do not fit"):
        ResidualCnnPurifier.from_published(tmp_path / "other.pth")


def test_masks_are_refused() -> None:
    """In the settings, and by the network."""
    with pytest.raises(UserError, match=r"pretrain\.mask_ratio=0\.5: residual_cnn sees whole images"):
        load_settings(None, ["purifier.kind=residual_cnn", "pretrain.mask_ratio=0.5"])
    with pytest.raises(ValueError, match="whole images"):
        purifier().model(pictures(), torch.ones(3, 9, dtype=torch.bool))
