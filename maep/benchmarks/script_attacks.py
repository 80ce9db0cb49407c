"""PGD-20 as a script has it from this library, beside the same from torchattacks.

Each in a process of its own with one thread, in turn, by seconds of CPU, on the configured classifier and test images.
"""

import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import torch

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.benchmarks.measured_process import MeasuredProcess, answer, in_turn
from maep.config.schema import Settings
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_split
from maep.models.classifiers import load_classifier
from maep.runtime.console import say

OURS, THEIRS = "maep", "torchattacks"
SPEC = AttackSpec("pgd", "Linf", 8 / 255, 2 / 255, 20, random_start=True, targeted=False)
COUNT = 32  # images in one batch
ROUNDS = 5  # of both in turn, for a median


def beside_torchattacks(config: Path, budget: float) -> tuple[float, float] | None:
    """Images per CPU second of our PGD-20, and how many times theirs that is; None, and a line, where it is missing.

    config: file with the settings, shards among them. budget: CPU seconds of each figure.
    """
    if find_spec(THEIRS) is None:
        say(f"{THEIRS} is not installed: PGD is not compared with its")
        return None
    command = [sys.executable, "-m", "maep", "bench-evaluation", f"cfg={config}", "compute.threads=1", "--attack"]
    with ExitStack() as stack:
        processes = [stack.enter_context(MeasuredProcess([*command, whose])) for whose in (OURS, THEIRS)]
        own, theirs = in_turn(processes, budget, ROUNDS)
    ratio = statistics.median(mine / other for mine, other in zip(own, theirs, strict=True))
    return statistics.median(own), ratio


def attack_on_request(settings: Settings, whose: str) -> None:
    """Be a script that attacks by `whose` library, on one batch, as often as standard input asks."""
    torch.set_num_threads(settings.compute.threads)
    test = clean_split(settings, "test")
    classifier = load_classifier(settings.classifier, len(test.classes), classifier_weights(settings))
    keys = range(min(COUNT, len(test)))
    pixels, labels = test.batch(keys)
    images = pixels / 255
    answer(_attack(whose, classifier, images, labels), len(keys), sys.stdin)


def _attack(
    whose: str, classifier: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], torch.Tensor]:
    if whose == OURS:
        keys = range(len(images))
        return lambda: attack(classifier, images, labels, SPEC, keys, seed=0)
    import torchattacks  # the user's own, for a comparison: no dependency of ours

    theirs = torchattacks.PGD(classifier, eps=SPEC.eps, alpha=SPEC.step, steps=SPEC.steps, random_start=True)
    return lambda: theirs(images, labels)
