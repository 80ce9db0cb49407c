"""Where the ranks of a job meet: by the first node's name, or by its address where that name is Slurm's alone."""

import pytest

from maep.launch.rank import meeting_point as module
from maep.launch.rank.environment import NODE_ADDRESS
from maep.launch.rank.meeting_point import meeting_point
from maep.runtime.errors import UserError

UNKNOWN = "name-of-slurm-alone.invalid"


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that nobody knows are asked for once."""
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.delenv(NODE_ADDRESS, raising=False)


@pytest.mark.parametrize(("name", "address", "wanted"), [
    ("localhost", "127.0.0.9", "localhost"), (UNKNOWN, "127.0.0.9", "127.0.0.9"), (UNKNOWN, "localhost", "localhost"),
])  # fmt: skip
def test_a_name_that_is_known_comes_first(
    name: str, address: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that of a faster network; what Slurm itself uses is the second choice."""
    monkeypatch.setenv(NODE_ADDRESS, address)
    assert meeting_point([name, "n2"]) == wanted


def test_one_node_needs_no_network() -> None:
    """Its ranks meet on it, whatever it is called; unknown names are not waited for."""
    assert meeting_point([UNKNOWN]) == "127.0.0.1"


@pytest.mark.parametrize("address", ["", UNKNOWN, "name with blanks", "x" * 300])
def test_a_node_that_nobody_knows_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and with what to do, where all ranks would wait for the time to join."""
    monkeypatch.setenv(NODE_ADDRESS, address)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    with pytest.raises(UserError, match=f"^node {UNKNOWN}: node n7 knows no address of it .*NodeAddr in slurm.conf$"):
        meeting_point([UNKNOWN, "n2"])
