"""The masked autoencoder: what it sees, what it starts as, what it costs, and which sizes it takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder, patchify, unpatchify
from maep.models.normalized_patches import restored_patches

SMALL: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "encoder_width": 32, "encoder_depth": 2, "encoder_heads": 2,
    "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip
STEM = {"stem_width": 6, "stem_depth": 2}
COARSE_STEM = {**STEM, "stem_scale": 2}
REFINE = {"refine_width": 8, "refine_depth": 1, "refine_scale": 2}


def model(**changes: Any) -> MaskedAutoencoder:
    """A small one with all weights random, so that nothing is hidden by a zero initialisation."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(ModelSettings(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def half_visible(rows: int, patches: int) -> Tensor:
    """A different random half for each row."""
    order = torch.stack([torch.randperm(patches, generator=torch.Generator().manual_seed(i)) for i in range(rows)])
    return order < patches // 2


def other_hidden_pixels(images: Tensor, visible: Tensor, patch: int) -> Tensor:
    """The same images with every hidden pixel replaced."""
    grid = (images.shape[2] // patch, images.shape[3] // patch)
    patches = torch.where(visible[:, :, None], patchify(images, patch), torch.rand(1))
    return unpatchify(patches, patch, grid)


@pytest.mark.parametrize("patch", [1, 2, 4, 8, 16])
def test_takes_every_patch_size_and_other_image_sizes(patch: int) -> None:
    """Output has the input's shape, at the training size and at a wider one, with and without mask."""
    net = model(patch_size=patch)
    for height, width in ((16, 16), (16, 32)):
        images = torch.rand(2, 3, height, width)
        visible = half_visible(2, height * width // patch**2) if patch < 16 else None
        assert net(images, visible).shape == images.shape
        assert net(images).shape == images.shape


def test_patches_are_in_maes_order() -> None:
    """Entry (row, column, channel) of patch t is that pixel, channels fastest; unpatchify inverts."""
    images = torch.rand(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert patches[1, 4, (2 * 4 + 3) * 3 + 1] == images[1, 1, 4 + 2, 4 + 3]
    assert torch.equal(unpatchify(patches, 4, (2, 3)), images)


@pytest.mark.parametrize("parts", [{}, STEM, COARSE_STEM, REFINE, {**STEM, **REFINE, "prediction": "residual"}])
@pytest.mark.parametrize("token", [True, False])
def test_hidden_pixels_have_no_influence(parts: dict[str, Any], token: bool) -> None:
    """Whatever the hidden patches hold, latent and prediction are the same to the last bit."""
    net = model(**parts, class_token=token)
    images, visible = torch.rand(3, 3, 16, 16), half_visible(3, 16)
    changed = other_hidden_pixels(images, visible, 4)
    assert not torch.equal(images, changed)
    assert torch.equal(net(images, visible), net(changed, visible))
    assert torch.equal(net.encode(images, visible), net.encode(changed, visible))


def test_visible_pixels_have_influence_everywhere() -> None:
    """A visible pixel changes the prediction of hidden patches: the mask hides those patches only."""
    net = model()
    images, visible = torch.rand(1, 3, 16, 16), half_visible(1, 16)
    pixels = images.clone().requires_grad_()
    hidden = patchify(net(pixels, visible), 4)[~visible]
    (gradient,) = torch.autograd.grad(hidden.sum(), pixels)
    touched = patchify(gradient, 4).abs().sum(-1)
    assert bool((touched[visible] > 0).all())
    assert bool((touched[~visible] == 0).all())


def test_encoder_has_tokens_of_visible_patches_only() -> None:
    """Half of the patches and the class token go through the encoder; all are predicted."""
    net = model()
    images, visible = torch.rand(2, 3, 16, 16), half_visible(2, 16)
    latent = net.encode(images, visible)
    assert latent.shape == (2, 8 + 1, 32)
    assert net.decode(latent, (4, 4), visible).shape == (2, 16, 48)


def test_all_visible_equals_no_mask() -> None:
    """r = 0 by a mask of ones is r = 0 by no mask."""
    net = model(**STEM, **REFINE)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(net(images, torch.ones(2, 16, dtype=torch.bool)), net(images))


@pytest.mark.parametrize("parts", [{}, STEM, REFINE])
def test_residual_starts_as_the_identity_on_what_is_visible(parts: dict[str, Any]) -> None:
    """Fresh, it returns visible pixels as they are, and mid-grey (0 in [-1, 1]) where they are hidden."""
    net = MaskedAutoencoder(ModelSettings(**SMALL, prediction="residual", **parts))
    images, visible = torch.rand(2, 3, 16, 16), half_visible(2, 16)
    torch.testing.assert_close(net(images), images, rtol=0, atol=1e-6)
    patches = patchify(net(images, visible), 4)
    torch.testing.assert_close(patches[visible], patchify(images, 4)[visible], rtol=0, atol=1e-6)
    assert bool((patches[~visible] == 0.5).all())


@pytest.mark.parametrize("parts", [{}, STEM, REFINE])
def test_of_hidden_pixels_a_normalized_prediction_has_mean_and_deviation_alone(parts: dict[str, Any]) -> None:
    """What is predicted does not depend on them; what it is made into does, by nothing but those two."""
    net = model(**parts, prediction="normalized")
    images, visible = torch.rand(3, 3, 16, 16), half_visible(3, 16)
    changed = other_hidden_pixels(images, visible, 4)
    predicted = net(images, visible, normalized=True)
    assert torch.equal(predicted, net(changed, visible, normalized=True))
    assert torch.equal(net(changed, visible), restored_patches(predicted, changed, 4))
    assert torch.equal(net(changed, visible, like=images), net(images, visible))
    assert torch.equal(net(images, visible), restored_patches(predicted, images, 4))


def test_pixels_and_residuals_are_in_their_units() -> None:
    """A constant c from the last layer is (c + 1) / 2 as pixel, and input + c * residual_scale as residual."""
    images = torch.rand(1, 3, 16, 16)
    for prediction, expected in (("pixels", torch.full_like(images, 0.75)), ("residual", images + 0.05)):
        net = model(prediction=prediction, residual_scale=0.1)
        torch.nn.init.zeros_(net.decoder_pred.weight)
        torch.nn.init.constant_(net.decoder_pred.bias, 0.5)
        torch.testing.assert_close(net(images), expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda visible: visible.index_put((torch.tensor(0), torch.arange(16)), torch.tensor(True)), "equally many"),
        (torch.zeros_like, "at least one"),
        (lambda visible: visible.new_ones(2, 9), "expected"),
    ],
)
def test_refuses_masks_that_do_not_fit(spoil: Callable[[Tensor], Tensor], message: str) -> None:
    """Unequal rows, nothing visible, and another number of patches each raise, saying so."""
    with pytest.raises(ValueError, match=message):
        model()(torch.rand(2, 3, 16, 16), spoil(half_visible(2, 16)))


def test_refuses_images_that_do_not_fit() -> None:
    """Grey images and sides that p does not divide raise, naming the shape."""
    for shape in ((1, 1, 16, 16), (1, 3, 16, 18)):
        with pytest.raises(ValueError, match=str(shape[3])):
            model()(torch.rand(shape))


class _CountAttention(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def test_attention_is_fused() -> None:
    """Each of the three blocks calls scaled_dot_product_attention once."""
    with _CountAttention() as counter:
        model()(torch.rand(1, 3, 16, 16))
    assert counter.calls == 3


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("parts", [{}, {**STEM, **REFINE, "class_token": False}, {**COARSE_STEM, "stem_depth": 3}])
def test_flops_agree_with_torchs_counter(parts: dict[str, Any], ratio: float) -> None:
    """`flops` is within 2 % of torch's own count of a forward pass."""
    net = model(**parts, patch_size=2)
    visible = half_visible(1, 64) if ratio else None
    # The counter knows the attention of the math backend only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, 16, 16), visible)
    assert net.flops(16, ratio) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("prediction", ["pixels", "residual", "normalized"])
def test_pixels_are_not_rounded_to_bf16_by_autocast(prediction: str) -> None:
    """Under autocast the prediction is fp32 and finer than bf16's levels; it agrees with fp32's."""
    net, images = model(prediction=prediction, **STEM, **REFINE), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        patches = net.decode(net.encode(images), (4, 4))
        purified = net(images)
    assert patches.dtype == purified.dtype == torch.float32
    assert not torch.equal(patches, patches.bfloat16().float())
    torch.testing.assert_close(purified, net(images), rtol=0.05, atol=0.05)


def test_compiled_equals_eager() -> None:
    """torch.compile's capture gives the same output and gradient, with and without a mask.

    By the backend that needs no C++ compiler; generating code for the CPU takes minutes on a slow machine.
    """
    net = model(encoder_depth=1, **REFINE)
    compiled = torch.compile(net, backend="aot_eager")
    images = torch.rand(2, 3, 16, 16)
    for visible in (None, half_visible(2, 16)):
        results = []
        for run in (net, compiled):
            net.zero_grad()
            out = run(images, visible)
            out.square().mean().backward()
            results.append((out.detach(), net.decoder_embed.weight.grad.clone()))  # type: ignore[union-attr]
        for eager, fast in zip(*results, strict=True):
            torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-6)


def test_latent_beside_the_images() -> None:
    """With latent=True the images stay the same and E of the same input comes with them."""
    network, images = model(**REFINE), torch.rand(2, 3, 16, 16)
    purified, latent = network(images, latent=True)
    assert torch.equal(purified, network(images))
    assert torch.equal(latent, network.encode(images))
