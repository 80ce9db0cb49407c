"""Where it installs: every Python that its dependencies support, and bounds that say why they are there."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text()
OLDEST = (3, 11)
COMPILE = (
    "import pathlib, sys\n"
    "for name in sys.argv[1:]:\n"
    "    for path in pathlib.Path(name).rglob('*.py'):\n"
    "        compile(path.read_text(encoding='utf-8'), str(path), 'exec')\n"
)


def interpreters() -> list[Path]:
    """Those of this machine that run; a version manager puts names on the path that do not."""
    return [path for path in sorted(set(_named())) if _runs(path)]


def _runs(path: Path) -> bool:
    return subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL, check=False).returncode == 0


def _named() -> Iterator[Path]:
    """On the path, and under a version manager."""
    names = [f"python3.{minor}" for minor in range(OLDEST[1], 30)]
    yield from (Path(path) for name in names if (path := shutil.which(name)))
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in sorted(root.glob("3.*/bin/python")):
        version = tuple(int(part) for part in re.findall(r"\d+", path.parents[1].name)[:2])
        if version >= OLDEST:
            yield path


@pytest.mark.parametrize("interpreter", interpreters(), ids=str)
def test_every_python_of_this_machine_compiles_it(interpreter: Path) -> None:
    """Without a warning, from the oldest on."""
    folders = [str(ROOT / name) for name in ("maep", "launch", "shards")]
    done = subprocess.run(
        [interpreter, "-W", "error", "-c", COMPILE, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_python_is_too_new() -> None:
    """Debian 12 has 3.11, Debian 13 has 3.13."""
    assert tomllib.loads(PROJECT)["project"]["requires-python"] == ">=3.11"


def test_a_torch_that_is_there_is_used() -> None:
    """From 2.11 to the newest that the suite has run with."""
    dependencies = tomllib.loads(PROJECT)["project"]["dependencies"]
    assert {"torch>=2.11,<2.14", "torchvision>=0.26,<0.29"} <= set(dependencies)


def test_an_upper_bound_has_its_reason_beside_it() -> None:
    """Each line with `<` or `==`."""
    listed = PROJECT.partition("dependencies = [")[2].partition("]\n\n")[0]
    bounded = [line for line in listed.splitlines() if re.search(r"<|==", line.partition("#")[0])]
    assert bounded
    for line in bounded:
        assert len(line.partition("#")[2].split()) > 3, line
