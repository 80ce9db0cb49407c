"""What the installed packages need before they can be imported together."""

import importlib.util
from functools import cache
from pathlib import Path

import torch


@cache
def declare_torchvision_operators() -> torch.library.Library | None:
    """Let a CUDA build of torchvision be imported beside a CPU build of torch.

    PyPI's torchvision is built for CUDA; beside a CPU torch its extension cannot load, and `import torchvision`
    fails because `torchvision::nms` is not declared. Declaring the two operators is enough for transforms, models
    and timm; `torchvision.ops.nms` itself stays unusable. Does nothing where the extension loads. Operators are a
    process's own and last as long as the library that is returned: it is cached, and made once.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    extension = next(iter(Path(spec.origin).parent.glob("_C*.so")), None)
    if extension is None:
        return None
    try:
        torch.ops.load_library(str(extension))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None
