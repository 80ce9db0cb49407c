"""What ends a command early is one line, whatever raised it."""

import pytest

from maep.runtime.errors import exit_code


def test_a_full_disk_that_names_no_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As writing into an open file raises it: no traceback, and not the code of a crash."""

    def command() -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    assert exit_code(command) == 2
    assert capsys.readouterr().err == "error: No space left on device: make room, and the same command goes on\n"
