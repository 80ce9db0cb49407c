"""Where DeepSpeed ZeRO 1 to 3 keeps this rank's part of each parameter's weights and optimizer state.

ZeRO flattens the parameters of a group, cuts them into one part a rank, and gives the optimizer only that flat part;
its state is of that shape. In fp32 the flat part holds the very weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maep.training.checkpointing.partition import owned


@dataclass(frozen=True)
class Partition:
    """`flat[at : at + count]` belongs to the elements of a parameter from `start` on; count may be 0."""

    flat: Tensor
    at: int
    start: int
    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """This rank's elements in a tensor that is laid out like `flat`."""
        return tensor.narrow(0, self.at, self.count)

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's elements of a whole tensor of the parameter's shape."""
        return whole.flatten().narrow(0, self.start, self.count)


def zero_partitions(optimizer: Any) -> dict[Any, Partition]:
    """`{parameter: partition}` for a ZeRO optimizer; empty for any other."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return dict(_partitions_of_stage_3(optimizer))
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return dict(_partitions_of_stage_1_and_2(optimizer))
    return {}


def _partitions_of_stage_1_and_2(optimizer: Any) -> Iterator[tuple[Any, Partition]]:
    for parameters, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is None:
                yield parameter, Partition(flat, 0, 0, 0)
            else:
                part, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
                yield parameter, Partition(flat, part.start, start, part.numel)


def _partitions_of_stage_3(optimizer: Any) -> Iterator[tuple[Any, Partition]]:
    for parameters in optimizer.fp16_groups:
        for parameter in parameters:
            group, at, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start, count = owned(parameter)
            yield parameter, Partition(optimizer.fp32_partitioned_groups_flat[group], at, start, count)


def state_of(optimizer: Any, partition: Partition) -> dict[str, Tensor]:
    """The state of the flat part that a partition is in; empty before the first step."""
    return optimizer.optimizer.state.get(partition.flat, {})


def new_state(optimizer: Any, partitions: dict[Any, Partition], scalars: set[str], tensors: set[str]) -> None:
    """Give every flat part a state of zeros to fill: numbers and tensors laid out like the part."""
    for flat in {id(each.flat): each.flat for each in partitions.values()}.values():
        state = {key: torch.zeros(()) for key in scalars}
        optimizer.optimizer.state[flat] = state | {key: torch.zeros_like(flat.detach()) for key in tensors}
