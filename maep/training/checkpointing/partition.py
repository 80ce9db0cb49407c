"""Whole tensors from parts and back, for parameters that DeepSpeed ZeRO-3 has partitioned.

A partitioned parameter has `ds_tensor` (this rank's flat part, padded to equal sizes), `ds_shape` and `ds_numel`.
Every other parameter is its own, whole part.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def local_part(parameter: Any) -> Tensor:
    """What this rank holds of a parameter: the parameter itself, or its flat ZeRO-3 part."""
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter."""
    return tuple(parameter.ds_shape if hasattr(parameter, "ds_tensor") else parameter.shape)


def owned(parameter: Any) -> tuple[int, int]:
    """(start, count) of the flattened elements that this rank holds; count is 0 where its part is all padding."""
    if not hasattr(parameter, "ds_tensor"):
        return 0, parameter.numel()
    size = parameter.ds_tensor.numel()
    start = min(size * dist.get_rank(), parameter.ds_numel)
    return start, min(size, parameter.ds_numel - start)


def whole(parameter: Any, part: Tensor) -> Tensor:
    """Assemble a tensor of the parameter's shape from every rank's part. Collective under ZeRO-3."""
    if not hasattr(parameter, "ds_tensor"):
        return part.detach()
    gathered = torch.empty(part.numel() * dist.get_world_size(), dtype=part.dtype, device=part.device)
    dist.all_gather_into_tensor(gathered, part.detach().flatten())
    return gathered[: parameter.ds_numel].view(parameter.ds_shape)


def put_part(parameter: Any, part: Tensor, tensor: Tensor) -> None:
    """Fill this rank's `part` from a whole tensor; the inverse of `whole`. Padding becomes 0."""
    start, count = owned(parameter)
    flat = part.view(-1)
    flat[:count].copy_(tensor.flatten()[start : start + count])
    flat[count:].zero_()
