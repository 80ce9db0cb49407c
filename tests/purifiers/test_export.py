"""Purifiers leave Python: torch.export, torch.jit.trace and ONNX take any number of images and give the same ones."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maep import load_purifier
from maep.config.evaluation_settings import PurifySettings
from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier, Purifier, save_purifier
from maep.purifiers.median import MedianPurifier, MedianSettings

SMALL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=16,
    decoder_depth=1, decoder_heads=2, refine_width=8, refine_depth=1, refine_scale=2,
)  # fmt: skip
BATCHES = (1, 5, 9)


def network() -> MaskedAutoencoder:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(False).eval()


def traced(module: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that become constants: the sizes of the images are meant to
        return torch.jit.trace(module, images)  # type: ignore[no-any-return]


def exported(module: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    free = ({0: torch.export.Dim("n")},)
    return torch.export.export(module, (images,), dynamic_shapes=free).module()


def purifiers(directory: Path) -> dict[str, Purifier]:
    """As they are loaded; one of two tiles a forward, so that batches would be split."""
    save_purifier(MAEPurifier(network(), PurifySettings(batch_tiles=2, overlap=4)), directory / "tiles")
    save_purifier(MedianPurifier(MedianSettings()), directory / "median")
    return {path.name: load_purifier(path) for path in directory.iterdir()}


@pytest.mark.parametrize("method", [traced, exported])
def test_any_number_of_images(tmp_path: Path, method: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    """Made with two images, equal to the purifier on others, of one tile and of several."""
    modules: dict[str, nn.Module] = {**purifiers(tmp_path), "network": network()}
    for name, size in (("network", 16), ("tiles", 24), ("median", 16)):
        run = method(modules[name], torch.rand(2, 3, size, size))
        for count in BATCHES:
            images = torch.rand(count, 3, size, size)
            assert torch.allclose(run(images), modules[name](images), atol=1e-6), f"{name}, {count} images"


def test_a_trace_with_hidden_patches_takes_any_number() -> None:
    """Half of the patches hidden, others in each image."""
    model = network()
    run = traced(model, (torch.rand(2, 3, 16, 16), masks(2)))  # type: ignore[arg-type]
    for count in BATCHES:
        images, visible = torch.rand(count, 3, 16, 16), masks(count)
        assert torch.equal(run(images, visible), model(images, visible))  # type: ignore[call-arg]


def masks(count: int) -> Tensor:
    return torch.rand(count, 16).argsort(1) < 8


def test_onnx(tmp_path: Path) -> None:
    """The same through onnxruntime."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"ONNX is not tested: {package} is not installed")
    for name, purifier in purifiers(tmp_path).items():
        size = 24 if name == "tiles" else 16
        free = ({0: torch.export.Dim("n")},)
        program = torch.onnx.export(purifier, (torch.rand(2, 3, size, size),), dynamic_shapes=free, dynamo=True)
        assert program is not None
        for count in BATCHES:
            images = torch.rand(count, 3, size, size)
            assert torch.allclose(torch.as_tensor(program(images)[0]), purifier(images), atol=1e-5), name


@pytest.mark.parametrize("options", [{"noise": 0.1}, {"mask_ratio": 0.5}])
def test_a_random_purifier_is_not_exported(options: dict[str, float]) -> None:
    """Its one draw would be in every answer."""
    with pytest.raises(Exception, match="must be 0 in an export"):
        traced(MAEPurifier(network(), PurifySettings(**options)), torch.rand(2, 3, 16, 16))
