"""The persistent chains of an energy's training: one state a training image, walked on whenever the image comes.

Their starts and noise are keyed, but what they have become depends on all weights so far; so checkpoints hold them
(`extra/chains`), and every rank has all of them: of CIFAR-10's images 0.6 GB.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maep.models.energy_network import chains_after
from maep.runtime.keyed_noise import keyed_uniform, normal_of, sample_seeds
from maep.training.distributed.world import gather_objects

AT_ONCE = 1000  # states that are drawn together


class Chains:
    """states: fp32 [count, *shape], in [-1, 1] at first; NaN where a chain that starts at its image has not begun.

    network: an `EnergyNetwork`, as it is when it is asked. What `advance` gives becomes the state at `commit`, which
    every rank calls when no checkpoint is being read from the states: after the optimizer's step.
    """

    def __init__(self, network: Any, count: int, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        self.network, self.seed, self.device = network, seed, device
        parts = (range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE))
        self.states = torch.cat([keyed_uniform("chain starts", seed, part, shape, device) for part in parts])
        if network.chain_start == "images":
            self.states.fill_(torch.nan)
        self._advanced: list[tuple[list[int], list[int], Tensor]] = []

    def advance(self, indices: Sequence[int], keys: Sequence[int], images: Tensor) -> Tensor:
        """The states of these images' chains, [N, *shape], after `network.chain_steps` more Langevin steps.

        keys: of the noise, another one each time that an image comes. images: [N, *shape] in [0, 1].
        """
        seeds = sample_seeds("chains", self.seed, keys, self.device)
        states = self.states[torch.tensor(indices, device=self.device)]
        states = torch.where(states.isnan(), 2 * images - 1, states)
        steps = self.network.chain_steps
        states = chains_after(self.network, states, steps, lambda number: normal_of(seeds, number, states.shape[1:]))
        self._advanced.append((list(indices), list(keys), states))
        return states

    def commit(self) -> None:
        """Take over what all ranks have advanced since the last time.

        A batch across the end of an epoch may hold an image twice, wherever on the ranks: its chain goes on from the
        later visit, that of the greater key.
        """
        mine = [(indices, keys, states.cpu()) for indices, keys, states in self._advanced]
        last: dict[int, tuple[int, Tensor]] = {}
        for parts in gather_objects(mine):
            for index, key, state in (visit for part in parts for visit in zip(*part, strict=True)):
                if index not in last or last[index][0] < key:
                    last[index] = key, state
        places = torch.tensor(list(last), dtype=torch.int64, device=self.device)
        self.states[places] = torch.stack([state for _, state in last.values()]).to(self.device)
        self._advanced = []
