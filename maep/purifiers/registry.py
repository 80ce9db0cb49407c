"""The kinds of purifiers: the one list of them, as text, so that reading it imports no torch.

A new kind is its file, its line here and its test.
"""

from typing import TYPE_CHECKING, Any

from maep.config.implementations import implementation
from maep.runtime.errors import fail, nearest

if TYPE_CHECKING:
    from maep.config.schema import Settings
    from maep.purifiers.base import Purifier

# Of what names no kind: purifiers and checkpoints written before there were several.
DEFAULT = "maep"
# The stages that must have run before one of that kind is evaluated. Here, and not in its class alone, since a run
# that is finished says so without importing torch.
DEFAULT_STAGES = ("shards", "classifier", "attack", "pretrain", "finetune")
KINDS = {
    "maep": "maep.purifiers.mae:MAEPurifier",
    "median": "maep.purifiers.median:MedianPurifier",
    "gaussian_blur": "maep.purifiers.gaussian_blur:GaussianBlurPurifier",
    "bilateral": "maep.purifiers.bilateral:BilateralPurifier",
    "non_local_means": "maep.purifiers.non_local_means:NonLocalMeansPurifier",
    "gaussian_noise": "maep.purifiers.gaussian_noise:GaussianNoisePurifier",
    "bit_depth": "maep.purifiers.bit_depth:BitDepthPurifier",
    "jpeg": "maep.purifiers.jpeg:JpegPurifier",
    "resize_pad": "maep.purifiers.resize_pad:ResizePadPurifier",
    "enlarge_pad": "maep.purifiers.enlarge_pad:EnlargePadPurifier",
    "tvm": "maep.purifiers.tvm:TotalVariationPurifier",
    "disco": "maep.purifiers.disco:DiscoPurifier",
    "residual_cnn": "maep.purifiers.residual_cnn:ResidualCnnPurifier",
    "diffpure": "maep.purifiers.diffpure:DiffPurePurifier",
    "adbm": "maep.purifiers.adbm:AdbmPurifier",
    "gdmp": "maep.purifiers.gdmp:GdmpPurifier",
    "flowpure": "maep.purifiers.flowpure:FlowPurePurifier",
    "scoreopt": "maep.purifiers.scoreopt:ScoreOptPurifier",
    "freqpure": "maep.purifiers.freqpure:FreqPurePurifier",
    "adp": "maep.purifiers.adp:AdpPurifier",
    "ebm": "maep.purifiers.ebm:EbmPurifier",
    "anti_adversary": "maep.purifiers.anti_adversary:AntiAdversaryPurifier",
    "frequency_prompts": "maep.purifiers.frequency_prompts:FrequencyPromptsPurifier",
    "soap": "maep.purifiers.soap:SoapPurifier",
    "dram": "maep.purifiers.dram:DramPurifier",
    "nrp": "maep.purifiers.nrp:NrpPurifier",
    "comdefend": "maep.purifiers.comdefend:ComDefendPurifier",
    "pixeldefend": "maep.purifiers.pixeldefend:PixelDefendPurifier",
}


def purifier_class(kind: str, source: str = "purifier.kind") -> "type[Purifier]":
    """The class of a kind. source: where the kind was written, for the message.

    Raises UserError, naming the nearest kind, for an unknown one.
    """
    if kind not in KINDS:
        fail(f"{source}={kind}: no such purifier{nearest(kind, list(KINDS))} (there are: {', '.join(KINDS)})")
    purifier: type[Purifier] = implementation(KINDS[kind])
    return purifier


def stages_before(kind: str) -> tuple[str, ...]:
    """The stages of the pipeline before a purifier of a kind is evaluated. Raises UserError as `purifier_class`."""
    return DEFAULT_STAGES if kind == DEFAULT else purifier_class(kind).stages


def settings_class(kind: str) -> type[Any] | None:
    """The dataclass of a kind's own section of the settings; None where it has none.

    Those of the default kind are sections of `maep.config.schema`, so that a command which only reads its settings
    need not import torch. Raises UserError as `purifier_class`.
    """
    return None if kind == DEFAULT else purifier_class(kind).Settings


def network_section(settings: "Settings") -> tuple[str, Any]:
    """Name and values of the section that decides the network of the purifier's kind; None if it has no section."""
    kind = settings.purifier.kind
    name = "model" if kind == DEFAULT else purifier_class(kind).network_name or kind
    return name, getattr(settings, name, None)
