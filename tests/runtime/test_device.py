"""Where a process computes: devices that are missing are refused, freed memory is used again."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from maep.config.schema import ComputeSettings
from maep.purifiers.bit_depth import BitDepthPurifier, BitDepthSettings
from maep.purifiers.serialization import save_purifier
from maep.runtime.device import (
    Readback,
    fork_rng,
    has_bf16,
    own_index,
    prepare_device,
    upload,
    warn_of_slow_bf16,
)  # fmt: skip
from maep.runtime.errors import UserError
from tests.tiny import ROOT

FAULTS = """
import resource, torch
from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.config.load import load_settings
from maep.purifiers import load_purifier
from maep.runtime.device import prepare_device
{first}
for _ in range(10):  # until the heap is as large as it gets
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):  # one heap was seen to grow twice more, later than three
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(first: str) -> int:
    """Pages that a fresh process is given while it makes and frees 50 tensors of 64 MB, after that statement."""
    command = [sys.executable, "-c", FAULTS.format(first=first)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_freed_tensors_are_used_again(tmp_path: Path) -> None:
    """What has called into the library keeps the memory of a freed tensor: a tenth of the pages that others take."""
    save_purifier(BitDepthPurifier(BitDepthSettings()), tmp_path)
    unprepared = page_faults("pass")
    for first in (
        'prepare_device(load_settings(None, ["compute.device=cpu"]).compute)',
        f"load_purifier({str(tmp_path)!r})",
        "fgsm = AttackSpec('fgsm', 'Linf', 0.1, 0.1, 1, random_start=False, targeted=False)\n"
        "attack(torch.nn.Flatten().eval(), torch.rand(1, 3, 2, 2), torch.tensor([0]), fgsm, [0], seed=0)",
    ):
        assert page_faults(first) * 10 < unprepared, first


def test_threads_are_the_configured_ones() -> None:
    """compute.threads reaches torch; 0 leaves its choice."""
    before = torch.get_num_threads()
    try:
        assert prepare_device(ComputeSettings(device="cpu", threads=1)) == torch.device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    prepare_device(ComputeSettings(device="cpu"))
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_device_is_refused() -> None:
    """compute.device=cuda without a device names the setting and the choice."""
    with pytest.raises(UserError, match=r"compute\.device=cuda: no CUDA device here; choose cpu or auto"):
        prepare_device(ComputeSettings(device="cuda"))


@pytest.mark.parametrize(("place", "count", "index"), [("0", 1, 0), ("3", 8, 3), ("3", 1, 0), ("5", 4, 1)])
def test_each_rank_has_its_own_device(monkeypatch: pytest.MonkeyPatch, place: str, count: int, index: int) -> None:
    """The one of its place on the node; the only one where Slurm shows no other."""
    monkeypatch.setenv("LOCAL_RANK", place)
    assert own_index(count) == index


def test_a_place_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line that names the variable."""
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(UserError, match=r"LOCAL_RANK=first \(environment\): must be a whole number"):
        own_index(4)


@contextmanager
def four_devices() -> Iterator[mock.Mock]:
    """A machine with four CUDA devices as far as torch is asked; gives what becomes the current one."""
    precision, tf32, benchmark = (
        torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
    )  # fmt: skip
    answers = {"is_available": True, "device_count": 4, "is_initialized": True, "current_device": 2}
    patches = [mock.patch.object(torch.cuda, name, return_value=value) for name, value in answers.items()]
    for patch in patches:
        patch.start()
    try:
        with mock.patch.object(torch.cuda, "set_device") as current:
            yield current
    finally:
        for patch in patches:
            patch.stop()
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark


def test_a_ranks_device_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From `prepare_device` on, also for whatever says "cuda" alone."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    with four_devices() as current:
        assert prepare_device(ComputeSettings()) == torch.device("cuda", 2)
        current.assert_called_once_with(torch.device("cuda", 2))
        assert prepare_device(ComputeSettings(device="cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("tf32", "trains", "products", "convolutions"),
    [
        ("none", True, "highest", False), ("convolutions", True, "highest", True), ("all", True, "high", True),
        ("none", False, "highest", True), ("all", False, "highest", True),
    ],
)  # fmt: skip
def test_tf32_is_for_trainings(tf32: str, trains: bool, products: str, convolutions: bool) -> None:
    """compute.tf32 reaches both kinds of operations; attacks and verdicts have torch's defaults, also after it."""
    with four_devices():
        prepare_device(ComputeSettings(tf32="all", cudnn_benchmark=True), trains=True)
        assert torch.backends.cudnn.benchmark
        prepare_device(ComputeSettings(tf32=tf32), trains=trains)
        assert torch.get_float32_matmul_precision() == products
        assert torch.backends.cudnn.allow_tf32 == convolutions
        assert not torch.backends.cudnn.benchmark


def test_random_numbers_of_the_devices_in_use_alone_are_kept() -> None:
    """Torch alone would initialise all four. On the CPU the numbers go on as if nothing had been drawn."""
    with four_devices(), mock.patch.object(torch.random, "fork_rng") as forked:
        fork_rng(nn.Linear(2, 2))
        forked.assert_called_once_with(devices=[2])
    before = torch.random.get_rng_state()
    with fork_rng():
        torch.manual_seed(1)
        torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_uploads_arrive_where_they_are_sent() -> None:
    """On the CPU the tensor itself; on another device, here one without memory, a tensor of that device."""
    values = torch.arange(3)
    assert upload(values, torch.device("cpu")) is values
    assert upload(values, torch.device("meta")).device.type == "meta"


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_numbers_are_read_back(device: str) -> None:
    """As they were when the reading began, also over a stream beside the computation."""
    values = torch.arange(3.0, dtype=torch.float64, device=device)
    assert Readback(values).tolist() == [0.0, 1.0, 2.0]
    if device == "cuda":
        assert Readback(values * 2, torch.cuda.Stream()).tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: any bf16\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("model name\t: any bf16\nflags\t\t: fpu avx2 avx512f\n", False),
    ],
)
def test_cpus_say_whether_they_have_bf16(tmp_path: Path, text: str, expected: bool) -> None:
    """By their flags; where the system lists none, nobody knows."""
    assert has_bf16(tmp_path / "missing") is None
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bf16(tmp_path / "cpuinfo") is expected


@pytest.mark.parametrize(("known", "device", "said"), [(False, "cpu", True), (True, "cpu", False), (None, "cpu", False),
                                                       (False, "cuda", False)])  # fmt: skip
def test_slow_bf16_is_not_chosen_silently(
    capsys: pytest.CaptureFixture[str], known: bool | None, device: str, said: bool
) -> None:
    """A warning that names the setting, on a CPU that is known to have none; never for fp32."""
    with mock.patch("maep.runtime.device.has_bf16", return_value=known):
        warn_of_slow_bf16("compute.precision", "bf16", torch.device(device))
        warn_of_slow_bf16("evaluation.precision", "fp32", torch.device("cpu"))
    assert ("compute.precision=bf16: this CPU has no bf16" in capsys.readouterr().out) == said
