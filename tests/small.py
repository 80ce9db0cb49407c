"""A small real classifier on handwritten digits, a real purifier of three lines, and shards of the digits."""

import copy
import os
import signal
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from maep.config.implementations import THREAT_MODELS
from maep.data.shard_manifest import CleanManifest
from maep.data.shards import ShardSet, ShardWriter, seal_shard_set, shard_name, to_uint8

SIZE = 16
ATTACKERS = tuple(name for name in THREAT_MODELS if name != "twin")  # who need nothing but a defense


def digits(classes: int = 10) -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits below `classes`: float [N, 3, 16, 16] in [0,1] of 8-bit levels, int64 [N]."""
    source = load_digits()
    images = torch.tensor(source.images / 16, dtype=torch.float32)[:, None]
    images = nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(source.target, dtype=torch.int64)
    own = labels < classes
    return (to_uint8(images[own]).float() / 255).contiguous(), labels[own]


def train_small(classes: int = 10, steps: int = 150, kind: str = "convolutions") -> nn.Module:
    """A net that learns the digits in about a second; always the same weights, a module of its own.

    kind: `convolutions`, or `perceptron`, which has none.
    """
    return copy.deepcopy(_trained(classes, steps, kind))


def _network(classes: int, kind: str) -> nn.Module:
    if kind == "perceptron":
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 64), nn.GELU(), nn.Linear(64, classes))
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, classes),
    )  # fmt: skip


@cache
def _trained(classes: int, steps: int, kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _network(classes, kind)
        images, labels = digits(classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        for _ in range(steps):
            index = torch.randint(len(images), (64,))
            loss = nn.functional.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.zero_grad()
    return model.eval().requires_grad_(False)


class Blur(nn.Module):
    """A purifier: 3×3 blur, [N, 3, H, W] in [0,1] → same."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.kernel.expand(3, 1, 3, 3)
        padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
        return nn.functional.conv2d(padded, weight, groups=3).clamp(0, 1)


def write_shards(directory: Path, count: int, classes: int = 10) -> ShardSet:
    """The first `count` digits as a sealed shard set."""
    directory.mkdir(parents=True)
    images, labels = digits(classes)
    with ShardWriter(directory / shard_name(0)) as writer:
        for index in range(count):
            image = to_uint8(images[index]).permute(1, 2, 0).contiguous().numpy()
            writer.write(index, image, int(labels[index]))
    names = [str(number) for number in range(classes)]
    manifest = CleanManifest(dataset="digits", split="test", image_size=SIZE, classes=tuple(names))
    seal_shard_set(directory, manifest)
    return ShardSet(directory)


def killed_after(owner: type, method: str, is_time: Callable[..., bool]) -> None:
    """SIGKILL to this process after that call of a class's method for which `is_time(*arguments)` holds.

    Whoever watches from outside and then kills may come too late, where all is finished, on a busy machine.
    """
    original = getattr(owner, method)

    @wraps(original)
    def replacement(*arguments: Any) -> Any:
        result = original(*arguments)
        if is_time(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, replacement)
