"""RobustBench's models by their identifiers: which network a file holds, and what its input is normalised with.

From RobustBench's own tables (robustbench/model_zoo, March 2025); all were trained against L∞ 8/255 on 32 x 32 images.
"""

from dataclasses import dataclass

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel

NONE = (0.0,) * 3, (1.0,) * 3  # the network takes pixels as they are
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
# Of one model alone; its file often lacks them.
WU_CIFAR100 = (
    (0.5070751592, 0.4865488733, 0.4409178434),
    (0.2673342859, 0.2564384629, 0.2761504713),
)
SOAP_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SOAP_CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
# By how an architecture's name begins: who publishes its weights, in files that say nothing of how their input is
# normalised, and the ways it is.
UNSAID = {"soap_resnet": ("SOAP", (SOAP_CIFAR10, SOAP_CIFAR100)), "dm_": ("RobustBench", (CIFAR10, CIFAR100))}
TEST_IMAGES = 10_000  # of CIFAR-10 and of CIFAR-100, on which the accuracies were measured


@dataclass(frozen=True)
class PublishedClassifier:
    """arch: of classifier.arch. normalization: mean and deviation of its input, in [0, 1] pixels. clean, robust:
    published accuracies in percent, robust against AutoAttack at 8/255 (Zhang2019Theoretically: 0.031).
    """

    arch: str
    normalization: Normalization
    clean: float
    robust: float

    @property
    def settings(self) -> dict[str, str | list[float]]:
        """`{key: value}` of the settings that it decides."""
        mean, std = (list(values) for values in self.normalization)
        return {"classifier.arch": self.arch, "classifier.mean": mean, "classifier.std": std}


def unsaid_normalizations(arch: str) -> tuple[str, tuple[Normalization, ...]]:
    """Of one of this package's architectures, as `UNSAID`; ("", ()) where nobody is known to publish such files."""
    return next((known for start, known in UNSAID.items() if arch.startswith(start)), ("", ()))


PUBLISHED = {
    "cifar10/Standard": PublishedClassifier("wrn28_10", NONE, 94.78, 0.0),
    "cifar10/Wu2020Adversarial_extra": PublishedClassifier("wrn28_10", NONE, 88.25, 60.04),
    "cifar10/Wu2020Adversarial": PublishedClassifier("wrn34_10", NONE, 85.36, 56.17),
    "cifar10/Zhang2019Theoretically": PublishedClassifier("wrn34_10", NONE, 84.92, 53.08),
    "cifar10/Rebuffi2021Fixing_28_10_cutmix_ddpm": PublishedClassifier("dm_wrn28_10", CIFAR10, 87.33, 60.75),
    "cifar10/Rebuffi2021Fixing_70_16_cutmix_extra": PublishedClassifier("dm_wrn70_16", CIFAR10, 92.23, 66.58),
    "cifar10/Rebuffi2021Fixing_R18_ddpm": PublishedClassifier("dm_preact18", CIFAR10, 83.53, 56.66),
    "cifar10/Wang2023Better_WRN-28-10": PublishedClassifier("dm_wrn28_10", CIFAR10, 92.44, 67.31),
    "cifar10/Cui2023Decoupled_WRN-28-10": PublishedClassifier("dm_wrn28_10", CIFAR10, 92.16, 67.73),
    "cifar10/Cui2023Decoupled_WRN-34-10": PublishedClassifier("wrn34_10", NONE, 85.31, 57.09),
    "cifar100/Rebuffi2021Fixing_28_10_cutmix_ddpm": PublishedClassifier("dm_wrn28_10", CIFAR100, 62.41, 32.06),
    "cifar100/Wang2023Better_WRN-28-10": PublishedClassifier("dm_wrn28_10", CIFAR100, 72.58, 38.83),
    "cifar100/Cui2023Decoupled_WRN-28-10": PublishedClassifier("dm_wrn28_10", CIFAR100, 73.85, 39.18),
    "cifar100/Wu2020Adversarial": PublishedClassifier("wrn34_10", WU_CIFAR100, 60.38, 28.86),
}
