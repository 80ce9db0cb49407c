"""Weights of MAE's official code (mae_vit_*) in the masked autoencoder, with the same function.

MAE normalises pixels with ImageNet's mean and deviation, this library scales them to [-1, 1]; the difference is folded
into the first linear layer, and into the last one where that predicts pixels: a file that was trained with
norm_pix_loss, whose patches are normalized, is for `model.prediction=normalized`. The position tables of those files
are fixed; they are checked against the formula and not loaded.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.normalized_patches import IMAGENET_MEAN, IMAGENET_STD
from maep.models.positions import sincos_positions
from maep.models.weights import load_weights, read_weights
from maep.runtime.console import say
from maep.runtime.errors import fail

TABLES = ("pos_embed", "decoder_pos_embed")
ADDED = ("stem.", "refine.")


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Whether these are names of MAE's official code: only it stores its position table."""
    return "pos_embed" in state


def load_official(model: MaskedAutoencoder, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load an official checkpoint, key for key.

    An encoder-only file (as `mae_pretrain_vit_base.pth`) leaves the decoder as it is, and says so; residual
    prediction leaves its last layer, since the file's predicts none. Raises UserError naming the keys that
    do not fit, and for a position table that is not the sine-cosine one.
    """
    for name in TABLES:
        if name in state:
            _check_table(state[name], name, source)
    weights = {name: tensor for name, tensor in state.items() if name not in TABLES}
    weights = _folded(weights, model.patch, model.normalized_patch is None)
    unaffected = [name for name in model.state_dict() if name.startswith(ADDED)]
    if not any(name.startswith("decoder") for name in weights):
        unaffected += [name for name in model.state_dict() if name.startswith(("decoder", "mask_token"))]
        say(f"{source}: holds an encoder only; the decoder starts untrained")
    elif model.config.prediction == "residual":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder_pred.")}
        unaffected += ["decoder_pred.weight", "decoder_pred.bias"]
        say(f"{source}: predicts no residual; with model.prediction=residual the last layer starts at zero")
    load_weights(model, weights, source, ignore=unaffected)


def _check_table(table: Tensor, name: str, source: str | Path) -> None:
    side = round((table.shape[1] - 1) ** 0.5)
    grid = sincos_positions(side, side, table.shape[2])
    expected = torch.cat([torch.zeros(1, table.shape[2]), grid])[None]
    # 1e-4 lets fp32 sines of another library pass, and no table that was learned.
    if table.shape != expected.shape or not torch.allclose(table.float(), expected, atol=1e-4):
        fail(f"{source}: {name} is not MAE's fixed sine-cosine table; only fixed positions can be loaded")


def _folded(weights: dict[str, Tensor], patch: int, predicts_pixels: bool) -> dict[str, Tensor]:
    """The same function on pixels in [-1, 1]."""
    folded, mean, std = dict(weights), torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    embed = weights.get("patch_embed.proj.weight")
    if embed is not None and embed.ndim == 4 and embed.shape[1] == 3 and "patch_embed.proj.bias" in weights:
        shift = (embed * ((0.5 - mean) / std)[:, None, None]).sum((1, 2, 3))
        folded["patch_embed.proj.weight"] = embed / (2 * std)[:, None, None]
        folded["patch_embed.proj.bias"] = weights["patch_embed.proj.bias"] + shift
    pred = weights.get("decoder_pred.weight")
    if predicts_pixels and pred is not None and len(pred) == 3 * patch**2 and "decoder_pred.bias" in weights:
        scale, offset = (2 * std).repeat(patch**2), (2 * mean - 1).repeat(patch**2)
        folded["decoder_pred.weight"] = pred * scale[:, None]
        folded["decoder_pred.bias"] = weights["decoder_pred.bias"] * scale + offset
    return folded


def load_initial(model: MaskedAutoencoder, path: Path) -> None:
    """Start `model` from a file (`model.init`): an official MAE checkpoint, or weights of this library.

    path: as `read_weights` takes it; a directory with `model.safetensors` such as `purifier/` is one.
    Raises UserError when it is missing or its weights do not fit.
    """
    path = path / "model.safetensors" if (path / "model.safetensors").is_file() else path
    state = read_weights(path, model.state_dict())
    if is_official(state):
        load_official(model, state, path)
    else:
        load_weights(model, state, path)
