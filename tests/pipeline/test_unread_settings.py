"""Settings that change nothing are said, and refused nowhere."""

import pytest

from maep.config.load import load_settings
from maep.pipeline.unread_settings import say_unread, unread_settings


@pytest.mark.parametrize(
    ("word", "further", "deciding"),
    [
        ("robust.check_every=7", [], ["attack.online=true", "pretrain.attacked=whole"]),
        ("pretrain.epochs=9", [], ["pretrain.steps=null"]),
        ("finetune.epochs=9", ["finetune.steps=5"], ["finetune.steps=null"]),
        ("data.root=/images", ["data.shards=/shards"], ["data.shards=null"]),
        ("attack.shards=/shards", ["attack.online=true"], ["attack.online=false"]),
    ],
)
def test_what_is_given_and_not_read_is_said(word: str, further: list[str], deciding: list[str]) -> None:
    """Until what decides in its place is set otherwise; of what nobody gave nothing is said."""
    words = ["pretrain.mask_ratio=0", "data.format=auto", *further]
    (line,) = unread_settings(load_settings("digits", [*words, word]))
    assert line.startswith(
        f"{word}: without effect: " if "robust" not in word else "robust.check_every: without effect"
    )
    assert not list(unread_settings(load_settings("digits", [*words, word, *deciding])))
    assert not list(unread_settings(load_settings("digits", words)))


def test_a_line_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Of several settings in one line, too."""
    words = ["robust.check_every=7", "robust.overfit_drop=11"]
    say_unread(load_settings("digits", words), words)
    assert capsys.readouterr().out.count("robust.overfit_drop: without effect") == 1


@pytest.mark.parametrize("name", ["cifar10_cpu", "certified/cifar10_cpu", "digits"])
def test_what_only_a_configuration_brings_is_not_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as the epochs of the one below, whose steps replace them: who runs it gave neither."""
    words = ["data.root=/images", "run.seed=1"]
    say_unread(load_settings(name, words), words)
    assert capsys.readouterr().out == ""
