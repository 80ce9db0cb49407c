"""From settings and a weights file to a classifier that is ready to be attacked."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from maep.config.schema import ClassifierSettings
from maep.models.classifiers.deepmind import DeepMindPreActResNet18, DeepMindWideResNet
from maep.models.classifiers.normalized import Normalized
from maep.models.classifiers.reconstruction import ReconstructionClassifier
from maep.models.classifiers.resnet import CifarResNet
from maep.models.classifiers.rotation import RotationClassifier
from maep.models.classifiers.wide_resnet import WideResNet
from maep.models.weights import load_weights, read_weights
from maep.runtime.errors import fail, nearest

CIFAR_RESNET = re.compile(r"cifar_resnet(\d+)(w?)")
# Of wrappers that normalise inside, with their weights in the same file.
NORMALIZATION = re.compile(r"(normalize\.)?(mean|std|mu|sigma)")
NEARLY = 1e-3  # figures of a mean that papers print; another data set's differ by more
COUNTER = "num_batches_tracked"
WIDE_RESNET = re.compile(r"(dm_)?wrn(\d+)_(\d+)")
PREACT18 = "dm_preact18"
SOAP_RESNET, SOAP_DEPTH = "soap_resnet", 14
# After the name of a ResNet: with what SOAP adds to it, a second head or a decoder.
SOAP_PARTS: dict[str, type[RotationClassifier] | type[ReconstructionClassifier]] = {
    "_rotation": RotationClassifier,
    "_autoencoder": ReconstructionClassifier,
}
EXAMPLES = ("cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet32w")
WIDE_EXAMPLES = ("wrn28_1", "wrn28_10", "wrn34_10", "wrn70_16", "dm_wrn28_10", PREACT18, SOAP_RESNET)


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
    for suffix, whole in SOAP_PARTS.items():
        if arch.endswith(suffix):
            network = _own_network(arch.removesuffix(suffix), num_classes)
            if not isinstance(network, CifarResNet):
                fail(f"classifier.arch={arch}: only cifar_resnetN and {SOAP_RESNET} can have what {suffix} adds")
            return whole(network)
    if match := CIFAR_RESNET.fullmatch(arch):
        depth = int(match[1])
        if depth < 8 or (depth - 2) % 6:
            fail(f"classifier.arch={arch}: depth must be 6n + 2, such as {', '.join(EXAMPLES)}")
        return CifarResNet(depth, num_classes, wide_stem=bool(match[2]))
    if match := WIDE_RESNET.fullmatch(arch):
        depth, width = int(match[2]), int(match[3])
        if depth < 10 or (depth - 4) % 6 or width < 1:
            fail(f"classifier.arch={arch}: depth must be 6n + 4, such as {', '.join(WIDE_EXAMPLES)}")
        return (DeepMindWideResNet if match[1] else WideResNet)(depth, width, num_classes)
    if arch == SOAP_RESNET:
        return CifarResNet(SOAP_DEPTH, num_classes, biased=True)
    return DeepMindPreActResNet18(num_classes) if arch == PREACT18 else None


def _timm_network(settings: ClassifierSettings, num_classes: int) -> nn.Module:
    # timm takes seconds to import, and our own networks need none of it.
    from maep.models.timm_blocks import create_model, is_model, list_models

    arch = settings.arch
    if not is_model(arch):
        hint = nearest(arch, [*EXAMPLES, *WIDE_EXAMPLES, *list_models()])
        fail(f"classifier.arch={arch}: unknown; give cifar_resnetN, wrnD_K or a timm model{hint}")
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
