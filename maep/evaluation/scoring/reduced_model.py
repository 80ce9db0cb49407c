"""A faster, inexact surrogate of a model for attacks to follow. It decides nothing: the exact model does."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maep.config.evaluation_settings import EvaluationSettings
from maep.purifiers import Purifier
from maep.runtime.compiling import compiled_copy


@dataclass(frozen=True)
class SurrogateSettings:
    """How the surrogate computes. precision: `fp32` or `bf16` (autocast); compile: by torch.compile."""

    precision: str = "fp32"
    compile: bool = False

    @classmethod
    def of(cls, settings: EvaluationSettings) -> "SurrogateSettings":
        """As configured."""
        return cls(settings.precision, settings.compile)

    @property
    def is_exact(self) -> bool:
        """Whether there is no surrogate: the attack follows the model itself."""
        return self == SurrogateSettings()

    def facts(self) -> dict[str, object]:
        """What adversarial images depend on; nothing where the attack follows the exact model itself."""
        precision = {"precision": self.precision} if self.precision != "fp32" else {}
        return {**precision, **({"compile": True} if self.compile else {})}

    def __str__(self) -> str:
        return self.precision + (", compiled" if self.compile else "")

    def parts(self, purifier: nn.Module, classifier: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The two as the surrogate has them, with the same weights.

        Of a purifier the network alone is compiled, and one that is not ours stays as it is: what is drawn at random
        must not be compiled.
        """
        if not self.compile:
            return purifier, classifier
        if isinstance(purifier, Purifier):
            purifier = purifier.compiled()
        return purifier, compiled_copy(classifier)

    def reduced(self, model: nn.Module) -> nn.Module:
        """A model made of such parts as the attack follows it: [N, 3, H, W] in [0,1] → logits [N, C]."""
        return Reduced(model).eval() if self.precision == "bf16" else model


class Reduced(nn.Module):
    """A model whose matrix products and convolutions are in bf16; images and logits are fp32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C]."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return self.model(images).float()
