"""The wheel is whole: installed in an empty environment, every command works from any directory."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from maep import __version__
from maep.__main__ import VERBS
from tests.tiny import ROOT, TINY, environment

QUICK = [
    "pretrain.steps=4", "finetune.steps=2", "evaluation.images=6", "evaluation.chunk_images=6",
    "evaluation.batch_size=6", "evaluation.adaptive_images=2", "evaluation.figure_images=2",
    "evaluation.attacks=[fgsm]", "evaluation.threat_models=[oblivious]",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that no build/ is left in the checkout."""
    base = tmp_path_factory.mktemp("wheel")
    for name in ("maep", "configs"):
        shutil.copytree(ROOT / name, base / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, base / "source")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(base), str(base / "source")]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(base.glob("*.whl"))


@dataclass(frozen=True)
class Installed:
    """A new environment with the wheel, in which the checkout cannot be imported."""

    directory: Path

    def run(self, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of its bin/, from `cwd`."""
        clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
        program, *arguments = words
        command = [str(self.directory / "bin" / program), *arguments]
        return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The dependencies are this environment's. Its .pth files, and with them an editable maep, do not count there."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    python = directory / "bin" / "python"
    # Before the dependencies can be seen: pip must not find, and remove, the maep of this environment.
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    # Elsewhere: in the checkout an editable install has left maep.egg-info, and pip takes maep for installed.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, cwd=directory.parent, env=clean)
    [packages] = directory.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(directory)


def test_wheel_holds_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module, template and configuration of the checkout, and at the top of site-packages maep alone."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"maep"}
    sources = [*(ROOT / "maep").rglob("*.py"), *(ROOT / "maep").rglob("*.html")]
    expected = {str(path.relative_to(ROOT)) for path in sources}
    expected |= {f"maep/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert expected <= names
    assert "maep/configs/cluster/default.yaml" in names


def test_it_is_the_installed_package_that_runs(installed: Installed, tmp_path: Path) -> None:
    """Not the checkout's, and with its version."""
    where = installed.run(tmp_path, "python", "-c", "import maep; print(maep.__file__)").stdout
    assert Path(where.strip()).is_relative_to(installed.directory)
    assert installed.run(tmp_path, "maep", "--version").stdout == f"maep {__version__}\n"
    usage = installed.run(tmp_path, "maep", "--help").stdout
    assert all(f"  {verb}" in usage for verb in VERBS)


def test_jobs_of_a_cluster(installed: Installed, tmp_path: Path) -> None:
    """Batch scripts on paper for a configuration inside the wheel, which run the wheel's code; nothing is written."""
    done = installed.run(tmp_path, "maep", "slurm", "--dry-run", "--nodes", "2", "cfg=imagenet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "#SBATCH --nodes=2" in done.stdout
    assert f"export PYTHONPATH={tmp_path}/runs/imagenet/code/" in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = installed.run(tmp_path, "maep", "slurm", "status", "digits")
    assert done.returncode == 2
    assert "digits: no job was submitted" in done.stderr


def test_code_of_the_wheel_is_copied_for_jobs(installed: Installed, tmp_path: Path) -> None:
    """The package with its configurations, none of its neighbours in site-packages; it runs as a copy."""
    copy_it = (
        "from pathlib import Path; from maep.launch.submission.code_snapshot import copy_code; copy_code(Path('run'))"
    )
    assert installed.run(tmp_path, "python", "-c", copy_it).returncode == 0
    [copy] = (tmp_path / "run" / "code").iterdir()
    assert {path.name for path in copy.iterdir()} == {"maep", "manifest.json"}
    assert json.loads((copy / "manifest.json").read_text())["maep"] == __version__
    load = "import maep.config.load as load; print(load.CONFIGS, load.load_settings('digits').run.name)"
    words = [str(installed.directory / "bin" / "python"), "-c", load]
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{copy}/maep/configs digits\n"


def test_digits_pipeline(installed: Installed, tmp_path: Path) -> None:
    """Shards by their own command, then the whole pipeline, from an empty directory; what it wrote has the version."""
    settings = ["cfg=digits", *TINY, *QUICK]
    done = installed.run(tmp_path, "maep", "shards", "build", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    shards = done.stdout.splitlines()[-1].removeprefix("clean shards: ")
    assert installed.run(tmp_path, "maep", "shards", "verify", shards).returncode == 0
    done = installed.run(tmp_path, "maep", "run", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "digits"
    assert json.loads((run / "report.json").read_text())["environment"]["versions"]["maep"] == __version__
    assert json.loads((run / "environment.json").read_text())["versions"]["maep"] == __version__
    assert (run / "report.html").is_file()
    [newest, *_] = sorted((run / "checkpoints").glob("step-*/manifest.json"), reverse=True)
    assert json.loads(newest.read_text())["maep"] == __version__
