"""Our training step beside that of facebookresearch/mae: its own model, from a checkout that the user has.

Networks of the same sizes, each in a process of its own with one thread, in turn, by seconds of CPU: ours as the
trainer makes it, theirs as its engine_pretrain.py does without its logging (forward, backward, AdamW).
"""

import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import vision_transformer
from torch import nn

from maep.benchmarks.bench_report import BenchRow
from maep.benchmarks.measured_process import MeasuredProcess, answer, in_turn
from maep.benchmarks.shared_cores import training_command
from maep.config.schema import Settings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.runtime.errors import fail

MODULE = "models_mae.py"
FEW = 8  # images a step: a step of the paper's model takes a second of one core
ROUNDS = 5  # of both in turn, for a median


class _Block(vision_transformer.Block):
    """timm's block as timm 0.3.2 had it, for which that code was written: `qk_scale`, always None there, is gone."""

    def __init__(self, *words: Any, qk_scale: None = None, **named: Any) -> None:
        super().__init__(*words, **named)


def require_checkout(directory: Path) -> None:
    """Raise UserError where this is no checkout of facebookresearch/mae."""
    if not (directory / MODULE).is_file():
        fail(f"--mae {directory}: no {MODULE} there; name a checkout of facebookresearch/mae")


def beside_mae(settings: Settings, batch: int, budget: float, scratch: Path, checkout: Path) -> list[BenchRow]:
    """Images per CPU second of our step; the ratio to theirs is above 1 where ours is faster.

    A second row is of our step compiled, where the settings have it so; theirs has no such option. batch: images a
    step. budget: CPU seconds of each figure. scratch: directory with the shards that the bench has written.
    """
    settings = replace(settings, compute=replace(settings.compute, threads=1))
    ways = dict.fromkeys((False, settings.compute.compile))
    ours = [training_command(settings, batch, scratch, compiled=compiled) for compiled in ways]
    with ExitStack() as stack:
        commands = (*ours, [*ours[0], "--mae", str(checkout)])
        processes = [stack.enter_context(MeasuredProcess(words)) for words in commands]
        *own, theirs = in_turn(processes, budget, ROUNDS)
    limit = f"facebookresearch/mae {statistics.median(theirs):.2f} images/s"
    return [
        BenchRow(
            f"training step{', compiled,' * compiled} beside the official MAE's, {batch} images",
            statistics.median(rates), "images/s of one core", limit,
            statistics.median(mine / other for mine, other in zip(rates, theirs, strict=True)),
        )
        for compiled, rates in zip(ways, own, strict=True)
    ]  # fmt: skip


def train_official_on_request(settings: Settings, batch: int, checkout: Path) -> None:
    """Be its training, on one batch of random pixels, as often as standard input asks.

    The allocator stays as torch has it, and the learning rate as our trainer's: its scripts set neither for a CPU.
    """
    torch.set_num_threads(settings.compute.threads)
    torch.manual_seed(settings.run.seed)
    model = _official(settings, checkout)
    ours, theirs = (
        sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (MaskedAutoencoder(settings.model), model)
    )
    if ours != theirs:
        fail(f"--mae: {ours:,} parameters are trained here and {theirs:,} there; choose model.* that both have")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.pretrain.lr, betas=(0.9, 0.95))
    size = settings.model.image_size
    images, ratio = torch.rand(batch, 3, size, size), settings.pretrain.mask_ratio

    def step() -> None:
        loss, _, _ = model(images, mask_ratio=ratio)
        loss.item()  # its engine stops for a loss that is not finite
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    answer(step, batch, sys.stdin)


def _official(settings: Settings, checkout: Path) -> nn.Module:
    sizes = settings.model
    np.float = float  # type: ignore[attr-defined]  # its util/pos_embed.py asks for it; NumPy 1.24 took it away
    vision_transformer.Block = _Block  # type: ignore[misc]
    sys.path.insert(0, str(checkout.resolve()))
    from models_mae import MaskedAutoencoderViT

    return MaskedAutoencoderViT(
        img_size=sizes.image_size, patch_size=sizes.patch_size,
        embed_dim=sizes.encoder_width, depth=sizes.encoder_depth, num_heads=sizes.encoder_heads,
        decoder_embed_dim=sizes.decoder_width, decoder_depth=sizes.decoder_depth,
        decoder_num_heads=sizes.decoder_heads, mlp_ratio=sizes.mlp_ratio, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).train()  # fmt: skip
