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
class Place:
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


def zero_places(optimizer: Any) -> dict[Any, Place]:
    """`{parameter: place}` for a ZeRO optimizer; empty for any other."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return dict(_places_of_stage_3(optimizer))
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return dict(_places_of_stage_1_and_2(optimizer))
    return {}


def _places_of_stage_1_and_2(optimizer: Any) -> Iterator[tuple[Any, Place]]:
    for parameters, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
        for parameter in parameters:
            held = parameter._hp_mapping
            if held is None:
                yield parameter, Place(flat, 0, 0, 0)
            else:
                count = held.hp_fragment_address.numel
                yield parameter, Place(flat, held.hp_fragment_address.start, held.lp_fragment_address.start, count)


def _places_of_stage_3(optimizer: Any) -> Iterator[tuple[Any, Place]]:
    for parameters in optimizer.fp16_groups:
        for parameter in parameters:
            group, at, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start, count = owned(parameter)
            yield parameter, Place(optimizer.fp32_partitioned_groups_flat[group], at, start, count)


def state_of(optimizer: Any, place: Place) -> dict[str, Tensor]:
    """The state of the flat part that a place is in; empty before the first step."""
    return optimizer.optimizer.state.get(place.flat, {})


def new_state(optimizer: Any, places: dict[Any, Place], scalars: set[str], tensors: set[str]) -> None:
    """Give every flat part a state of zeros to fill: numbers and tensors laid out like the part."""
    for flat in {id(place.flat): place.flat for place in places.values()}.values():
        state = {key: torch.zeros(()) for key in scalars}
        optimizer.optimizer.state[flat] = state | {key: torch.zeros_like(flat.detach()) for key in tensors}
