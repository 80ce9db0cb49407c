"""ADBM: a denoiser that takes the noise away and with it the attack that was noised (Li et al., ICLR 2025).

    u ← √ᾱ·x_a + √(1-ᾱ)·noise, then a few steps of DDIM, as DiffPure could take them

What is its own is the training (`objective.name=bridge`), on attacks that are found through classifier and network as
they are at that step, at the time and noise at which the loss then asks the network: `attack.online=true
pretrain.attacked=whole`, by the authors three steps of PGD as large as the budget. They go on from DiffPure's trained
network, as `model.init=RUN` does, or for a small one a share of the training without attack (`robust.clean_until`).
Bridges lead to times of [latest/2, latest], and images are purified from the first of these: t* = 0.1 of [0.1, 0.2].

Inferred, where the specification does not say: the time T at which a bridge begins is drawn for each image in place of
each batch, so that any split of a batch adds up to the same; an attack sees its estimate of the clean image clipped, as
a classifier always does; and of the authors' fifty steps, the last five of which they take, the times are the five at
equal distances from t* = 0.1 to 0, on the schedule of DiffPure's training (theirs begins at β = 1e-6).
"""

from dataclasses import dataclass

from maep.config.setting import setting
from maep.purifiers.diffpure import DiffPurePurifier, DiffPureSettings
from maep.purifiers.sections import USED


@dataclass
class AdbmSettings(DiffPureSettings):
    """Section `adbm`: DiffPure's, and the defaults of its use the authors' of ADBM for CIFAR-10 in L-infinity."""

    sampler: str = setting(
        "ddim", "how the noise is taken away, as diffpure.sampler", choices=("sde", "ode", "ddpm", "ddim"),
        affects_result=USED,
    )  # fmt: skip
    steps: int = setting(5, "steps from there back, each asks the network once", low=1, high=10_000,
                         affects_result=USED)  # fmt: skip


class AdbmPurifier(DiffPurePurifier):
    """DiffPure in five steps of DDIM, by a network that was trained on bridges. Its first noise is drawn at every call.

    As its network is DiffPure's, either purifies by a network that was trained for the other.
    """

    kind = "adbm"
    Settings = AdbmSettings
    network: AdbmSettings
    stages = ("shards", "classifier", "attack", "pretrain")
