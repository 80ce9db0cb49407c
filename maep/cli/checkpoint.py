"""Look after a run's checkpoints: `maep checkpoint list|verify|export|convert RUN [--step N] [--to PATH] [--parts N]`,
and take in published weights: `maep checkpoint import FILE --kind disco --to PATH`.

    list      step, loss, size, processes and ZeRO stage of each, and whether it is whole
    verify    check every file's size and SHA-256
    export    write a purifier/ directory with the averaged weights of one
    convert   share the tensors of one out over another number of files
    import    write a purifier/ directory with the weights in a file as the authors of a kind publish them

RUN is a run directory, a folder of checkpoints, or one checkpoint. --step: which one; default: the newest.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maep.config.command_line import Parser
from maep.runtime.console import say
from maep.runtime.errors import fail, nearest
from maep.storage.manifests import CheckpointManifest
from maep.storage.sealed import MANIFEST, atomic_directory, problem_with

if TYPE_CHECKING:
    from maep.storage.tensor_files import ShardedTensors


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Raises UserError for bad input, leaving nothing half-written."""
    parser = Parser(prog="maep checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", metavar="list|verify|export|convert|import")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--step", type=int, help="the checkpoint of this step; default: the newest")
    parser.add_argument("--to", type=Path, help="what to write; must not exist")
    parser.add_argument("--parts", type=int, help="files to share the tensors out over; default: 1")
    parser.add_argument("--kind", help="of the purifier in the file that is imported")
    options = parser.parse_args(arguments)
    action, known = options.action, [*ACTIONS, IMPORT]
    if action not in known:
        fail(f"checkpoint {action}: unknown{nearest(action, known)}; choose {', '.join(known)}")
    for name in sorted({"step", "to", "parts", "kind"} - HEEDED[action]):
        if getattr(options, name) is not None:
            heeded = " and ".join(f"--{other}" for other in sorted(HEEDED[action])) or "no option"
            fail(f"--{name}: checkpoint {action} takes {heeded}")
    if action == IMPORT:
        import_published(options)
        return 0
    ACTIONS[action](find_checkpoints(options.run), options)
    return 0


