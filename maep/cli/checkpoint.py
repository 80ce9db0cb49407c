"""Look after a run's checkpoints: `maep checkpoint list|verify|export|convert RUN [--step N] [--to PATH] [--parts N]`.

    list      step, loss, size, processes and ZeRO stage of each, and whether it is whole
    verify    check every file's size and SHA-256
    export    write a purifier/ directory with the averaged weights of one
    convert   share the tensors of one out over another number of files

RUN is a run directory, a folder of checkpoints, or one checkpoint. --step: which one; default: the newest.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maep.config.load import nearest
from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.storage.atomic import MANIFEST, atomic_directory, problem_with, read_json


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Raises UserError for bad input, leaving nothing half-written."""
    parser = argparse.ArgumentParser(
        prog="maep checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", metavar="list|verify|export|convert")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--step", type=int, help="the checkpoint of this step; default: the newest")
    parser.add_argument("--to", type=Path, help="what to write; must not exist")
    parser.add_argument("--parts", type=int, default=1, help="files to share the tensors out over")
    given = parser.parse_args(arguments)
    if given.action not in ACTIONS:
        fail(f"checkpoint {given.action}: unknown{nearest(given.action, list(ACTIONS))}; choose {', '.join(ACTIONS)}")
    ACTIONS[given.action](find_checkpoints(given.run), given)
    return 0


def find_checkpoints(place: Path) -> list[Path]:
    """The checkpoints that a person means by a path, the oldest first; those of finetuning after those of pretraining.

    Raises UserError if there are none.
    """
    from maep.training.checkpointing.directory import STEP, checkpoints

    if STEP.fullmatch(place.name) and place.is_dir():
        return [place]
    found = [path for name in (".", "checkpoints", "checkpoints-finetune") for path in checkpoints(place / name)]
    if not found:
        fail(f"{place}: no checkpoints; give a run directory, its checkpoints/, or one step-…")
    return found


def _chosen(found: list[Path], step: int | None) -> Path:
    """The checkpoint of a step, or the newest; a damaged one is refused."""
    from maep.training.checkpointing.directory import step_of

    fitting = [path for path in found if step in (None, step_of(path))]
    if not fitting:
        fail(f"--step {step}: no such checkpoint; choose one of {', '.join(str(step_of(path)) for path in found)}")
    problem = problem_with(fitting[-1])
    if problem:
        fail(f"{fitting[-1]}: not a whole checkpoint: {problem}")
    return fitting[-1]


def _target(given: argparse.Namespace, default: str, checkpoint: Path) -> Path:
    target: Path = given.to or checkpoint.parent.parent / default / checkpoint.name
    if target.exists():
        fail(f"--to {target}: exists already; remove it or choose another")
    return target


def show(found: list[Path], _given: argparse.Namespace) -> None:
    """Print a line a checkpoint."""
    say(f"{'checkpoint':<36}{'loss':>9}{'size':>12}{'processes':>11}{'ZeRO':>6}  state")
    for path in found:
        problem = problem_with(path)
        facts: dict[str, Any] = read_json(path / MANIFEST)
        size = sum(entry["bytes"] for entry in facts["files"].values())
        loss, stage = facts.get("loss"), facts.get("zero_stage")
        told = f"{'-' if loss is None else f'{loss:.5f}':>9}{f'{size / 1e6:.1f} MB':>12}{facts.get('world', '-'):>11}"
        place = f"{path.parent.name}/{path.name}"
        say(f"{place:<36}{told}{'-' if stage is None else stage:>6}  {problem or 'whole'}")


def verify(found: list[Path], given: argparse.Namespace) -> None:
    """Check all of them, or that of one step. Raises UserError naming every damaged file."""
    from maep.training.checkpointing.directory import step_of

    chosen = [path for path in found if given.step in (None, step_of(path))]
    problems = [problem for path in chosen if (problem := problem_with(path))]
    if problems:
        fail(f"{len(problems)} of {len(chosen)} checkpoints are damaged: {'; '.join(problems)}")
    say(f"{len(chosen)} checkpoints are whole: {', '.join(path.name for path in chosen)}")


def export(found: list[Path], given: argparse.Namespace) -> None:
    """Write the purifier that a checkpoint holds."""
    from maep.purifiers import MAEPurifier, load_purifier, save_purifier

    checkpoint = _chosen(found, given.step)
    target = _target(given, "exported", checkpoint)
    purifier = load_purifier(checkpoint)
    assert isinstance(purifier, MAEPurifier)
    save_purifier(purifier.model, purifier.settings, target)
    say(f"exported {checkpoint} to {target}")


def convert(found: list[Path], given: argparse.Namespace) -> None:
    """Share a checkpoint's tensors out over `--parts` files, a part at a time in memory."""
    from maep.storage.tensor_files import HostBuffer, Piece, ShardedTensors

    if given.parts < 1:
        fail(f"--parts {given.parts}: must be at least 1")
    checkpoint = _chosen(found, given.step)
    target = _target(given, "converted", checkpoint)
    saved, buffer = ShardedTensors(checkpoint), HostBuffer()
    facts = {key: value for key, value in read_json(checkpoint / MANIFEST).items() if key != "files"}
    with atomic_directory(target, facts) as temporary:
        for part, names in enumerate(_shares(saved, given.parts)):
            buffer.fill([Piece(name, saved.tensor(name), saved.shape(name)) for name in names])
            buffer.write(temporary / f"rank-{part:04d}-of-{given.parts:04d}.safetensors")
    say(f"converted {checkpoint} to {target}, {given.parts} parts")


def _shares(saved: Any, parts: int) -> list[list[str]]:
    """Names for each part, so that the parts are about the same size."""
    loads, shares = [0] * parts, [list[str]() for _ in range(parts)]
    for name in saved.names():
        least = loads.index(min(loads))
        loads[least] += math.prod(saved.shape(name))
        shares[least].append(name)
    return shares


ACTIONS: dict[str, Callable[[list[Path], argparse.Namespace], None]] = {
    "list": show,
    "verify": verify,
    "export": export,
    "convert": convert,
}
