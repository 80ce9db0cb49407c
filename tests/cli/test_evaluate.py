"""The name under which `maep evaluate` reports a model."""

import pytest

from maep.cli.evaluate import _run_name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--model", "m:small"], ["run.name=small"]),
        (["--model", "m:small", "--name", "mine"], ["run.name=mine"]),
        (["--name=my model #1", "--model", "m:small", "--data", "d"], ["run.name=my model #1"]),
        (["--data", "d"], []),
        (["--help"], []),
    ],
)
def test_a_model_is_named(words: list[str], name: list[str]) -> None:
    """By --name, else by its function; a run.name= that is typed comes later and wins."""
    assert _run_name(words) == name
