"""Loader processes: the fork server that starts them holds what they all import."""

import subprocess
import sys

from tests.tiny import ROOT

# In a process of its own: this one may have a fork server already. A worker's parent is the server.
PROGRAM = """
from pathlib import Path
from torch.utils.data import DataLoader
from maep.data.loader_processes import loader_processes

batches = iter(DataLoader(range(2), **loader_processes(1)))
assert int(next(batches)) == 0
worker = batches._workers[0].pid
server = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
libraries = Path(f"/proc/{server}/maps").read_text()
batches._shutdown_workers()  # they outlive signals
print("libtorch" in libraries)
"""


def test_more_of_them_than_cores_are_said_once() -> None:
    """In one line, where torch warns of each loader, twice."""
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from torch.utils.data import DataLoader; from maep.data.loader_processes import loader_processes\n"
        "for _ in range(2):\n"
        "    batches = iter(DataLoader(range(2), **loader_processes(2)))\n"
        "    assert list(map(int, batches)) == [0, 1]"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    said = "data.workers=2: more than this task has cores (1), so loading and computing share"
    assert (result.stdout, result.stderr) == (f"{said}\n", "")


def test_torch_is_imported_once_for_all_of_them() -> None:
    """By the server, before it forks: its memory maps torch's library."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "True\n", result.stderr
