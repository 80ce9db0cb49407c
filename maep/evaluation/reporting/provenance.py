"""environment.json: what a run was made with."""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from maep.runtime.openmp import openmp_variables
from maep.runtime.text import shown
from maep.runtime.version import __version__
from maep.storage.documents import Document

ENVIRONMENT = "environment.json"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "peft",
    "deepspeed",
    "accelerate",
    "webdataset",
    "pyautoattack",
    "torchmetrics",
    "submitit",
    "omegaconf",
)
REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Environment(Document):
    """Everything about machine and software that a reader of the results may ask for; no host name.

    command: as it was typed, with secrets masked. commit, dirty: of the checkout, and whether files differ from it;
    None where it is none. date: UTC, ISO 8601. versions: of Python, of this program, and of what it stands on; None
    where it is not installed. openmp: the variables by which the user or a launcher told threads how to work.
    """

    command: list[str]
    commit: str | None
    dirty: bool | None
    date: str
    device: str
    threads: int
    platform: str
    versions: Mapping[str, str | None]
    openmp: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def current(cls, command: list[str], device: str = "auto", threads: int | None = None) -> Self:
        """Of this process. command: sys.argv. device, threads: as `compute.device` and `compute.threads` are set, since
        the computing may begin later.
        """
        import torch

        commit, dirty = git_state(REPOSITORY)
        programs = {"python": platform.python_version(), "maep": __version__}
        return cls(
            command=[shown(word) for word in as_typed(command)],
            commit=commit,
            dirty=dirty,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            device=device_name(device),
            threads=threads or torch.get_num_threads(),
            platform=f"{platform.system()} {platform.machine()}",
            versions=programs | {name: _version(name) for name in PACKAGES},
            openmp=openmp_variables(),
        )


def write_environment(directory: Path, command: list[str], device: str = "auto", threads: int | None = None) -> None:
    """Commit `directory`/environment.json: command, versions, git commit, device, threads and date."""
    Environment.current(command, device, threads).write(directory / ENVIRONMENT)


def environment(command: list[str], device: str = "auto") -> dict[str, Any]:
    """The environment of this process as an entry of a report. command: sys.argv. device: as `compute.device`."""
    return asdict(Environment.current(command, device))


def as_typed(command: list[str]) -> list[str]:
    """sys.argv as a user typed it: Python puts a module's whole path there for `-m`, which says nothing elsewhere."""
    program = Path(command[0])
    if program.name == "__main__.py":
        return ["-m", program.parent.name, *command[1:]]
    if program.name == "maep":  # the installed command, wherever its environment lies
        return ["maep", *command[1:]]
    return [str(program.relative_to(REPOSITORY)) if program.is_relative_to(REPOSITORY) else command[0], *command[1:]]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(repository: Path) -> tuple[str | None, bool | None]:
    """(commit, whether files differ from it) of the checkout at `repository`; (None, None) where it is none."""
    top = _git(repository, "rev-parse", "--show-toplevel")
    commit = _git(repository, "rev-parse", "--verify", "--quiet", "HEAD")
    if top is None or commit is None or Path(top).resolve() != repository.resolve():
        return None, None
    return commit, bool(_git(repository, "status", "--porcelain"))


def _git(repository: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(repository), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: str = "auto") -> str:
    """The accelerator's name, or the processor's where there is none or `device` is cpu."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
