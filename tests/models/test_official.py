"""Official MAE checkpoints load key for key and compute what MAE's own code computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder, patchify
from maep.models.normalized_patches import IMAGENET_MEAN, IMAGENET_STD
from maep.models.official import load_initial
from maep.models.positions import sincos_positions
from maep.runtime.errors import UserError

SIDE, PATCH, WIDTH, DEPTH, DECODER_WIDTH, DECODER_DEPTH, HEADS = 32, 16, 24, 2, 16, 1, 2
SETTINGS: dict[str, Any] = {
    "image_size": SIDE, "patch_size": PATCH, "encoder_width": WIDTH, "encoder_depth": DEPTH, "encoder_heads": HEADS,
    "decoder_width": DECODER_WIDTH, "decoder_depth": DECODER_DEPTH, "decoder_heads": HEADS,
}  # fmt: skip


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **norm(f"{name}.norm1", width), **linear(f"{name}.attn.qkv", 3 * width, width),
        **linear(f"{name}.attn.proj", width, width), **norm(f"{name}.norm2", width),
        **linear(f"{name}.mlp.fc1", 4 * width, width), **linear(f"{name}.mlp.fc2", width, 4 * width),
    }  # fmt: skip


def official_shapes(side: int, patch: int, sizes: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    """Every key and shape of `mae_vit_*`'s state dict."""
    width, depth, decoder_width, decoder_depth = sizes
    tokens = (side // patch) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, tokens, width), "mask_token": (1, 1, decoder_width),
        "decoder_pos_embed": (1, tokens, decoder_width), "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,), **norm("norm", width), **norm("decoder_norm", decoder_width),
        **linear("decoder_embed", decoder_width, width), **linear("decoder_pred", patch**2 * 3, decoder_width),
    }  # fmt: skip
    for i in range(depth):
        shapes |= block(f"blocks.{i}", width)
    for i in range(decoder_depth):
        shapes |= block(f"decoder_blocks.{i}", decoder_width)
    return shapes


