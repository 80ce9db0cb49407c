"""ComDefend: images are compressed to a few bits a pixel and drawn anew from them (Jia et al., CVPR 2019).

Noise on the code in training leaves a bit its meaning only where the encoder is sure of it, so that small perturbations
change none. Bits have no gradient: attackers take the identity's (BPDA). Written from a description of the networks
and of the loss. The published weights are two lists of NumPy arrays in TensorFlow's layout, `enc20_0.0001.npy` and
`dec20_0.0001.npy`: kernels [height, width, in, out], and biases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor

from maep.config.evaluation_settings import PurifySettings
from maep.config.setting import setting
from maep.models.code_network import CodeNetwork
from maep.purifiers.base import require_eager, require_images
from maep.purifiers.sections import USED
from maep.purifiers.whole_image import WholeImagePurifier
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng
from maep.storage.array_pickles import read_array_list

LISTS = ("enc*.npy", "dec*.npy")
Layer = tuple[Tensor, Tensor]  # a kernel, [out, in, 3, 3], and its bias, [out]


@dataclass
class ComDefendSettings:
    """Section `comdefend`. The defaults are the published networks of 783 thousand parameters each."""

    widths: list[int] = setting(
        [16, 32, 64, 128, 256, 128, 64, 32], "channels of the encoder's layers before the code; the decoder's the same "
        "in the other order", low=1, high=2**12,
    )  # fmt: skip
    bits: int = setting(12, "bits a pixel of the code", unit="bits", low=1, high=2**10)
    noise: float = setting(20.0, "deviation of the noise on the logits of bits in training", low=0.0, high=1e6)
    offset: float = setting(
        0.0, "taken from every pixel before it is encoded; 0.5 for its authors' TensorFlow weights", low=0.0, high=1.0,
        added=True,
    )  # fmt: skip
    test_noise: float = setting(
        20.0, "the same where it purifies, as in the authors' PyTorch code; 0: none, as in their TensorFlow code",
        low=0.0, high=1e6, affects_result=USED,
    )  # fmt: skip


class ComDefendPurifier(WholeImagePurifier):
    """Purifies images of any size whole: decodes their bits, of logits with noise that is drawn anew at every call."""

    kind = "comdefend"
    Settings = ComDefendSettings
    options = ("batch_tiles",)
    stages = ("shards", "classifier", "pretrain")
    network_kind = "code"
    is_differentiable = False

    network: ComDefendSettings

    def __init__(self, model: CodeNetwork, network: ComDefendSettings, settings: PurifySettings) -> None:
        super().__init__(model, network, settings)
        self.reseed(0)

    @classmethod
    def check(cls, section: ComDefendSettings) -> None:
        """Raise UserError where the encoder has no layer before its code."""
        if not section.widths:
            fail("comdefend.widths=[]: expected at least one width, such as 32")

    @classmethod
    def build(cls, network: ComDefendSettings) -> CodeNetwork:
        """As `WholeImagePurifier.build`."""
        return CodeNetwork(network.widths, network.bits, network.noise, network.offset)

    def widest(self) -> int:
        """As `WholeImagePurifier.widest`."""
        return max(self.network.bits, *self.network.widths)

    @classmethod
    def from_published(cls, path: Path) -> Self:
        """The purifier of its authors' lists in a directory, used as in their TensorFlow code: without noise.

        Raises UserError where there is not one of each, or where kernels and biases are those of other networks.
        """
        encoder, decoder = map(_layers, [_only(path, pattern) for pattern in LISTS])
        tensors = _named("encoder.", encoder) | _named("decoder.0.", decoder)
        widths = [len(bias) for _, bias in encoder]
        network = ComDefendSettings(widths[:-1], widths[-1], offset=0.5, test_noise=0.0)
        cls.check(network)
        model = cast(CodeNetwork, cls._with_weights(network, tensors, path))
        return cls(model, network, PurifySettings())

    @property
    def is_random(self) -> bool:
        """Whether noise is drawn."""
        return bool(self.network.test_noise)

    def reseed(self, *key: int) -> None:
        """Start the noise at `key`; images draw one after another."""
        self._rng = keyed_rng("purifier", *key)

    @torch.no_grad()
    def purify(self, images: Tensor) -> Tensor:
        """As `WholeImagePurifier.purify`, without a gradient. Raises ValueError where one with noise is exported."""
        if not self.is_random:
            return super().purify(images)
        require_images(images)
        require_eager(self)
        return torch.cat([self._decoded(part) for part in images.split(self.images_at_once(*images.shape[2:]))])

    def _decoded(self, images: Tensor) -> Tensor:
        shape = (len(images), self.network.bits, *images.shape[2:])
        noise = torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32)).to(images)
        return cast(Tensor, self.model(images, self.network.test_noise * noise)).to(images.dtype)


def _only(directory: Path, pattern: str) -> Path:
    """The one file of that form in a directory."""
    if not directory.is_dir():
        fail(f"{directory}: expected a directory with ComDefend's {' and '.join(LISTS)}")
    paths = sorted(directory.glob(pattern))
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none"
        fail(f"{directory}: expected one {pattern}; it has {found}")
    return paths[0]


def _layers(path: Path) -> list[Layer]:
    """Kernels and biases of a list, in order: each bias after its kernel, or all biases after all kernels."""
    arrays = read_array_list(path)
    kernels, biases = ([each for each in arrays if each.ndim == ndim] for ndim in (4, 1))
    if not kernels or len(kernels) != len(biases) or len(arrays) != len(kernels) + len(biases):
        shapes = ", ".join(str(each.shape) for each in arrays[:4])
        fail(
            f"{path}: expected a bias [out] for every kernel [3, 3, in, out]; it has {len(arrays)} arrays: {shapes}, …"
        )
    return [
        (torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).float(), torch.from_numpy(bias.copy()).float())
        for kernel, bias in zip(kernels, biases, strict=True)
    ]


def _named(prefix: str, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """By their names in `CodeNetwork`, where an ELU stands between two layers."""
    parts = ((f"{prefix}{2 * number}", layer) for number, layer in enumerate(layers))
    return {
        f"{name}.{part}": tensor
        for name, layer in parts
        for part, tensor in zip(("weight", "bias"), layer, strict=True)
    }
