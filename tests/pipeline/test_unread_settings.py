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
    """Points of a sweep share it."""
    for seed in range(2):
        say_unread(load_settings("digits", ["robust.overfit_drop=11", f"run.seed={seed}"]))
    assert capsys.readouterr().out.count("robust.overfit_drop: without effect") == 1