def official_state() -> dict[str, Tensor]:
    """A small official checkpoint with random weights and MAE's fixed position tables."""
    generator = torch.Generator().manual_seed(1)
    shapes = official_shapes(SIDE, PATCH, (WIDTH, DEPTH, DECODER_WIDTH, DECODER_DEPTH))
    state = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    for name, width in (("pos_embed", WIDTH), ("decoder_pos_embed", DECODER_WIDTH)):
        table = sincos_positions(SIDE // PATCH, SIDE // PATCH, width)
        state[name] = torch.cat([torch.zeros(1, width), table])[None]
    return state


def reference_block(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    def apply(kind: Callable[..., Tensor], part: str, value: Tensor, *others: Any) -> Tensor:
        return kind(value, *others, state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"])

    def layer_norm(part: str, value: Tensor) -> Tensor:
        normed = F.layer_norm(value, value.shape[-1:], eps=1e-6)
        return normed * state[f"{name}.{part}.weight"] + state[f"{name}.{part}.bias"]

    n, t, width = x.shape
    qkv = apply(F.linear, "attn.qkv", layer_norm("norm1", x)).view(n, t, 3, HEADS, width // HEADS)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    weights = (q @ k.transpose(-2, -1) / (width // HEADS) ** 0.5).softmax(-1)
    x = x + apply(F.linear, "attn.proj", (weights @ v).transpose(1, 2).reshape(n, t, width))
    return x + apply(F.linear, "mlp.fc2", F.gelu(apply(F.linear, "mlp.fc1", layer_norm("norm2", x))))


def reference(state: dict[str, Tensor], images: Tensor, keep: list[int]) -> Tensor:
    """MAE's computation on ImageNet-normalised images: predicted patches [N, T, p*p*3]. keep: visible patches."""

    def final_norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    n = len(images)
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = (x.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:])[:, keep]
    x = torch.cat([(state["cls_token"] + state["pos_embed"][:, :1]).expand(n, -1, -1), x], dim=1)
    for i in range(DEPTH):
        x = reference_block(x, state, f"blocks.{i}")
    x = F.linear(final_norm("norm", x), state["decoder_embed.weight"], state["decoder_embed.bias"])
    full = state["mask_token"].repeat(n, state["pos_embed"].shape[1], 1)
    full[:, [0] + [1 + i for i in keep]] = x
    x = full + state["decoder_pos_embed"]
    for i in range(DECODER_DEPTH):
        x = reference_block(x, state, f"decoder_blocks.{i}")
    return F.linear(final_norm("decoder_norm", x), state["decoder_pred.weight"], state["decoder_pred.bias"])[:, 1:]


def saved(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / "mae.pth"
    torch.save({"model": state}, path)
    return path


def test_has_the_names_and_shapes_of_the_base_model() -> None:
    """At mae_vit_base_patch16's sizes: its keys, its shapes, its 111,907,840 numbers."""
    with torch.device("meta"):
        net = MaskedAutoencoder(
            ModelSettings(
                image_size=224, patch_size=16, encoder_width=768, encoder_depth=12, encoder_heads=12,
                decoder_width=512, decoder_depth=8, decoder_heads=16,
            )
        )  # fmt: skip
    shapes = official_shapes(224, 16, (768, 12, 512, 8))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 111_907_840
    tables = {"pos_embed", "decoder_pos_embed"}
    assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == {
        name: shape for name, shape in shapes.items() if name not in tables
    }


def test_loads_key_for_key(tmp_path: Path) -> None:
    """Every tensor but the folded first and last layer and the fixed tables arrives unchanged."""
    state = official_state()
    net = MaskedAutoencoder(ModelSettings(**SETTINGS))
    load_initial(net, saved(tmp_path, state))
    loaded = net.state_dict()
    assert set(loaded) | {"pos_embed", "decoder_pos_embed"} == set(state)
    for name in loaded:
        if not name.startswith(("patch_embed", "decoder_pred")):
            assert torch.equal(loaded[name], state[name]), name


@pytest.mark.parametrize("keep", [[0, 1, 2, 3], [1, 2]])
def test_computes_what_mae_computes(tmp_path: Path, keep: list[int]) -> None:
    """On [0, 1] images it predicts what MAE predicts on normalised ones, masked or not."""
    state = official_state()
    net = MaskedAutoencoder(ModelSettings(**SETTINGS)).eval()
    load_initial(net, saved(tmp_path, state))
    images = torch.rand(2, 3, SIDE, SIDE)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    visible = torch.zeros(2, 4, dtype=torch.bool)
    visible[:, keep] = True
    expected = reference(state, (images - mean) / std, keep)
    predicted = patchify((net(images, visible) - mean) / std, PATCH)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [[0, 1, 2, 3], [1, 2]])
def test_predicts_the_normalized_patches_of_norm_pix_loss(tmp_path: Path, keep: list[int]) -> None:
    """With model.prediction=normalized: what such a file predicts, and of it the pixels that its authors show, those
    of the input's patches having the mean and deviation.
    """
    state = official_state()
    net = MaskedAutoencoder(ModelSettings(**SETTINGS, prediction="normalized")).eval()
    load_initial(net, saved(tmp_path, state))
    images = torch.rand(2, 3, SIDE, SIDE)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    visible = torch.zeros(2, 4, dtype=torch.bool)
    visible[:, keep] = True
    expected = reference(state, (images - mean) / std, keep)
    predicted = patchify(net(images, visible, normalized=True), PATCH)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-4)
    target = patchify((images - mean) / std, PATCH)
    shown = expected * (target.var(-1, keepdim=True) + 1e-6) ** 0.5 + target.mean(-1, keepdim=True)
    restored = patchify((net(images, visible) - mean) / std, PATCH)
    torch.testing.assert_close(restored, shown, rtol=1e-4, atol=1e-4)


def test_encoder_only_file_leaves_the_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """mae_pretrain_*.pth has no decoder: the encoder is loaded, the decoder kept, and the user told."""
    state = {k: v for k, v in official_state().items() if not k.startswith(("decoder", "mask_token"))}
    net = MaskedAutoencoder(ModelSettings(**SETTINGS))
    before = net.decoder_embed.weight.clone()
    load_initial(net, saved(tmp_path, state))
    assert torch.equal(net.norm.weight, state["norm.weight"])
    assert torch.equal(net.decoder_embed.weight, before)
    assert "the decoder starts untrained" in capsys.readouterr().out


def test_residual_prediction_still_starts_as_the_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's last layer predicts no residual; with residuals it is left at zero, and the user told."""
    net = MaskedAutoencoder(ModelSettings(**SETTINGS, prediction="residual"))
    load_initial(net, saved(tmp_path, official_state()))
    images = torch.rand(1, 3, SIDE, SIDE)
    torch.testing.assert_close(net(images), images, rtol=0, atol=1e-6)
    assert "starts at zero" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_depth": 3}, r"blocks\.2\.norm1\.weight \(missing\)"),
        ({"class_token": False}, r"cls_token \(unexpected\)"),
        ({"patch_size": 8}, r"patch_embed\.proj\.weight \(is .*16, 16\), expected .*8, 8\)"),
        ({"stem_width": 4, "stem_depth": 1}, r"patch_embed\.proj\.weight"),
    ],
)
def test_names_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A model of other sizes gets a UserError with the file and the keys."""
    net = MaskedAutoencoder(ModelSettings(**{**SETTINGS, **changes}))
    with pytest.raises(UserError, match=rf"mae\.pth.*{message}"):
        load_initial(net, saved(tmp_path, official_state()))


def test_refuses_learned_positions(tmp_path: Path) -> None:
    """A table that is not the fixed one cannot be represented, so it is refused by name."""
    state = official_state()
    state["decoder_pos_embed"] = state["decoder_pos_embed"] + 0.01
    with pytest.raises(UserError, match="decoder_pos_embed"):
        load_initial(MaskedAutoencoder(ModelSettings(**SETTINGS)), saved(tmp_path, state))
