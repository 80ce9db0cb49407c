"""The names that settings choose from, each with where it is implemented: the one list of each kind.

As text, so that a mistyped setting is answered without importing torch. Purifiers have a registry of their own,
`maep.purifiers.registry`, since they bring settings with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Objective:
    """A training objective. path: of its function. whole_images: it is defined on unmasked images alone.

    classifies: it judges purified images by the frozen classifier, too. noises: its second image of a pair is the clean
    one with noise, made as the training goes (`maep.training.noise`). draws: it draws random numbers, by a seed of each
    sample. clean_images: it has no second image. chains: in its place it has the states of chains that go on from epoch
    to epoch (`maep.training.chains`). network: what it trains: a map of `images`, which the kinds of
    purifiers have unless they say otherwise (`maep.purifiers.base.TrainedPurifier.network_kind`), or another. attacked:
    path of the map that an attack on the whole sees in the purifier's place, where that is no single call of the
    network: (network, clean images, attacked ones, seeds) → images (`maep.training.robust`). normalizes: of a network
    that predicts normalized patches it compares those, told their side by `patch`; others compare pixels.
    discriminates: with `objective.gan_weight` a discriminator is trained beside the network.
    """

    path: str
    whole_images: bool = False
    classifies: bool = False
    noises: bool = False
    draws: bool = False
    clean_images: bool = False
    chains: bool = False
    network: str = "images"
    attacked: str = ""
    normalizes: bool = False
    discriminates: bool = False

    @property
    def attacks(self) -> bool:
        """Whether it is trained on adversarial images."""
        return not (self.noises or self.clean_images)


OBJECTIVES = {
    "mae": Objective("maep.objectives:mae", normalizes=True),
    "purification": Objective("maep.objectives:purification", whole_images=True),
    "mlm": Objective("maep.objectives:mlm"),
    "maep": Objective("maep.objectives:maep"),
    "reconstruction": Objective("maep.objectives:reconstruction", whole_images=True),
    "trades_pixel": Objective("maep.objectives:trades_pixel", whole_images=True),
    "trades_latent": Objective("maep.objectives:trades_latent", whole_images=True),
    "robust": Objective("maep.objectives:robust", classifies=True),
    "nim": Objective("maep.objectives:nim", whole_images=True, noises=True, normalizes=True),
    "feature": Objective("maep.objectives:feature", classifies=True, discriminates=True),
    "stability": Objective("maep.objectives:stability", classifies=True, noises=True),
    "denoise": Objective(
        "maep.objectives:denoise", whole_images=True, draws=True, clean_images=True, network="denoiser"
    ),
    "bridge": Objective(
        "maep.objectives:bridge", whole_images=True, draws=True, network="denoiser", attacked="maep.objectives:bridged"
    ),
    "score": Objective("maep.objectives:score", whole_images=True, draws=True, clean_images=True, network="score"),
    "code": Objective("maep.objectives:code", whole_images=True, draws=True, clean_images=True, network="code"),
    "likelihood": Objective("maep.objectives:likelihood", whole_images=True, clean_images=True, network="likelihood"),
    "energy": Objective(
        "maep.objectives:energy", whole_images=True, draws=True, clean_images=True, chains=True, network="energy"
    ),
    "flow": Objective("maep.objectives:flow", whole_images=True, draws=True, network="velocity"),
}
NOISES = ("gamma", "fixed", "uniform")  # how an objective that noises draws each image's deviation
SAMPLINGS = ("float", "integer")  # how the noise of certificates is drawn
THREAT_MODELS = {
    "oblivious": "maep.attacks.threat_models:Oblivious",
    "twin": "maep.attacks.threat_models:Twin",
    "bpda": "maep.attacks.threat_models:Bpda",
    "bpda-intermediate": "maep.attacks.threat_models:BpdaIntermediate",
    "auxiliary-aware": "maep.attacks.threat_models:AuxiliaryAware",
    "surrogate": "maep.attacks.threat_models:Surrogate",
    "adaptive": "maep.attacks.threat_models:Adaptive",
    "adaptive-eot": "maep.attacks.threat_models:AdaptiveEot",
    "blackbox": "maep.attacks.threat_models:BlackBox",
}
# Those whose attackers follow no gradient of what purifies: they have none, or another in its place.
WITHOUT_GRADIENT = ("oblivious", "bpda", "bpda-intermediate", "auxiliary-aware", "blackbox")
# Of the training pairs; maep.attacks.gradient takes them by these names.
GRADIENT_ATTACKS = ("fgsm", "nfgsm", "bim", "pgd", "ssp")
ATTACKED = ("classifier", "whole")  # what the attack of a training sees
NORMS = ("Linf", "L2")
_ADAPTER = "adapter/adapter_model.safetensors"
# Finetuning methods, each with the weights that it leaves in run.dir.
FINETUNING = {"lora": _ADAPTER, "dora": _ADAPTER, "ia3": _ADAPTER, "full": "finetuned/model.safetensors", "none": None}


def implementation(path: str) -> Any:
    """What `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def names_of(reference: str) -> tuple[str, ...]:
    """The names in a registry given as `module:NAME`."""
    registry: Mapping[str, Any] = implementation(reference)
    return tuple(registry)
