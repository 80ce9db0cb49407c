"""What a training step takes, counted by taking one on zeros: any network, objective and attack."""

from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.config.implementations import OBJECTIVES
from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.config.training_settings import ObjectiveSettings, TrainSettings
from maep.data.pairs import visible_patches
from maep.data.shards import to_float
from maep.launch.estimate.data_sizes import class_count
from maep.models.classifiers import load_classifier
from maep.purifiers.base import TrainedPurifier
from maep.purifiers.registry import purifier_class
from maep.runtime.keyed_noise import sample_seeds
from maep.runtime.operations import SavedBytes, counted
from maep.training.chains import Chains
from maep.training.inputs import adversary_of, asked_settings, asks_classifiers, objective_of
from maep.training.module import TrainingModule
from maep.training.robust import Adversary, RobustTraining, attack_at

IMAGES = 2  # of a step that is counted: some kinds compare images of a batch
CALIBRATION = 16  # images that a purifier learns of before it is counted, in the place of all that it asks for
MOMENTS = 100  # of a training at which its attack is asked how long it is


@dataclass(frozen=True)
class StepCount:
    """flops: of an image, forward, backward, attack and judge; launches: of a step; activations: bytes of an image that
    the backward pass needs, in fp32; parameters: trained.
    """

    flops: float
    launches: float
    activations: float
    parameters: int


def random_purifier(settings: Settings, classifiers: list[nn.Module]) -> TrainedPurifier:
    """The purifier of the settings with random weights, and with what it learns of images before its training."""
    kind = purifier_class(settings.purifier.kind)
    assert issubclass(kind, TrainedPurifier), "others are not trained"
    purifier = kind.from_settings(settings)
    purifier.prepare(lambda count: random_images(settings, count), classifiers)
    return purifier


def random_images(settings: Settings, count: int) -> Tensor:
    """In the place of the training images that a purifier asks for, [N, 3, side, side] in [0, 1], not all of them."""
    return torch.rand(min(count, CALIBRATION), 3, *[settings.model.image_size] * 2)


def count_training(settings: Settings, train: TrainSettings, model: nn.Module | None = None) -> StepCount:
    """The mean of a training's steps. model: what is trained, with `requires_grad` where it is; default: the purifier's
    network, all of it.
    """
    source, objective = source_settings(settings, train), objective_of(settings, train)
    with torch.random.fork_rng(devices=[]), counted(dry=True):
        asked = asked_settings(source, train) if asks_classifiers(source, objective) else [source]
        classifiers = [load_classifier(each.classifier, class_count(each), None) for each in asked]
        if model is None:
            model = random_purifier(settings, classifiers).model
        judges = tuple(classifiers) if asks_classifiers(source, objective) else ()
        step = _Step(source, train, model, adversary_of(source, train, objective, judges))
    share = train.mask_until if train.mask_ratio else 0.0
    ratios = [(share, train.mask_ratio), (1 - share, 0.0)]
    whom = range(max(1, len(judges)))  # each step asks one of them
    with torch.random.fork_rng(devices=[]):
        counts = [(part, step.counted(ratio, which)) for part, ratio in ratios if part for which in whom]
    return _mean([(part / len(whom), count) for part, count in counts])


def _mean(parts: list[tuple[float, StepCount]]) -> StepCount:
    """Of steps by their shares; the memory is that of the step that needs most."""
    return StepCount(
        sum(weight * step.flops for weight, step in parts), sum(weight * step.launches for weight, step in parts),
        max(step.activations for _, step in parts), parts[0][1].parameters,
    )  # fmt: skip


@dataclass(frozen=True)
class _Step:
    """A training's step, without its optimizer. settings: of the pairs' source."""

    settings: Settings
    train: TrainSettings
    model: nn.Module
    adversary: Adversary

    def counted(self, ratio: float, which: int) -> StepCount:
        """A step with so large a share of the patches hidden, which asks that classifier."""
        objective = self._objective
        module = TrainingModule(self.model, objective, "fp32", self.adversary.classifiers).train()
        size, patch, device = self.settings.model.image_size, self.settings.model.patch_size, torch.device("cpu")
        keys, labels = list(range(IMAGES)), torch.zeros(IMAGES, dtype=torch.int64)
        clean = to_float(torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8))
        pairs = [(0, key) for key in keys]
        mask = torch.from_numpy(visible_patches((size // patch) ** 2, ratio, self.settings.run.seed, pairs))
        visible = mask if ratio else None
        shown = mask.nonzero()[:, 1].view(IMAGES, -1) if ratio else None
        seeds = sample_seeds("objective", 0, keys, device) if OBJECTIVES[objective.name].draws else None
        asked = labels if self.adversary.classifiers else None
        with counted(dry=True) as attack:
            adversarial = self._attacked(clean, labels, visible, keys, shown, which, seeds)
        parameters = [each for each in module.parameters() if each.requires_grad]
        with counted(dry=True) as step:
            with SavedBytes(module.parameters()) as saved:
                total, _ = module(clean, adversarial, visible, shown, asked, seeds, which)
            torch.autograd.grad(total.sum(), parameters, allow_unused=True)
        steps = self._attack_steps()
        return StepCount(
            (step.flops + steps * attack.flops) / IMAGES,
            step.launches + steps * attack.launches,
            saved.total / IMAGES,
            sum(each.numel() for each in parameters),
        )

    def _attacked(
        self, clean: Tensor, labels: Tensor, visible: Tensor | None, keys: list[int], shown: Tensor | None, which: int,
        seeds: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The second images, where the training makes them itself; of an attack on the whole one step is taken."""
        device, adversary = clean.device, self.adversary
        if OBJECTIVES[self._objective.name].chains:
            return Chains(self.model, len(keys), tuple(clean.shape[1:]), 0, device).advance(keys, keys, clean)
        if adversary.against:
            training = RobustTraining(adversary.against, self.model, device, torch.float32, compiled=False)
            spec = replace(AttackSpec.of(adversary.against.attack), steps=1)
            return training.attack({}, clean, labels, visible, spec, keys, shown, which, seeds)
        return adversary.online(clean, labels, keys) if adversary.online else clean

    def _attack_steps(self) -> float:
        """How many such steps a training step takes in the mean over the training, if it never goes back."""
        if not (against := self.adversary.against):
            return 1.0
        spec = AttackSpec.of(against.attack)
        moments = [(moment + 1) / MOMENTS for moment in range(MOMENTS)]
        return fmean(attack_at(spec, against.settings, moment, retreats=0).steps for moment in moments)

    @property
    def _objective(self) -> ObjectiveSettings:
        return objective_of(self.settings, self.train)
