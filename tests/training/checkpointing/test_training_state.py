"""A training's state takes over a checkpoint as it was saved, whatever it has become since."""

from pathlib import Path

import torch
from torch import nn

from maep.storage.manifests import CheckpointManifest
from maep.training.checkpointing.async_saver import Saver
from maep.training.checkpointing.directory import Retention, checkpoint_path, load_checkpoint
from maep.training.checkpointing.training_state import TrainingState
from maep.training.ema import Average


def test_a_later_state_goes_back(tmp_path: Path) -> None:
    """Weights, averages and the optimizer's moments and counts are those of the checkpoint; a parameter that had no
    gradient by then has none of them, as in a process that begins from it.
    """
    parameters = {name: nn.Parameter(torch.ones(3)) for name in ("early", "late")}
    optimizer, average = torch.optim.AdamW(parameters.values(), lr=0.1), Average(parameters, 0.9)
    state = TrainingState(parameters, optimizer, average)

    def step(number: int, *names: str) -> None:
        for name in names:
            parameters[name].grad = torch.full((3,), float(number))
        optimizer.step()
        average.update(number)

    def content() -> dict[str, list[float]]:
        return {piece.name: piece.tensor.flatten().tolist() for piece in state.pieces(0, 1)}

    step(1, "early")
    saver = Saver(tmp_path, state, Retention(2), timeout=10)
    saver.save(CheckpointManifest(step=1))
    saver.finish()
    saved = content()
    assert [name for name in saved if name.startswith("optimizer/")] == [
        f"optimizer/{key}/early" for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    step(2, "early", "late")
    assert content().keys() > saved.keys()
    load_checkpoint(checkpoint_path(tmp_path, 1), state, CheckpointManifest(step=0))
    assert content() == saved
