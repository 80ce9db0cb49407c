"""From settings and a weights file to a classifier that is ready to be attacked."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
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
from maep.config.data_settings import ClassifierSettings
from maep.config.published_classifiers import NONE, Normalization, unsaid_normalizations
from maep.models.classifiers.deepmind import DeepMindPreActResNet18, DeepMindWideResNet
from maep.models.classifiers.normalized import Normalized
from maep.models.classifiers.reconstruction import ReconstructionClassifier
from maep.models.classifiers.resnet import CifarResNet
from maep.models.classifiers.rotation import RotationClassifier
from maep.models.classifiers.wide_resnet import WideResNet
from maep.models.weight_files import read_content
from maep.models.weights import load_weights, tensors_in, weights_in
from maep.runtime.console import say
from maep.runtime.errors import fail, nearest

# Of wrappers that normalise inside, with their weights in the same file: `mean`, `normalize.std`, `0.mean`, …
NORMALIZATION = re.compile(r"(?:.*\.)?_?(?:image_|input_|pixel_|new_)?(mean|mu|std|sigma)")
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


def check_image_size(settings: ClassifierSettings, size: int) -> None:
    """Raise UserError for a timm model that takes images of another size alone; it is asked, without its weights.

    size: height and width of the images. Else its first batch would say so, when the images are in shards.
    """
    if reason := _problem_with_size(settings.arch, json.dumps(settings.timm_args, default=str), size):
        fail(
            f"classifier.arch={settings.arch}: takes no images of data.image_size={size} ({reason}); set that, or "
            f"classifier.timm_args={{img_size: {size}}}"
        )


@cache
def _problem_with_size(arch: str, timm_args: str, size: int) -> str:
    """What a timm model says of images of a size; "" if it takes them. Several stages ask. timm_args: as JSON."""
    from maep.models.timm_blocks import has_fixed_size

    if not has_fixed_size(arch):
        return ""
    with torch.device("meta"):
        network = _timm_network(ClassifierSettings(arch=arch, timm_args=json.loads(timm_args)), 2).eval()
        try:
            network(torch.empty(1, 3, size, size))
        except NotImplementedError:  # of an operation that needs numbers: who has them will see
            return ""
        except (AssertionError, RuntimeError) as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


@cache
def warn_of_other_normalization(arch: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Say, once, that the published weights of a model were trained with another mean or deviation than is set.

    A file of weights does not say it, and with another one the accuracy is plausible and wrong.
    """
    authors, usual = _usual_normalizations(arch)
    given = torch.tensor((mean, std))
    if usual and not any(torch.allclose(torch.tensor(each), given, atol=NEARLY) for each in usual):
        expected = ", or ".join(f"{list(each[0])} and {list(each[1])}" for each in usual)
        say(
            f"warning: classifier.mean={list(mean)}, classifier.std={list(std)}: {authors}'s own weights of {arch} "
            f"were trained with {expected}; set that if classifier.weights are {authors}'s"
        )


def _usual_normalizations(arch: str) -> tuple[str, Sequence[Normalization]]:
    """Who published weights of an architecture, and the means and deviations that these expect."""
    if is_own(arch):
        return unsaid_normalizations(arch)
    from maep.models.timm_blocks import usual_normalization

    usual = usual_normalization(arch)
    return "timm", (usual,) if usual else ()


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
        read_into(classifier, settings, weights)
    classifier.eval().requires_grad_(False)
    fold_batch_norms(classifier)
    return classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def read_into(classifier: Normalized, settings: ClassifierSettings, weights: Path) -> None:
    """Give a classifier of these settings the weights of a file. Raises UserError as `load_classifier`."""
    content, own = read_content(weights), classifier.network.state_dict()
    state = _with_counters(weights_in(content, weights, own), classifier.network)
    said = {name: tensor for name, tensor in tensors_in(content) if _is_normalization(name, tensor, own)}
    _check_normalization(said, settings, weights)
    ignored = _apart_from(classifier.network, state)
    if not said and not settings.robustbench:
        _warn_of_pixels(ignored, classifier.network, settings, weights)
    load_weights(classifier.network, state, str(weights), ignored)


def fold_batch_norms(classifier: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in place, where a module names such `foldable` pairs.

    The logits stay the same to rounding, an attack's step takes about 0.8 times as long, training is over.
    """
    for module in classifier.modules():
        for convolution, norm in getattr(module, "foldable", ()):
            fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            setattr(module, convolution, fused.requires_grad_(False))
            setattr(module, norm, nn.Identity().eval())


def _is_normalization(name: str, tensor: Tensor, own: Collection[str]) -> bool:
    """Whether a tensor of a file says how the network's input is normalised. own: names of the network's weights."""
    if NORMALIZATION.fullmatch(name) is None or tensor.numel() != 3:
        return False
    return not any(name == each or name.endswith(f".{each}") for each in own)


def _check_normalization(said: Mapping[str, Tensor], settings: ClassifierSettings, weights: Path) -> None:
    """Raise UserError where a file says another mean or deviation than the settings: it was trained with that one.

    said: by name, in [0, 1] pixels or in 0..255, wherever in the file: also beside the prefix of the network's names.
    """
    for name, tensor in said.items():
        match = NORMALIZATION.fullmatch(name)
        key = "mean" if match and match[1] in ("mean", "mu") else "std"
        levels = tensor.detach().flatten().double()
        pixels = levels / 255 if bool((levels > 1).any()) else levels
        if not torch.allclose(pixels, torch.tensor(getattr(settings, key)).double(), atol=NEARLY):
            values = [round(value, 6) for value in pixels.tolist()]
            fail(f"{weights}: {name}: was trained with {values}; set classifier.{key} to that")


def _apart_from(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Names in a file that are no weights of it: parts that are never called, and how its input is normalised."""
    unused = [name for name in state if name.startswith(getattr(network, "never_called", ()))]
    return unused + [name for name in state if _is_normalization(name, state[name], network.state_dict())]


def _warn_of_pixels(ignored: Collection[str], network: nn.Module, settings: ClassifierSettings, weights: Path) -> None:
    """Say that a file with a part that is never called is of code whose networks take pixels as they are, where they
    are to be normalised: it would load, and the accuracy be plausible and wrong.
    """
    unused = next((name for name in ignored if name.startswith(getattr(network, "never_called", ()))), None)
    if unused and not torch.allclose(torch.tensor((settings.mean, settings.std)), torch.tensor(NONE), atol=NEARLY):
        mean, std = map(list, NONE)
        say(
            f"warning: {weights}: {unused} is of TRADES' code, whose networks take pixels as they are; set "
            f"classifier.mean={mean} and classifier.std={std} unless this one was trained otherwise"
        )


def _with_counters(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The network's own batch norm counters in place of the file's: some lack them, and only training reads them."""
    counters = {name: value for name, value in network.state_dict().items() if name.endswith(COUNTER)}
    return {**counters, **{name: value for name, value in state.items() if not name.endswith(COUNTER)}}
