"""Shared fixtures. Real data is used where the shared folder beside the checkout exists."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from maep.runtime.openmp import share_cores

# Before torch reads them. Two processes with two threads each on two cores take turns at waiting for a thread that the
# other's has pushed aside: small networks take many times as long. What the tests launch inherits this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
share_cores()

import torch  # noqa: E402

from maep.config.load import load_settings  # noqa: E402
from maep.pipeline.execution import run_pipeline  # noqa: E402
from maep.runtime.torchvision_shim import declare_torchvision_operators  # noqa: E402
from maep.runtime.unwinding import SIGNALS  # noqa: E402
from tests.tiny import Problem  # noqa: E402

declare_torchvision_operators()  # some tests import peft by themselves, before anything of ours does

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the fault cases in tests/cluster."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--kills", type=int, default=20, help="how often the run of test_random_kills is killed")
    parser.addoption("--seed", type=int, help="repeat the random schedule of this seed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long fault cases out unless they are asked for."""
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A command that a test runs in this process leaves its signals as they end a process; here work goes on."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread: the nets are small, two tests run at a time, and sums do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with CIFAR-10, ImageNet samples and weights; skips, saying so, where it is missing."""
    path = Path(os.environ.get("MAEP_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (path / "cifar10.zip").is_file():
        pytest.skip(f"needs the real data of {path} (set MAEP_SHARED_DATA)")
    return path


@pytest.fixture(scope="session")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Shards, classifier and pairs, made once by the real stages."""
    base = tmp_path_factory.mktemp("problem")
    made = Problem(base / "cache", base / "prepared")
    settings = load_settings("digits", made.arguments(made.prepared)[1:])
    for stage in ("shards", "classifier", "attack"):
        run_pipeline(settings, stage, lambda name, _: pytest.fail(f"{name} was launched"))
    return made


@pytest.fixture
def run_dir(problem: Problem, tmp_path: Path) -> Path:
    """A fresh run directory in which the stages before training are recorded as finished."""
    return Path(shutil.copytree(problem.prepared, tmp_path / "run"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A stand-in for an accelerator: a device without memory, where a tensor of the host, or reading a value, raises.

    Torch has no autocast for it, so that is left out.
    """
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    return torch.device("meta")
