"""Training length and learning rate: pure functions of settings and step, so they need no saved state."""

import math

from maep.config.training_settings import RobustSettings, TrainSettings
from maep.runtime.errors import fail


def held_out_images(settings: TrainSettings, robust: RobustSettings) -> int:
    """How many of the training images a training does not see, since it is checked on them."""
    return robust.check_images if settings.attacked == "whole" and robust.check_every else 0


def check_held_out(held_out: int, images: int) -> None:
    """Raise UserError where nothing is left to train on."""
    if held_out >= images:
        fail(f"robust.check_images={held_out}: leaves nothing of {images} training images; choose fewer")


def total_steps(settings: TrainSettings, images: int) -> int:
    """Optimizer steps of the whole training; the last epoch is completed by whole batches.

    images: of an epoch, without those that are held out.
    """
    return settings.steps or math.ceil(settings.epochs * images / settings.batch_size)


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine from `lr` to `min_lr`, at a 0-based step of `steps`."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
