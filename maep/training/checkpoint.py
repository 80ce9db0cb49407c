"""Sharded checkpoints: every rank writes its part; one is whole or absent.

    checkpoints/step-000200/
        manifest.json                     facts (step, samples, model, …) and every file's size and SHA-256
        rank-00-of-02.safetensors …       model/NAME, ema/NAME, optimizer/{exp_avg,exp_avg_sq,step}/NAME
        deepspeed/                        ZeRO's own optimizer state, only with compute.zero_stage

A tensor is whole in one of the rank files (ranks share them out by size), so any number of processes can read
them. Committed by rename after all ranks have written; older ones are removed only afterwards.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maep.errors import UserError
from maep.files import MANIFEST, problem_with, read_json, seal_directory
from maep.progress import say
from maep.training.distributed import gather_objects
from maep.training.ema import Average
from maep.training.sharding import local_part, part_of, whole

STEP = re.compile(r"step-(\d+)")


@dataclass
class TrainingState:
    """What a checkpoint holds: named trainable parameters, their average, their optimizer, and the engine."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: Average | None
    engine: Any = None
    facts: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, whole, by its name in the checkpoint. Collective under ZeRO-3."""
        for name, parameter in self.parameters.items():
            yield f"model/{name}", whole(parameter, local_part(parameter))
            if self.average:
                yield f"ema/{name}", whole(parameter, self.average.parts[name])
            for key, value in self.optimizer.state.get(parameter, {}).items() if self.engine is None else ():
                yield f"optimizer/{key}/{name}", value.detach()

    @torch.no_grad()
    def load(self, name: str, tensor: Tensor) -> None:
        """Put one tensor of a checkpoint in its place. Raises KeyError for a name that has none."""
        kind, _, rest = name.partition("/")
        if kind == "model":
            part = local_part(self.parameters[rest])
            part.copy_(part_of(self.parameters[rest], tensor).view_as(part))
        elif kind == "ema" and self.average:
            part = self.average.parts[rest]
            part.copy_(part_of(self.parameters[rest], tensor).view_as(part))
        elif kind == "optimizer" and self.engine is None:
            key, _, parameter = rest.partition("/")
            place = self.parameters[parameter]
            device = "cpu" if key == "step" else place.device
            self.optimizer.state[place][key] = tensor.to(device)


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step-{step:06d}"


def checkpoints(directory: Path) -> list[Path]:
    """Committed checkpoints, the oldest first."""
    found = [p for p in directory.glob("step-*") if STEP.fullmatch(p.name) and (p / MANIFEST).is_file()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def newest_whole(directory: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; damaged ones are passed over, each named."""
    for path in reversed(checkpoints(directory)):
        problem = problem_with(path)
        if problem is None:
            return path
        say(f"warning: checkpoint passed over: {problem}")
    return None


def read_tensors(checkpoint: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a checkpoint's rank files, read one at a time; only names that start with `prefix`."""
    for path in sorted(checkpoint.glob("rank-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)


def save_checkpoint(
    directory: Path, step: int, state: TrainingState, accelerator: Accelerator, *, keep_last: int
) -> Path:
    """Write the checkpoint of a step from all ranks, commit it, then remove those beyond `keep_last`.

    Raises UserError on every rank when any rank cannot write; earlier checkpoints stay as they are.
    """
    final = checkpoint_path(directory, step)
    temporary = final.with_name(f".tmp-{final.name}")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    problems = gather_objects(_write_part(temporary, state, accelerator))
    problem = next((text for text in problems if text), None)
    if problem is None and accelerator.is_main_process:
        problem = _commit(temporary, final, state)
    problem = gather_objects(problem)[0]
    if problem:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{final}: cannot be written: {problem}; earlier checkpoints are untouched")
    if accelerator.is_main_process:
        prune(directory, keep_last)
    return final


def _write_part(temporary: Path, state: TrainingState, accelerator: Accelerator) -> str | None:
    """Write this rank's tensors; returns what went wrong, so that all ranks can give up together."""
    rank, world = accelerator.process_index, accelerator.num_processes
    loads = [0] * world
    mine: dict[str, Tensor] = {}
    for name, tensor in state.tensors():
        owner = loads.index(min(loads))
        loads[owner] += tensor.numel()
        if owner == rank:
            mine[name] = tensor.detach().cpu().contiguous().clone()
    path = temporary / f"rank-{rank:02d}-of-{world:02d}.safetensors"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        save_file(mine, path)
        if state.engine is not None:
            state.engine.save_checkpoint(str(temporary / "deepspeed"), tag="state", save_latest=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        return str(error)
    return None


def _commit(temporary: Path, final: Path, state: TrainingState) -> str | None:
    try:
        seal_directory(temporary, final, state.facts)
    except OSError as error:
        return error.strerror or str(error)
    return None


def prune(directory: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints, and what a killed save left behind."""
    for path in checkpoints(directory)[:-keep_last]:
        shutil.rmtree(path)
    for path in directory.glob(".tmp-step-*"):
        shutil.rmtree(path)


def load_checkpoint(path: Path, state: TrainingState, accelerator: Accelerator) -> dict[str, Any]:
    """Restore a verified checkpoint into `state`; returns its manifest's facts.

    Raises UserError if it belongs to another model, or was written under another ZeRO stage or world size.
    """
    facts = read_json(path / MANIFEST)
    for key in ("model", "zero_stage") + (("world",) if state.engine is not None else ()):
        if facts.get(key) != state.facts.get(key):
            raise UserError(f"{path}: was written with {key}={facts.get(key)}, this run has {state.facts.get(key)}")
    missing = {f"model/{name}" for name in state.parameters}
    for name, tensor in read_tensors(path):
        try:
            state.load(name, tensor)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{path}: {name} does not fit this model: {error}") from error
        missing.discard(name)
    if missing:
        raise UserError(f"{path}: lacks {', '.join(sorted(missing)[:3])}")
    if state.engine is not None:
        state.engine.load_checkpoint(str(path / "deepspeed"), tag="state")
    return facts
