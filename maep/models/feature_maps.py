"""The feature map of a classifier in which images are compared, as perceptual losses compare them in VGG-16's.

That of VGG-16 is its relu3_3, the last at a quarter of the image's resolution. Of any other network it is here the last
map at that resolution or a finer one: the end of layer3 of a ResNet for CIFAR, that of layer1 of one for ImageNet.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from maep.runtime.errors import fail

SHARE = 4  # of the image's side


class FeatureMap(nn.Module):
    """Images [N, 3, H, W] in [0, 1] to the features [N, C, h, w] of a classifier, frozen and in eval mode.

    Which map it is, the first images show; after them a compiled training is one graph.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        # A copy that shares the tensors: its hook is nobody else's.
        tensors = [*classifier.parameters(), *classifier.buffers()]
        self.classifier = copy.deepcopy(classifier, {id(tensor): tensor for tensor in tensors})
        self._found, self._seen = False, list[Tensor]()
        self.train(classifier.training)

    def forward(self, images: Tensor) -> Tensor:
        """Differentiable with respect to the images. Raises UserError for a classifier that has no such map."""
        if not self._found:
            self._find(images[:1])
        self.classifier(images)
        return self._seen.pop()

    @torch.compiler.disable
    def _find(self, image: Tensor) -> None:
        module = self.classifier.get_submodule(_last_map(self.classifier, image))
        module.register_forward_hook(lambda *call: self._seen.append(call[2]))
        self._found = True


@torch.no_grad()
def _last_map(classifier: nn.Module, image: Tensor) -> str:
    """Name of the module that gives it."""
    names: list[str] = []

    def note(name: str, result: Any) -> None:
        if isinstance(result, Tensor) and result.ndim == 4 and _is_fine(result, image):
            names.append(name)

    hooks = [
        module.register_forward_hook(lambda *call, name=name: note(name, call[2]))
        for name, module in classifier.named_modules()
        if name
    ]
    try:
        classifier(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not names:
        fail(f"classifier {type(classifier).__name__}: has no map of features at a quarter of the image's resolution; "
             "choose a convolutional one")  # fmt: skip
    return names[-1]


def _is_fine(features: Tensor, image: Tensor) -> bool:
    """Whether at a quarter of the resolution at least, rounded up as strides round."""
    return all(SHARE * (side + 1) > whole for side, whole in zip(features.shape[2:], image.shape[2:], strict=True))