def find_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints that a person means by a path, the oldest first; those of finetuning after those of pretraining.

    Raises UserError if there are none.
    """
    from maep.training.checkpointing.directory import STEP, checkpoints

    if STEP.fullmatch(directory.name) and directory.is_dir():
        return [directory]
    folders = [directory / name for name in (".", "checkpoints", "checkpoints-finetune")]
    paths = [path for folder in folders for path in checkpoints(folder)]
    if not paths:
        fail(f"{directory}: no checkpoints; give a run directory, its checkpoints/, or one step-…")
    return paths


def _of_step(paths: list[Path], step: int | None) -> list[Path]:
    """Those of a step, or all. Raises UserError if there are none."""
    from maep.training.checkpointing.directory import step_of

    matches = [path for path in paths if step in (None, step_of(path))]
    if not matches:
        fail(f"--step {step}: no such checkpoint; choose one of {', '.join(str(step_of(path)) for path in paths)}")
    return matches


def _whole_checkpoint(paths: list[Path], step: int | None) -> Path:
    """The checkpoint of a step, or the newest; a damaged one is refused."""
    matches = _of_step(paths, step)
    problem = problem_with(matches[-1])
    if problem:
        fail(f"{matches[-1]}: not a whole checkpoint: {problem}")
    return matches[-1]


def _target(options: argparse.Namespace, default: str, checkpoint: Path) -> Path:
    target: Path = options.to or checkpoint.parent.parent / default / checkpoint.name
    if target.exists():
        fail(f"--to {target}: exists already; remove it or choose another")
    return target


def show(paths: list[Path], _options: argparse.Namespace) -> None:
    """Print a line a checkpoint."""
    say(f"{'checkpoint':<36}{'loss':>9}{'size':>12}{'processes':>11}{'ZeRO':>6}  state")
    for path in paths:
        problem = problem_with(path)
        manifest = CheckpointManifest.read(path / MANIFEST)
        size = sum(entry.bytes for entry in manifest.files.values())
        loss, stage = manifest.loss, manifest.zero_stage
        columns = f"{'-' if loss is None else f'{loss:.5f}':>9}{f'{size / 1e6:.1f} MB':>12}{manifest.world:>11}"
        name = f"{path.parent.name}/{path.name}"
        say(f"{name:<36}{columns}{'-' if stage is None else stage:>6}  {problem or 'whole'}")


def verify(paths: list[Path], options: argparse.Namespace) -> None:
    """Check all of them, or that of one step. Raises UserError naming every damaged file."""
    matches = _of_step(paths, options.step)
    problems = [problem for path in matches if (problem := problem_with(path))]
    if problems:
        fail(f"{len(problems)} of {len(matches)} checkpoints are damaged: {'; '.join(problems)}")
    say(f"{len(matches)} checkpoints are whole: {', '.join(path.name for path in matches)}")


def export(paths: list[Path], options: argparse.Namespace) -> None:
    """Write the purifier that a checkpoint holds."""
    from maep.purifiers import load_purifier, save_purifier

    checkpoint = _whole_checkpoint(paths, options.step)
    target = _target(options, "exported", checkpoint)
    save_purifier(load_purifier(checkpoint), target)
    say(f"exported {checkpoint} to {target}")


def import_published(options: argparse.Namespace) -> None:
    """Write the purifier that a published file holds."""
    from maep.purifiers import save_purifier
    from maep.purifiers.registry import purifier_class

    if not options.kind or not options.to:
        fail("checkpoint import: give --kind KIND and --to PATH, such as --kind disco --to runs/disco/purifier")
    purifier = purifier_class(options.kind, "--kind").from_published(options.run)
    save_purifier(purifier, _target(options, "", options.run))
    say(f"imported {options.run} to {options.to}")


def convert(paths: list[Path], options: argparse.Namespace) -> None:
    """Share a checkpoint's tensors out over `--parts` files, a part at a time in memory."""
    from maep.storage.tensor_files import HostBuffer, Piece, ShardedTensors

    checkpoint, parts = _whole_checkpoint(paths, options.step), 1 if options.parts is None else options.parts
    target = _target(options, "converted", checkpoint)
    saved, buffer = ShardedTensors(checkpoint), HostBuffer()
    tensors = len(list(saved.names()))
    if not 1 <= parts <= tensors:
        fail(f"--parts {parts}: expected a number from 1 to {tensors}, the checkpoint's tensors")
    with atomic_directory(target, CheckpointManifest.read(checkpoint / MANIFEST)) as temporary:
        for part, names in enumerate(_shares(saved, parts)):
            buffer.fill([Piece(name, saved.tensor(name), saved.shape(name)) for name in names])
            buffer.write(temporary / f"rank-{part:04d}-of-{parts:04d}.safetensors")
    say(f"converted {checkpoint} to {target}, {parts} parts")


def _shares(saved: "ShardedTensors", parts: int) -> list[list[str]]:
    """Names for each part, so that the parts are about the same size."""
    loads, shares = [0] * parts, [list[str]() for _ in range(parts)]
    for name in saved.names():
        least = loads.index(min(loads))
        loads[least] += math.prod(saved.shape(name))
        shares[least].append(name)
    return shares


IMPORT = "import"  # takes a file, the others take checkpoints
# The options that each action heeds; one that would be passed over is a mistake.
HEEDED: dict[str, set[str]] = {
    "list": set(), "verify": {"step"}, "export": {"step", "to"}, "convert": {"step", "to", "parts"},
    IMPORT: {"to", "kind"},
}  # fmt: skip
ACTIONS: dict[str, Callable[[list[Path], argparse.Namespace], None]] = {
    "list": show,
    "verify": verify,
    "export": export,
    "convert": convert,
}
