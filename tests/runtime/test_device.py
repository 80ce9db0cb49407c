"""Where a process computes: devices that are missing are refused, freed memory is used again."""

import subprocess
import sys

import pytest
import torch

from maep.runtime.device import prepare_device
from maep.runtime.errors import UserError
from tests.tiny import ROOT

FAULTS = """
import resource, torch
from maep.config.load import load_settings
from maep.runtime.device import prepare_device
if {prepared}:
    compute = load_settings(None, ["compute.device=cpu"]).compute
    prepare_device(compute.device, compute.threads)
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(prepared: bool) -> int:
    """Pages that a fresh process is given while it makes and frees ten tensors of 64 MB."""
    command = [sys.executable, "-c", FAULTS.format(prepared=prepared)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_freed_tensors_are_used_again() -> None:
    """A prepared process keeps the memory of a freed tensor: it takes a tenth of the pages of one that is not."""
    assert page_faults(prepared=True) * 10 < page_faults(prepared=False)


def test_threads_are_the_configured_ones() -> None:
    """compute.threads reaches torch; 0 leaves its choice."""
    before = torch.get_num_threads()
    try:
        assert prepare_device("cpu", 1) == "cpu"
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    prepare_device("cpu", 0)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_device_is_refused() -> None:
    """compute.device=cuda without a device names the setting and the choice."""
    with pytest.raises(UserError, match=r"compute\.device=cuda: no CUDA device here; choose cpu or auto"):
        prepare_device("cuda", 0)
