"""Messages call commands as the person who reads them started this one."""

import sys

import pytest

from maep.launch.command_name import command_name, same_command


@pytest.mark.parametrize(
    ("program", "slurm", "again"),
    [
        ("launch/slurm.py", "launch/slurm.py", ["python", "launch/slurm.py", "cfg=digits"]),
        ("/home/me/maep/launch/local.py", "launch/slurm.py", ["python", "/home/me/maep/launch/local.py", "cfg=digits"]),
        ("/home/me/.venv/bin/maep", "maep slurm", ["maep", "cfg=digits"]),
        ("/home/me/maep/__main__.py", "maep slurm", ["python", "-m", "maep", "cfg=digits"]),
    ],
)
def test_names(monkeypatch: pytest.MonkeyPatch, program: str, slurm: str, again: list[str]) -> None:
    """A script of the checkout, the installed command, and `python -m maep`."""
    monkeypatch.setattr(sys, "argv", [program, "cfg=digits"])
    assert command_name("slurm") == slurm
    assert same_command() == again
