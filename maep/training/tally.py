"""What the micro-batches of one optimizer step add up to, kept on the device until the step's one read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maep.data.pairs import PairBatch


@dataclass
class Tally:
    """What the micro-batches of one step add up to on this rank. Tensors are not read here: the device goes on."""

    waited: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    keys: list[tuple[int, int]] = field(default_factory=list)
    totals: list[Tensor] = field(default_factory=list)

    def add(self, batch: PairBatch, total: Tensor, parts: dict[str, Tensor]) -> None:
        """Take in one micro-batch's losses [n], and (epoch, index) of its samples."""
        for name, part in {"loss": total, **parts}.items():
            part_sum = part.detach().double().sum()
            self.sums[name] = self.sums[name] + part_sum if name in self.sums else part_sum
        self.keys += zip(batch.epochs.tolist(), batch.indices.tolist(), strict=True)
        self.totals.append(total.detach())

    def numbers(self, flags: Sequence[bool]) -> Tensor:
        """What the ranks sum up: how many losses are not finite, `flags`, the sums. float64 [1 + flags + sums]."""
        bad = (~torch.cat(self.totals).isfinite()).sum().double()
        # Filled on the device: a tensor of the host would have to be copied there.
        given = [torch.full_like(bad, float(flag)) for flag in flags]
        return torch.stack([bad, *given, *self.sums.values()])

    def bad(self) -> list[tuple[int, int]]:
        """(epoch, index) of the samples whose loss is not finite."""
        finite = torch.cat(self.totals).isfinite().tolist()
        return [key for key, is_finite in zip(self.keys, finite, strict=True) if not is_finite]
