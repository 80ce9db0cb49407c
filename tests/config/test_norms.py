"""A budget is one of its norm: another norm without another budget is refused, by whichever way it comes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maep.__main__ import run
from maep.config.implementations import NORMS
from maep.config.load import load_settings
from maep.config.norms import USUAL
from maep.evaluation import evaluate
from maep.runtime.errors import UserError

L2 = ["evaluation.norm=L2", "evaluation.eps=[0.5]"]
ATTACK = ["attack.norm=L2", "attack.eps=0.5"]
CLASSIFIER = ["classifier.train_norm=L2", "classifier.training=pgd_at"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluation.norm=L2"], "evaluation.eps is still one of Linf; give it too, such as evaluation.eps=[0.5]"),
        (["attack.norm=L2"], "attack.eps is still one of Linf; give it too, such as attack.eps=0.5"),
        (ATTACK, "attack.step is still one of Linf; give it too, such as attack.step=0.125"),
        ([*L2, "attack.norm=L2", "attack.step=1"], "attack.eps is still one of Linf"),
        (CLASSIFIER, "classifier.train_eps is still one of Linf; give it too, such as classifier.train_eps=0.5"),
        ([*CLASSIFIER, "classifier.train_eps=0.5"], "classifier.train_step is still one of Linf"),
        (["classifier.train_norm=L2", "classifier.training=trades"], "classifier.train_eps is still one of Linf"),
        (["evaluation.norm=L2", "attack.eps=0.5", "certify.attack_radii=[0.5]"], "evaluation.eps is still one of Linf"),
    ],
)
@pytest.mark.parametrize("cfg", [None, "digits", "cifar10"])
def test_another_norm_needs_its_own_sizes(cfg: str | None, words: list[str], message: str) -> None:
    """Every size in it, also where the configuration wrote the old one down; the message names a usual one."""
    with pytest.raises(UserError, match=re.escape(message)):
        load_settings(cfg, words)


@pytest.mark.parametrize(
    "words",
    [
        L2,
        L2[::-1],
        ["evaluation.norm=L2", "evaluation.eps=[8/255]"],
        [*ATTACK, "attack.step=0.1"],
        [*ATTACK, "attack.method=fgsm"],
        [*CLASSIFIER, "classifier.train_eps=1.5", "classifier.train_step=2"],
        ["classifier.train_norm=L2", "classifier.training=trades_awp", "classifier.train_eps=0.5"],
        ["classifier.train_norm=L2", "classifier.training=standard"],
        ["evaluation.norm=Linf"],
        ["evaluation.norm=L2", "evaluation.norm=Linf"],
    ],
    ids=str,
)
def test_what_is_given_with_it_is_taken(words: list[str]) -> None:
    """In any order, and as it is, also above 1; a method of one step has no other size than its budget, nor has TRADES
    in L2, and none matters that nothing reads."""
    load_settings("digits", words)


def test_layers_are_told_apart(tmp_path: Path) -> None:
    """A size is one of the norm of its own layer: a file's of L2 does not hold for another norm above it."""
    file = tmp_path / "l2.yaml"
    file.write_text("evaluation: {norm: L2, eps: [0.5]}\n")
    assert load_settings(str(file)).evaluation.eps == [0.5]
    assert load_settings(str(file), ["evaluation.norm=L2"]).evaluation.eps == [0.5]
    assert load_settings(str(file), ["evaluation.eps=[1.0]"]).evaluation.eps == [1.0]
    with pytest.raises(UserError, match=re.escape("evaluation.eps is still one of L2; give it too, such as "
                                                  "evaluation.eps=[8/255]")):  # fmt: skip
        load_settings(str(file), ["evaluation.norm=Linf"])
    with pytest.raises(UserError, match="still one of Linf"):
        load_settings(None, [], [("a sweep", {"evaluation.eps": [0.1]}), ("its axis", {"evaluation.norm": "L2"})])


def test_every_usual_size_is_one_of_its_norm() -> None:
    """What a message recommends is taken."""
    for norm in NORMS:
        words = [f"{key}={sizes[norm]}" for key, sizes in USUAL.items()]
        norms = [f"attack.norm={norm}", f"evaluation.norm={norm}", f"classifier.train_norm={norm}"]
        load_settings(None, [*norms, "classifier.training=pgd_at", *words])


@pytest.mark.parametrize(
    "command",
    [
        ["run", "cfg=digits", "evaluation.norm=L2"],
        ["run", "cfg=ablation/table15", "--scale", "cpu", "evaluation.norm=L2", "data.root=."],
        ["shards", "attack", "cfg=digits", "attack.norm=L2"],
        ["certify", "cfg=certified/digits", "evaluation.norm=L2"],
        ["evaluate", "--model", "torch.nn:Flatten", "--data", ".", "evaluation.norm=L2"],
    ],
    ids=" ".join,
)
def test_every_command_refuses(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is still one of Linf"):
        run(command)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{"norm": "L2"}, {"norm": "L2", "images": 3}])
def test_the_library_refuses(given: dict[str, Any], tmp_path: Path) -> None:
    """`evaluate(norm=…)` as the command line."""
    with pytest.raises(UserError, match=r"evaluation\.eps is still one of Linf"):
        evaluate(nn.Flatten(), (torch.rand(4, 3, 2, 2), torch.arange(4)), run_dir=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
