"""What the installed packages need before they can be imported together."""

import importlib.util
from pathlib import Path

import torch

_library: torch.library.Library | None = None


def declare_torchvision_operators() -> None:
    """Let a CUDA build of torchvision be imported beside a CPU build of torch.

    PyPI's torchvision is built for CUDA; beside a CPU torch its extension cannot load, and `import torchvision`
    fails because `torchvision::nms` is not declared. Declaring the two operators is enough for transforms, models
    and timm; `torchvision.ops.nms` itself stays unusable. Does nothing where the extension loads.
    """
    global _library
    spec = importlib.util.find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None:
        return
    extension = next(iter(Path(spec.origin).parent.glob("_C*.so")), None)
    if extension is None:
        return
    try:
        torch.ops.load_library(str(extension))
    except OSError:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
