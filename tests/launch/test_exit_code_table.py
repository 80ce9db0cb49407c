"""The table of exit codes in launch/README.md is the enum's."""

import re
import signal

from maep.runtime.exits import ExitCode
from tests.tiny import ROOT


def test_every_exit_code_is_explained() -> None:
    """One row a code, and the codes of the stop signals are those of this machine."""
    page = (ROOT / "launch" / "README.md").read_text()
    section = page.partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)] == list(ExitCode)
    assert f"{128 + signal.SIGTERM} is SIGTERM, {128 + signal.SIGUSR2} SIGUSR2" in section
