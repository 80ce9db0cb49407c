"""The block cache: bounded for any number of processes, least recently used out first, never a wrong byte."""

import fcntl
import os
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from maep.runtime.errors import UserError
from maep.storage.block_cache import BlockCache


def block(number: int) -> bytes:
    return np.random.default_rng(number).bytes(1000)


def held(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if not path.name.startswith("."))


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    """Eleven blocks where ten fit: the one that was read again stays, the oldest others go."""
    cache = BlockCache(tmp_path, 10 * 1004)
    for number in range(10):
        cache.put(f"b{number}", block(number))
        os.utime(tmp_path / f"b{number}", (number, number))
    assert cache.get("b0") == block(0)
    cache.put("b10", block(10))
    assert held(tmp_path) <= 10 * 1004
    assert cache.get("b0") == block(0)
    assert cache.get("b10") == block(10)
    assert cache.get("b1") is None


def test_a_damaged_block_is_not_given_out(tmp_path: Path) -> None:
    """A flipped bit or a cut in a stored block makes it missing."""
    cache = BlockCache(tmp_path, 10**6)
    for damaged in (block(1)[:-1], bytes(1000)):
        cache.put("a", block(1))
        (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:4] + damaged)
        assert cache.get("a") is None
        assert not (tmp_path / "a").exists()


def use(directory: Path, seed: int, limit: int) -> None:
    cache = BlockCache(directory, limit)
    for number in np.random.default_rng(seed).integers(0, 60, 400).tolist():
        content = cache.get(f"b{number}")
        if content is None:
            cache.put(f"b{number}", block(number))
        else:
            assert content == block(number)
        with (directory / ".total").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert held(directory) <= limit


def test_processes_share_one_bound(tmp_path: Path) -> None:
    """Four processes at once on a cache for a third of the blocks: never above its limit."""
    fork = get_context("fork")
    processes = [fork.Process(target=use, args=(tmp_path, seed, 20 * 1004)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert held(tmp_path) > 10 * 1004


def test_a_lost_total_is_counted_again(tmp_path: Path) -> None:
    """A process killed while it wrote the total leaves it empty; the bound holds all the same."""
    cache = BlockCache(tmp_path, 10 * 1004)
    for number in range(10):
        cache.put(f"b{number}", block(number))
    (tmp_path / ".total").write_text("")
    cache.put("more", block(10))
    assert held(tmp_path) <= 10 * 1004


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """One line that names the setting and the directory."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir=.*file/blocks: cannot be written"):
        BlockCache(tmp_path / "file" / "blocks", 10**6)


def test_a_damaged_total_is_counted_anew(tmp_path: Path) -> None:
    """As a full disk leaves it: what is there is looked at."""
    cache = BlockCache(tmp_path, 10 * 1004)
    cache.put("a", block(1))
    for text in ("\0\0\0\0", "-1", "x", "9" * 5000):
        (tmp_path / ".total").write_text(text)
        cache.put("b", block(2))
        assert int((tmp_path / ".total").read_text()) <= 4 * 1004
        assert cache.get("b") == block(2)


AS_NOBODY = """\
import os, sys
from pathlib import Path
from maep.runtime.errors import exit_code
from maep.storage.block_cache import BlockCache
cache = BlockCache(Path(sys.argv[1]), 10**6)
os.setuid(65534)
sys.exit(exit_code(lambda: print(cache.get(sys.argv[2]))))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as somebody else")
def test_a_cache_that_somebody_else_filled_is_read() -> None:
    """Though its blocks cannot be marked as used; one that cannot be read is named with the setting."""
    with tempfile.TemporaryDirectory() as shared:
        cache = BlockCache(Path(shared), 10**6)
        cache.put("readable", b"content")
        cache.put("hidden", b"content")
        os.chmod(shared, 0o755)
        (Path(shared) / "readable").chmod(0o644)
        (Path(shared) / "hidden").chmod(0o600)
        read, hidden = (
            subprocess.run([sys.executable, "-c", AS_NOBODY, shared, name], capture_output=True, text=True, check=False)
            for name in ("readable", "hidden")
        )
    assert read.stdout == "b'content'\n", read.stderr
    assert (hidden.returncode, hidden.stderr.count("\n")) == (2, 1)
    assert f"data.cache_dir={shared}: hidden cannot be read: Permission denied" in hidden.stderr
