"""From settings and a weights file to a classifier that is ready to be attacked."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from maep.config.architectures import (
    CIFAR_RESNET,
    EXAMPLES,
    SOAP_PARTS,
    SOAP_RESNET,
    WIDE_EXAMPLES,
    WIDE_RESNET,
    is_own,
)
from maep.config.schema import ClassifierSettings
from maep.models.classifiers.deepmind import DeepMindPreActResNet18, DeepMindWideResNet
from maep.models.classifiers.normalized import Normalized
from maep.models.classifiers.reconstruction import ReconstructionClassifier
from maep.models.classifiers.resnet import CifarResNet
from maep.models.classifiers.rotation import RotationClassifier
from maep.models.classifiers.wide_resnet import WideResNet
from maep.models.weights import load_weights, read_weights
from maep.runtime.errors import fail, nearest

# Of wrappers that normalise inside, with their weights in the same file.
NORMALIZATION = re.compile(r"(normalize\.)?(mean|std|mu|sigma)")
NEARLY = 1e-3  # figures of a mean that papers print; another data set's differ by more
COUNTER = "num_batches_tracked"
SOAP_DEPTH = 14
# After the name of a ResNet, as `SOAP_PARTS` has them: with what SOAP adds to it.
SOAP_NETWORKS: dict[str, type[RotationClassifier] | type[ReconstructionClassifier]] = dict(
    zip(SOAP_PARTS, (RotationClassifier, ReconstructionClassifier), strict=True)
)


def build_classifier(settings: ClassifierSettings, num_classes: int) -> Normalized:
    """The configured architecture with random weights from torch's generator; [N, 3, H, W] in [0,1] → logits.

    Raises UserError for an unknown `classifier.arch` or arguments that timm does not take.
    """
    return Normalized(_network(settings, num_classes), settings.mean, settings.std)


def _network(settings: ClassifierSettings, num_classes: int) -> nn.Module:
    ours = _own_network(settings.arch, num_classes)
    if ours is None:
        return _timm_network(settings, num_classes)
    if settings.timm_args:
        fail(f"classifier.timm_args={settings.timm_args}: only for timm models; classifier.arch={settings.arch} is not")
    return ours


def _own_network(arch: str, num_classes: int) -> nn.Module | None:
    if not is_own(arch):
        return None
    for suffix, whole in SOAP_NETWORKS.items():
        if arch.endswith(suffix):
            network = _own_network(arch.removesuffix(suffix), num_classes)
            assert isinstance(network, CifarResNet)
            return whole(network)
    if match := CIFAR_RESNET.fullmatch(arch):
        return CifarResNet(int(match[1]), num_classes, wide_stem=bool(match[2]))
    if match := WIDE_RESNET.fullmatch(arch):
        kind = DeepMindWideResNet if match[1] else WideResNet
        return kind(int(match[2]), int(match[3]), num_classes)
    if arch == SOAP_RESNET:
        return CifarResNet(SOAP_DEPTH, num_classes, biased=True)
    return DeepMindPreActResNet18(num_classes)


def require_architecture(arch: str, key: str = "classifier.arch") -> None:
    """Raise UserError, with the nearest names, unless there is such a classifier. key: the setting that names it."""
    if is_own(arch, key):
        return
    # timm takes seconds to import, and our own networks need none of it.
    from maep.models.timm_blocks import is_model, list_models

    if not is_model(arch):
        hint = nearest(arch, [*EXAMPLES, *WIDE_EXAMPLES, *list_models()])
        fail(f"{key}={arch}: unknown; give cifar_resnetN, wrnD_K or a timm model{hint}")


def _timm_network(settings: ClassifierSettings, num_classes: int) -> nn.Module:
    arch = settings.arch
    require_architecture(arch)
    from maep.models.timm_blocks import create_model

    try:
        return create_model(arch, pretrained=False, num_classes=num_classes, **settings.timm_args)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        fail(f"classifier.timm_args={settings.timm_args}: timm's {arch} cannot be made with them: {error}")


def load_classifier(settings: ClassifierSettings, num_classes: int, weights: Path | None) -> nn.Module:
    """The classifier that is attacked and defended: eval mode, parameters frozen.

    Returns a module [N, 3, H, W] in [0,1] → logits [N, num_classes], mean and deviation inside.
    weights: as `read_weights` takes them, the network's own keys somewhere in them; None leaves random weights.
    Raises UserError for an unknown architecture, or weights that do not fit, naming the first three keys.
    """
    classifier = build_classifier(settings, num_classes)
    if weights is not None:
        state = _with_counters(read_weights(weights, classifier.network.state_dict()), classifier.network)
        ignored = _apart_from(classifier.network, state, settings, weights)
        load_weights(classifier.network, state, str(weights), ignored)
    classifier.eval().requires_grad_(False)
    fold_batch_norms(classifier)
    return classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fold_batch_norms(classifier: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in place, where a module names such `foldable` pairs.

    The logits stay the same to rounding, an attack's step takes about 0.8 times as long, training is over.
    """
    for module in classifier.modules():
        for convolution, norm in getattr(module, "foldable", ()):
            fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            setattr(module, convolution, fused.requires_grad_(False))
            setattr(module, norm, nn.Identity().eval())


def _apart_from(network: nn.Module, state: dict[str, Tensor], settings: ClassifierSettings, weights: Path) -> list[str]:
    """Names in a file that are no weights of the network: parts that are never called, and how its input is normalised.

    Raises UserError where that is another mean or deviation than the settings have: the file's was trained with it.
    """
    unused = [name for name in state if name.startswith(getattr(network, "never_called", ()))]
    normalization = [name for name in state if NORMALIZATION.fullmatch(name) and state[name].numel() == 3]
    for name in normalization:
        key = "mean" if name.endswith(("mean", "mu")) else "std"
        values = [round(value, 6) for value in state[name].flatten().tolist()]
        if not torch.allclose(torch.tensor(values), torch.tensor(getattr(settings, key)), atol=NEARLY):
            fail(f"{weights}: {name}: was trained with {values}; set classifier.{key} to that")
    return unused + normalization


def _with_counters(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The network's own batch norm counters in place of the file's: some lack them, and only training reads them."""
    counters = {name: value for name, value in network.state_dict().items() if name.endswith(COUNTER)}
    return {**counters, **{name: value for name, value in state.items() if not name.endswith(COUNTER)}}
