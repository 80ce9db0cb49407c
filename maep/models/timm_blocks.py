"""What is used of timm, imported so that it also works beside a CPU build of torch."""

from maep.runtime.torchvision_shim import declare_torchvision_operators

declare_torchvision_operators()  # timm imports torchvision, which needs this first

from timm import create_model, is_model, list_models  # noqa: E402
from timm.layers import LayerNorm  # noqa: E402
from timm.models.vision_transformer import Block  # noqa: E402

__all__ = ["Block", "LayerNorm", "create_model", "is_model", "list_models"]
