"""The commit protocol: a file that has its final name is whole."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from maep.storage.atomic import atomic_file, remove_temporaries, write_json


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    """An exception inside the block changes nothing under the final name."""
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_a_user_error_and_leaves_nothing(tmp_path: Path) -> None:
    """When the system refuses to write on (a file size limit), the final name never appears."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from maep.storage.atomic import atomic_file\n"
        "from maep.runtime.errors import exit_code\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def main():\n"
        "    with atomic_file(Path(sys.argv[1])) as t: t.write_bytes(b'x' * 5000)\n"
        "sys.exit(exit_code(main))\n"
    )
    target = tmp_path / "big"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{target}: cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_temporaries_of_dead_writers_are_removed(tmp_path: Path) -> None:
    """What a killed process left goes; what a living one writes stays, and what one of a host of a longer name does."""
    host = os.uname().nodename
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone, kept = tmp_path / f".tmp-a-{host}-{dead.pid}", tmp_path / f".tmp-b-{host}-{os.getppid()}"
    elsewhere, odd = tmp_path / f".tmp-c-{host}-1-{dead.pid}", tmp_path / f".tmp-d-{host}-x"
    for path in (gone, kept, elsewhere, odd):
        path.touch()
    remove_temporaries(tmp_path)
    assert not gone.exists()
    assert all(path.exists() for path in (kept, elsewhere, odd))
