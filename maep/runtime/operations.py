"""What a computation takes: its floating-point operations and launches, counted as it goes, on zeros if need be."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

ALLOCATE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "detach")


class Operations(TorchDispatchMode):
    """Counts what is computed within it, derivatives that are taken inside included, where torch's own counter refuses.

    flops: of matrix products and convolutions, two for a product and its sum, as torch counts; of nothing else.
    launches: operations of any kind that a device is asked for one by one. dry: matrix products and convolutions are
    counted, but give zeros of their shape: everything else is computed as it is, in a fraction of the time.
    """

    def __init__(self, *, dry: bool = False) -> None:
        super().__init__()
        self.dry, self.flops, self.launches = dry, 0.0, 0
        self._shapes: dict[tuple[Any, str], Any] = {}  # by an operation and its arguments, on the meta device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation, and give its result."""
        kwargs, count = kwargs or {}, flop_registry.get(function._overloadpacket)
        if count is None and function._can_decompose():
            with self:  # what torch makes of several others is counted as those
                return function.decompose(*args, **kwargs)
        is_dry = self.dry and count is not None and "out" not in kwargs
        result = self._zeros(function, args, kwargs) if is_dry else function(*args, **kwargs)
        self.flops += count(*args, **kwargs, out_val=result) if count else 0
        self.launches += not (function.is_view or function._overloadpacket.__name__ in ALLOCATE)
        return result

    def _zeros(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Zeros of the shapes that an operation gives."""
        device = next(each.device for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        args, kwargs = tree_map_only(Tensor, _on_paper, (args, kwargs))
        described = tree_map_only(Tensor, lambda each: (each.shape, each.stride(), each.dtype), (args, kwargs))
        if (key := (function, repr(described))) not in self._shapes:
            self._shapes[key] = function(*args, **kwargs)
        return tree_map_only(Tensor, lambda shape: torch.zeros_like(shape, device=device), self._shapes[key])


def _on_paper(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@contextmanager
def counted(*, dry: bool = False) -> Iterator[Operations]:
    """Within it operations are counted; attention is made of products, which are, and not by a kernel of its own."""
    with sdpa_kernel(SDPBackend.MATH), Operations(dry=dry) as operations:
        yield operations


class SavedBytes(saved_tensors_hooks):
    """Within it `total` grows by the bytes of the tensors that autograd keeps for a backward pass, each of them once.

    beside: tensors that are there anyway, such as weights.
    """

    def __init__(self, beside: Iterable[Tensor] = ()) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._seen = {StorageWeakRef(each.untyped_storage()) for each in beside}
        self.total = 0

    def __enter__(self) -> Self:  # type: ignore[override]
        super().__enter__()
        return self

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := StorageWeakRef(storage)) not in self._seen:
            self._seen.add(key)
            self.total += storage.nbytes()
        return tensor
