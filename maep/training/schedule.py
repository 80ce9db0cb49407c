"""Training length and learning rate: pure functions of settings and step, so they need no saved state."""

import math

from maep.config.schema import TrainSettings


def total_steps(settings: TrainSettings, images: int) -> int:
    """Optimizer steps of the whole training; the last epoch is completed by whole batches."""
    return settings.steps or math.ceil(settings.epochs * images / settings.batch_size)


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine from `lr` to `min_lr`, at a 0-based step of `steps`."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
