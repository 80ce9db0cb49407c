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


def whole(parameter: Any, part: Tensor) -> Tensor:
    """Assemble a tensor of the parameter's shape from every rank's part. Collective under ZeRO-3."""
    if not hasattr(parameter, "ds_tensor"):
        return part.detach()
    gathered = torch.empty(part.numel() * dist.get_world_size(), dtype=part.dtype, device=part.device)
    dist.all_gather_into_tensor(gathered, part.detach().flatten())
    return gathered[: parameter.ds_numel].view(parameter.ds_shape)


def part_of(parameter: Any, tensor: Tensor) -> Tensor:
    """This rank's part of a whole tensor; the inverse of `whole`."""
    if not hasattr(parameter, "ds_tensor"):
        return tensor
    size = parameter.ds_tensor.numel()
    flat = torch.zeros(size * dist.get_world_size(), dtype=tensor.dtype)
    flat[: tensor.numel()] = tensor.flatten()
    return flat[size * dist.get_rank() : size * (dist.get_rank() + 1)]
