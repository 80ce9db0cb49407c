"""Counting what makes a host wait for its device: values that Python needs, or the shape of another tensor."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operators that end only when the numbers are on the host: item() and bool(), and results as long as the values say.
READING = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.unique_consecutive,
    aten._unique2, aten.unique_dim, aten.bincount,
}  # fmt: skip
UNSEEN = ("tolist", "numpy", "cpu")  # methods of a tensor that read it without such an operator


class HostReads(TorchDispatchMode):
    """Counts, in `calls`, the reads of tensors that would be on a device; on a CPU all look alike.

    at_home: tensors that are the host's own, such as what a loader delivers and the counters of an optimizer.
    """

    def __init__(self, at_home: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.at_home = list(at_home)  # kept, so that no other tensor gets their memory
        self.calls: list[str] = []

    def note(self, name: str, tensor: Any) -> None:
        """A read, unless it is of a tensor of the host's own."""
        if tensor.data_ptr() not in {each.data_ptr() for each in self.at_home}:
            self.calls.append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        chosen = args[1] if packet in (aten.index, aten.index_put, aten.index_put_) else ()
        masked = any(index is not None and index.dtype == torch.bool for index in chosen)
        if packet in READING or masked:
            self.note(str(packet), args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads(at_home: Iterable[Tensor] = ()) -> Iterator[HostReads]:
    """Within it reads are counted, also those that torch's operators do not show. at_home: as `HostReads`."""
    counted = HostReads(at_home)
    originals = {name: getattr(Tensor, name) for name in UNSEEN}

    def noted(name: str) -> Any:
        def method(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            counted.note(name, tensor)
            return originals[name](tensor, *arguments, **options)

        return method

    for name in UNSEEN:
        setattr(Tensor, name, noted(name))
    try:
        with counted:
            yield counted
    finally:
        for name, original in originals.items():
            setattr(Tensor, name, original)
