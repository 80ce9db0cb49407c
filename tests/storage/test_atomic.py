"""The commit protocol: a file that has its final name is whole."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from maep.runtime.errors import UserError
from maep.runtime.process_identity import this_machine
from maep.storage.atomic import atomic_file, remove_temporaries, require_writable, temporary_name, write_json


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
    """What a killed process of this machine left goes; what a living one writes stays, and what is of elsewhere."""
    code = "import sys; from pathlib import Path; from maep.storage.atomic import temporary_name\n"
    code += "temporary_name(Path(sys.argv[1])).touch(); input()"
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdin=subprocess.PIPE)
    while not (written := list(tmp_path.iterdir())):
        assert writer.poll() is None
    machine = this_machine()
    elsewhere = tmp_path / written[0].name.replace(machine, f"{int(machine, 16) ^ 1:08x}")
    elsewhere.touch()
    temporary_name(tmp_path / "b").touch()
    remove_temporaries(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    writer.kill()
    writer.communicate()
    remove_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, temporary_name(tmp_path / "b")])


@pytest.mark.parametrize("name", [".tmp-a-999-0123abcd-5", f".tmp-a-{os.uname().nodename}-999"])
def test_temporaries_of_elsewhere_go_when_they_are_old(tmp_path: Path, name: str) -> None:
    """After days in which nobody has written to them, or within them; also those named by an earlier version."""
    old, others = tmp_path / name, tmp_path / f"{name}x"
    for path in (old, others):
        path.mkdir()
        (path / "part").touch()
        os.utime(path, (1, 1))
    remove_temporaries(tmp_path)
    assert old.exists()
    for path in (old, others):
        os.utime(path / "part", (1, 1))
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [others]


def test_a_file_may_have_the_longest_of_names(tmp_path: Path) -> None:
    """The name under which it is written first is no longer than that."""
    path = tmp_path / ("\u00e9" * 125 + ".json")
    write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


def test_whether_a_directory_can_be_written_is_tried(tmp_path: Path) -> None:
    """Of one in /proc root's rights say that it can, and it cannot; where it can, nothing is left."""
    (tmp_path / "file").touch()
    for directory in (Path("/proc/there"), Path("/proc"), tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match=rf"run\.dir={directory}: cannot be written: in .* nothing can be made: ."):
            require_writable(directory, "run.dir")
    require_writable(tmp_path, "run.dir")
    require_writable(tmp_path / "a/b/c", "run.dir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
