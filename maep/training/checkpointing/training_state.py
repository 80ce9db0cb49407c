"""What a training has to remember, as named tensors that do not depend on how many processes hold them.

    model/NAME, ema/NAME, optimizer/{exp_avg,exp_avg_sq,step}/NAME, extra/NAME

for plain training, DDP and ZeRO 0 to 3 alike. What all ranks hold is shared out among them by size; what ZeRO has
partitioned every rank writes as the piece that it holds, so nothing is sent between ranks to save.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maep.models.weights import require_fit
from maep.runtime.errors import fail
from maep.storage.tensor_files import Piece, ShardedTensors
from maep.training.checkpointing.partition import local_part, owned, put_part, whole_shape
from maep.training.checkpointing.zero import Partition, new_state, state_of, zero_partitions
from maep.training.ema import Average


@dataclass
class TrainingState:
    """Named trainable parameters, their average, and their optimizer: torch's own, or one of ZeRO.

    extra: tensors by name that a training changes itself, the same on every rank.
    """

    parameters: dict[str, nn.Parameter]
    optimizer: Any
    average: Average | None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def pieces(self, rank: int, world: int) -> list[Piece]:
        """What `rank` of `world` has to write. The tensors are the training's own, not copies."""
        loads = [0] * world
        pieces = []
        for piece, is_shared in self._local_pieces():
            owner = rank
            if is_shared:
                owner = loads.index(min(loads))
                loads[owner] += piece.tensor.numel()
            if owner == rank and piece.tensor.numel():
                pieces.append(piece)
        return pieces

    def _local_pieces(self) -> Iterator[tuple[Piece, bool]]:
        """Everything that this rank holds, and whether all others hold the same; in the same order on every rank."""
        partitions = zero_partitions(self.optimizer)
        for name, tensor in self.extra.items():
            yield Piece(f"extra/{name}", tensor, tuple(tensor.shape)), True
        for name, parameter in self.parameters.items():
            start, count = owned(parameter)
            shape, shared = whole_shape(parameter), not hasattr(parameter, "ds_tensor")
            parts = {f"model/{name}": local_part(parameter)}
            if self.average:
                parts[f"ema/{name}"] = self.average.parts[name]
            for key, part in parts.items():
                yield Piece(key, part.detach().flatten()[:count], shape, start), shared
            if parameter in partitions:
                yield from self._zero_pieces(name, shape, partitions[parameter])
            else:
                for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                    yield Piece(f"optimizer/{key}/{name}", value.detach(), tuple(value.shape)), True

    def _zero_pieces(self, name: str, shape: tuple[int, ...], partition: Partition) -> Iterator[tuple[Piece, bool]]:
        for key, value in sorted(state_of(self.optimizer, partition).items()):
            if value.dim() == 0:
                yield Piece(f"optimizer/{key}/{name}", value.detach(), ()), True
            else:
                yield Piece(f"optimizer/{key}/{name}", partition.of(value.detach()), shape, partition.start), False

    @torch.no_grad()
    def load(self, saved: ShardedTensors) -> None:
        """Take over what any number of processes under any ZeRO stage has saved.

        Raises UserError, naming the first parameters, if it belongs to another model, and if it lacks the average.
        """
        self._require_same_parameters(saved)
        partitions = zero_partitions(self.optimizer)
        if hasattr(self.optimizer, "checkpoint_event_prologue"):
            self.optimizer.checkpoint_event_prologue()
        for name, parameter in self.parameters.items():
            weights = saved.tensor(f"model/{name}")
            put_part(parameter, local_part(parameter).data, weights)
            if parameter in partitions:
                partitions[parameter].of(partitions[parameter].flat.data).copy_(partitions[parameter].cut(weights))
            if self.average:
                put_part(parameter, self.average.parts[name], saved.tensor(f"ema/{name}"))
        self._load_optimizer(saved, partitions)
        for name, tensor in self.extra.items():
            if f"extra/{name}" not in saved or saved.shape(f"extra/{name}") != tuple(tensor.shape):
                fail(f"{saved.directory}: does not hold the {name} of this training; is it of other images?")
            tensor.copy_(saved.tensor(f"extra/{name}"))
        if hasattr(self.optimizer, "checkpoint_event_epilogue"):
            self.optimizer.checkpoint_event_epilogue()

    def _require_same_parameters(self, saved: ShardedTensors) -> None:
        expected = {name: torch.empty(whole_shape(p), device="meta") for name, p in self.parameters.items()}
        shapes = {name.removeprefix("model/"): saved.shape(name) for name in saved.names("model/")}
        require_fit(expected, {n: torch.empty(shape, device="meta") for n, shape in shapes.items()}, saved.directory)
        if self.average and not saved.names("ema/"):
            fail(f"{saved.directory}: holds no averaged weights; set ema=0 as when it was saved")

    def _load_optimizer(self, saved: ShardedTensors, partitions: dict[Any, Partition]) -> None:
        kinds = {name.split("/")[1] for name in saved.names("optimizer/")}  # in no order: it differs between processes
        if partitions:
            new_state(self.optimizer, partitions, kinds & {"step"}, kinds - {"step"})
        else:
            self.optimizer.state.clear()  # of a later step, from which a training goes back
        for name, parameter in self.parameters.items():
            for key in kinds:
                full = f"optimizer/{key}/{name}"
                if full not in saved:
                    continue  # a parameter that had no gradient yet has no state
                value = saved.tensor(full)
                if parameter not in partitions:
                    at = parameter.device if key != "step" or self._counts_on_device() else "cpu"
                    self.optimizer.state[parameter][key] = _copy(value, at)
                    continue
                state = state_of(self.optimizer, partitions[parameter])
                if value.dim() == 0:
                    state[key].copy_(torch.maximum(state[key], value))
                else:
                    partitions[parameter].of(state[key]).copy_(partitions[parameter].cut(value))

    def _counts_on_device(self) -> bool:
        """Whether the optimizer's step counters are where the parameters are: a fused one's."""
        return any(group.get("fused") for group in self.optimizer.param_groups)


def _copy(value: Tensor, device: Any) -> Tensor:
    """A copy that outlives the file it was mapped from."""
    return value.clone().to(device)
