"""The namespaces in which the cluster's nodes live."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from tests.cluster.namespace import Namespace
from tests.cluster.packages import why_not

LAST_ID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[tuple[Namespace, Namespace]]:
    """One namespace within another, begun by a process whose id is lower than any of the outer one's."""
    if reason := why_not():
        pytest.skip(reason)
    outer, inner = Namespace(tmp_path / "outer"), Namespace(tmp_path / "inner")
    with TemporaryFile() as log:
        running = [outer.start("sleep 60", log=log)]
        LAST_ID.write_text("300")  # the ids begin again, as after the highest
        running.append(inner.start("sleep 60", parent=outer, log=log))
        try:
            yield outer, inner
        finally:
            inner.kill()
            outer.kill()
            for process in running:
                process.wait()


def test_commands_enter_the_namespace_that_they_are_given(namespaces: tuple[Namespace, Namespace]) -> None:
    """The lowest id may be that of the `unshare` of the inner one, which is in the outer one's PID namespace alone."""
    outer, inner = namespaces
    lowest = min(outer.processes())
    assert mounts_of(lowest) == mounts_of(inner.init()) != mounts_of(outer.init())
    assert str(outer.init()) in outer.inside(["true"])


def mounts_of(process: int) -> Path:
    """The mount namespace of a process."""
    return Path(f"/proc/{process}/ns/mnt").readlink()
