"""Tensors over several files: pieces make the whole again, as any safetensors reader sees them, or are refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maep.runtime.errors import UserError
from maep.storage.atomic import sha256_file
from maep.storage.manifests import FileEntry
from maep.storage.tensor_files import HostBuffer, Piece, ShardedTensors


def write(directory: Path, *parts: list[Piece]) -> None:
    """One file a part, through one buffer, as in training."""
    directory.mkdir(exist_ok=True)
    buffer = HostBuffer()
    for rank, pieces in enumerate(parts):
        path = directory / f"rank-{rank:04d}-of-{len(parts):04d}.safetensors"
        buffer.fill(pieces)
        entry = buffer.write(path)
        assert entry == FileEntry(path.stat().st_size, sha256_file(path))


def test_pieces_make_the_whole(tmp_path: Path) -> None:
    """A tensor cut unevenly over three files, a whole one and a number come back bit for bit, in any order of files."""
    cut, whole = torch.randn(5, 7), torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    flat, step = cut.flatten(), torch.tensor(3.0)
    pieces = [Piece("a", flat[start:end], (5, 7), start) for start, end in ((0, 4), (4, 30), (30, 35))]
    write(tmp_path, [pieces[2], Piece("b", whole, (2, 3))], [pieces[0]], [pieces[1], Piece("s", step, ())])
    saved = ShardedTensors(tmp_path)
    assert saved.names() == ["a", "b", "s"]
    assert torch.equal(saved.tensor("a"), cut)
    assert torch.equal(saved.tensor("b"), whole)
    assert torch.equal(saved.tensor("s"), step)
    assert [saved.shape(name) for name in "abs"] == [(5, 7), (2, 3), ()]
    assert set(load_file(tmp_path / "rank-0000-of-0003.safetensors")) == {"a@30", "b"}


@pytest.mark.parametrize("left", [(0, 1), (1, 2), (0, 2)])
def test_missing_piece_is_refused(tmp_path: Path, left: tuple[int, int]) -> None:
    """With any one of three pieces gone the tensor is not read; a name that is nowhere is named."""
    pieces = [Piece("a", torch.ones(2), (6,), start) for start in (0, 2, 4)]
    write(tmp_path, *([pieces[number]] for number in left))
    with pytest.raises(UserError, match="pieces of a are missing"):
        ShardedTensors(tmp_path).tensor("a")
    with pytest.raises(UserError, match="lacks b"):
        ShardedTensors(tmp_path).tensor("b")


@pytest.mark.parametrize("other", [0.0, 1.0])
@pytest.mark.parametrize("start", [None, 0, 2])
def test_a_second_copy_is_refused(tmp_path: Path, start: int | None, other: float) -> None:
    """Of a tensor or of a piece, in two files, with the same values or others: which one is right is not guessed."""
    values, copy = torch.ones(4), torch.full((4,), other)
    cut = [(None, values)] if start is None else [(0, values[:2]), (2, values[2:])]
    pieces = [Piece("a", part, (4,), first or 0) for first, part in cut]
    again = Piece("a", copy if start is None else copy[:2], (4,), start or 0)
    write(tmp_path, pieces, [Piece("b", values, (4,)), again])
    with pytest.raises(UserError, match=r"rank-0001-of-0002\.safetensors: .*a from element \d on is in another file"):
        ShardedTensors(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Pieces of a whole tensor that is there too, and of one that has another shape in another file."""
    write(tmp_path / "both", [Piece("a", torch.ones(4), (4,))], [Piece("a", torch.ones(2), (4,), 2)])
    with pytest.raises(UserError, match="pieces of a are missing, or overlap"):
        ShardedTensors(tmp_path / "both").tensor("a")
    write(tmp_path / "shapes", [Piece("a", torch.ones(2), (4,))], [Piece("a", torch.ones(2), (2, 2), 2)])
    with pytest.raises(UserError, match=r"rank-0001.*a has shape \(2, 2\), in another file \(4,\)"):
        ShardedTensors(tmp_path / "shapes")


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    """A file that is no safetensors is named."""
    (tmp_path / "rank-0000-of-0001.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"rank-0000-of-0001\.safetensors: cannot be read as weights"):
        ShardedTensors(tmp_path)


WRITE = """
import resource, sys, torch
from pathlib import Path
from maep.runtime.errors import exit_code
from maep.storage.atomic import atomic_file
from maep.storage.tensor_files import save_file
def write():
    with atomic_file(Path(sys.argv[1])) as temporary:
        save_file({"a": torch.zeros(10_000)}, temporary)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(exit_code(write))
"""


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    """Inside of safetensors' writer too; nothing is left."""
    command = [sys.executable, "-c", WRITE, str(tmp_path / "w.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'w.safetensors'}: cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"a@0": 4}, {"a": "x"}),
        ({"a@0": 4}, {"a": "-4"}),
        ({"a@0": 4}, {"a": "9" * 40}),
        ({"a@0": 4}, {}),
        ({"a@zero": 4}, {"a": "8"}),
        ({"a@-1": 4}, {"a": "8"}),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, tensors: dict[str, int], metadata: dict[str, str]) -> None:
    """By the file."""
    save_file({name: torch.ones(size) for name, size in tensors.items()}, tmp_path / "rank-0.safetensors", metadata)
    with pytest.raises(UserError, match=r"rank-0\.safetensors: cannot be read as weights"):
        ShardedTensors(tmp_path)
