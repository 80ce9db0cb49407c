"""What is used of timm, imported so that it also works beside a CPU build of torch."""

from maep.runtime.torchvision_shim import declare_torchvision_operators

declare_torchvision_operators()  # timm imports torchvision, which needs this first

from timm import create_model, get_pretrained_cfg, is_model, list_models  # noqa: E402
from timm.layers import LayerNorm  # noqa: E402
from timm.models.vision_transformer import Block  # noqa: E402

__all__ = [
    "Block", "LayerNorm", "create_model", "has_fixed_size", "is_model", "list_models", "usual_normalization",
]  # fmt: skip


def has_fixed_size(arch: str) -> bool:
    """Whether timm says that a model takes images of one size alone."""
    usual = get_pretrained_cfg(arch)
    return bool(usual and usual.fixed_input_size)


def usual_normalization(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Channel means and deviations that timm's own weights of a model expect, in [0, 1] pixels; None without any."""
    usual = get_pretrained_cfg(arch)
    return (tuple(usual.mean), tuple(usual.std)) if usual and usual.has_weights else None
