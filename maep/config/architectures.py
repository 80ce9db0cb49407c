"""The classifiers of this package by name; every other name is a model of timm (`maep.models.classifiers.factory`)."""

import re

from maep.runtime.errors import fail

CIFAR_RESNET = re.compile(r"cifar_resnet(\d+)(w?)")
WIDE_RESNET = re.compile(r"(dm_)?wrn(\d+)_(\d+)")
PREACT18 = "dm_preact18"
SOAP_RESNET = "soap_resnet"
SOAP_PARTS = ("_rotation", "_autoencoder")  # after the name of a ResNet: with SOAP's second head, or a decoder
EXAMPLES = ("cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet32w")
WIDE_EXAMPLES = ("wrn28_1", "wrn28_10", "wrn34_10", "wrn70_16", "dm_wrn28_10", PREACT18, SOAP_RESNET)


def is_own(arch: str, key: str = "classifier.arch") -> bool:
    """Whether a name is of a network of this package, not of timm's.

    key: the setting that names it. Raises UserError for such a network of a depth that there is not.
    """
    for suffix in SOAP_PARTS:
        base = arch.removesuffix(suffix)
        if arch.endswith(suffix) and not (base == SOAP_RESNET or (CIFAR_RESNET.fullmatch(base) and is_own(base, key))):
            fail(f"{key}={arch}: only cifar_resnetN and {SOAP_RESNET} can have what {suffix} adds")
        if arch.endswith(suffix):
            return True
    if match := CIFAR_RESNET.fullmatch(arch):
        depth = int(match[1])
        if depth < 8 or (depth - 2) % 6:
            fail(f"{key}={arch}: depth must be 6n + 2, such as {', '.join(EXAMPLES)}")
        return True
    if match := WIDE_RESNET.fullmatch(arch):
        depth, width = int(match[2]), int(match[3])
        if depth < 10 or (depth - 4) % 6 or width < 1:
            fail(f"{key}={arch}: depth must be 6n + 4, such as {', '.join(WIDE_EXAMPLES)}")
        return True
    return arch in (SOAP_RESNET, PREACT18)
