"""OpenMP's waiting is shortened before torch loads, unless the user has said how threads wait."""

import os
import subprocess
import sys

import pytest
import torch

from maep.runtime.openmp import openmp_variables, share_cores
from tests.tiny import ROOT

SEEN = """
import os, sys
from maep import __main__
assert "torch" not in sys.modules
__main__.run = lambda words: print(os.environ.get("GOMP_SPINCOUNT", "unset"), "torch" in sys.modules)
__main__.command("run")
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_what_the_user_says_comes_first(given: dict[str, str], expected: dict[str, str]) -> None:
    """Set where nothing is said, left alone where something is; and told as it is."""
    environment = {**given, "HOME": "/"}
    share_cores(environment)
    assert openmp_variables(environment) == expected


@pytest.mark.parametrize(("policy", "seen"), [(None, "1000"), ("active", "unset")])
def test_every_command_sets_it_before_torch(policy: str | None, seen: str) -> None:
    """In a fresh process, by the entry point that all commands and scripts share."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    done = subprocess.run(
        [sys.executable, "-c", SEEN], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [seen, "False"]


def test_a_process_of_tests_has_one_thread() -> None:
    """Whether or not the shell has said so: two of them on two cores would otherwise wait for each other's threads."""
    assert openmp_variables() == {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
    assert torch.get_num_threads() == 1
