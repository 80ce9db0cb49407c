"""RobustBench's submission of a run's purifier: what is written, what it gives back, which purifiers are refused."""

import hashlib
import importlib.util
import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maep.cli.evaluate import main as evaluate
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.data.images.build import clean_split
from maep.data.shards import ShardSet, to_float
from maep.evaluation.reporting.report_document import REPORT, Report
from maep.evaluation.reporting.robustbench import FOR_THE_AUTHORS, model_info
from maep.evaluation.reporting.robustbench_submission import BOARDS, RULES, load_submission, require_rules
from maep.evaluation.stage import subjects_of
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.pipeline.execution import run_pipeline
from maep.purifiers.base import Purifier
from maep.purifiers.bit_depth import BitDepthPurifier
from maep.purifiers.mae import MAEPurifier
from maep.purifiers.median import MedianPurifier
from maep.purifiers.registry import KINDS, purifier_class
from maep.purifiers.serialization import save_purifier
from maep.purifiers.tvm import TotalVariationPurifier
from maep.runtime.errors import UserError
from tests.small import digits, train_small
from tests.tiny import Problem
from tests.training.test_robust import SMALL

ROOT = Path(__file__).resolve().parents[3]
JUDGED = [
    "data.name=cifar10", "purifier.kind=gaussian_blur", "finetune.method=none", "evaluation.images=6",
    "evaluation.adaptive_images=6", "evaluation.chunk_images=6", "evaluation.attacks=[autoattack-standard]",
    "evaluation.threat_models=[adaptive]", "evaluation.eps=[8/255]", "run.name=blurred",
]  # fmt: skip


@pytest.fixture(scope="module")
def judged(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a purifier that the rules allow, under AutoAttack, called CIFAR-10 for its leaderboard."""
    run = tmp_path_factory.mktemp("judged") / "run"
    settings = load_settings("digits", problem.arguments(run, *JUDGED)[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maep.attacks.catalog.AttackSuite.attacker", shortened)
        run_pipeline(settings, "all", lambda name, _: pytest.fail(f"{name} was launched"))
    return run


def shortened(suite: Any, model: nn.Module, **how: Any) -> Any:
    """AutoAttack of a few steps."""
    from pyautoattack import AutoAttack

    return of_few_steps(AutoAttack(model, version="standard", **how))


def of_few_steps(attacker: Any) -> Any:
    """An AutoAttack, pyautoattack's or its authors' own, with little left to do."""
    attacker.apgd.n_iter = attacker.apgd_targeted.n_iter = attacker.fab.n_iter = 2
    attacker.square.n_queries, attacker.apgd_targeted.n_target_classes, attacker.fab.n_target_classes = 10, 2, 2
    return attacker


def loaded(directory: Path) -> nn.Module:
    """What the loader that was written gives."""
    spec = importlib.util.spec_from_file_location("model", directory / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.load_model()
    return model


def test_a_submission_is_whole(judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its entry has the report's numbers and the leaderboard's fields; moved elsewhere, its loader gives the very model
    that was judged; an altered weight is named; nothing is written twice.
    """
    assert evaluate(["--robustbench", str(judged), "--to", str(tmp_path / "first")]) == 0
    assert "are to be filled in" in capsys.readouterr().out
    directory = Path(shutil.move(tmp_path / "first", tmp_path / "moved"))
    entry = json.loads((directory / "model_info" / "cifar10" / "Linf" / "blurred.json").read_text())
    [row] = Report.read(judged / REPORT).results
    assert entry["autoattack_acc"] == f"{row.robust_accuracy:.2f}"
    assert entry["clean_acc"] == f"{row.clean_accuracy:.2f}"
    assert (entry["eps"], entry["dataset"]) == ("8/255", "cifar10")
    assert all(entry[name] is None for name in FOR_THE_AUTHORS)
    model = loaded(directory)
    test, defenses = subjects_of(load_settings(str(judged / "config.yaml")))
    images, [defense] = to_float(test.batch(range(6))[0]), defenses.values()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(images), defense.purified_classifier(images))
    with pytest.raises(UserError, match="exists already"):
        evaluate(["--robustbench", str(judged), "--to", str(directory)])
    weights = directory / "classifier.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="classifier.safetensors: altered"):
        load_submission(directory)


def test_robustbench_itself_takes_it(judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own `benchmark` reads the run's images and attacks the loaded model.

    robustbench 1.1.1 wants timm==1.0.9, setuptools<80, and beside what it declares the `autoattack` of its authors.
    """
    reason = "needs robustbench, and what it imports besides: autoattack of github.com/fra31/auto-attack, pkg_resources"
    library = pytest.importorskip("robustbench.eval", reason=reason, exc_type=ImportError)
    assert evaluate(["--robustbench", str(judged), "--to", str(tmp_path / "submission")]) == 0
    test = clean_split(load_settings(str(judged / "config.yaml")), "test")
    as_cifar10(test, 6, tmp_path / "data", monkeypatch)
    official = library.AutoAttack
    monkeypatch.setattr(library, "AutoAttack", lambda model, **how: of_few_steps(official(model, **how)))
    [row] = Report.read(judged / REPORT).results
    clean, robust = library.benchmark(
        loaded(tmp_path / "submission"), n_examples=6, dataset="cifar10", threat_model="Linf", eps=8 / 255,
        batch_size=6, data_dir=str(tmp_path / "data"),
    )  # fmt: skip
    assert 100 * clean == pytest.approx(row.clean_accuracy, abs=1e-3)
    assert robust <= clean


def test_robustbench_shows_the_entry(judged: Path, tmp_path: Path) -> None:
    """Its leaderboard has the number, once the authors have filled in what only they know."""
    reason = "needs robustbench, and what it imports besides: pkg_resources"
    board = pytest.importorskip("robustbench.leaderboard.template", reason=reason, exc_type=ImportError)
    if not Path(board.__file__).with_name("leaderboard.html.j2").is_file():
        pytest.skip("needs the leaderboard's template, which is in RobustBench's repository and in no wheel of 1.1.1")
    assert evaluate(["--robustbench", str(judged), "--to", str(tmp_path / "submission")]) == 0
    entry = tmp_path / "submission" / "model_info" / "cifar10" / "Linf" / "blurred.json"
    filled = json.loads(entry.read_text()) | dict.fromkeys(FOR_THE_AUTHORS, "x")
    entry.write_text(json.dumps(filled))
    [row] = Report.read(judged / REPORT).results
    assert f"{row.robust_accuracy:.2f}" in board.generate_leaderboard("cifar10", "Linf", str(entry.parents[2]))


def as_cifar10(images: ShardSet, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the first `count` images out as the test batch of CIFAR-10, and let torchvision take their checksums for it.

    RobustBench reads CIFAR-10 from nowhere else, and fetches it where the checksums differ.
    """
    from torchvision.datasets import CIFAR10

    def put(name: str, content: dict[str, Any]) -> str:
        path = folder / CIFAR10.base_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    pixels, labels = images.batch(range(count))
    batch = {"data": pixels.reshape(count, -1).numpy(), "labels": labels.tolist()}
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", put("test_batch", batch)]])
    meta = {**CIFAR10.meta, "md5": put("batches.meta", {"label_names": list(images.classes)})}
    monkeypatch.setattr(CIFAR10, "meta", meta)


def test_what_is_missing_is_said(judged: Path, tmp_path: Path) -> None:
    """One line each, nothing written: no report, no leaderboard, no AutoAttack at its budget, options that clash."""

    def refused(*words: str) -> str:
        with pytest.raises(UserError) as error:
            evaluate(list(words))
        assert "\n" not in str(error.value)
        assert not (judged / "robustbench").exists()
        return str(error.value)

    assert "no report.json" in refused("--robustbench", str(tmp_path))
    assert "go together" in refused("--to", str(tmp_path / "x"))
    assert "go together" in refused("--robustbench", str(judged), "--model", "m:f")
    assert "evaluation.eps=[4/255]: a submission" in refused("--robustbench", str(judged), "evaluation.eps=[4/255]")
    other = Path(shutil.copytree(judged, tmp_path / "other"))
    config = (other / "config.yaml").read_text()
    assert config.count("  name: cifar10") == 1
    (other / "config.yaml").write_text(config.replace("  name: cifar10", "  name: digits"))
    assert "RobustBench has no such leaderboard; it has cifar10 Linf" in refused("--robustbench", str(other))
    (other / "config.yaml").write_text(config)
    report = json.loads((other / REPORT).read_text())
    report["results"][0]["eps"] = 4 / 255
    (other / REPORT).write_text(json.dumps(report))
    assert "has no autoattack-standard on gaussian_blur" in refused("--robustbench", str(other))
    assert BOARDS["cifar10", "Linf"] == 8 / 255


def test_what_was_judged_is_submitted(judged: Path, tmp_path: Path) -> None:
    """Neither another purifier than the one that was judged, nor numbers of other records than there are."""
    other = Path(shutil.copytree(judged, tmp_path / "other"))
    config, report = (other / "config.yaml").read_text(), json.loads((other / REPORT).read_text())
    report["results"][0]["robust_accuracy"] += 1
    (other / REPORT).write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"report.json: is of other records than there are now; run stage=report"):
        evaluate(["--robustbench", str(other)])
    (other / "config.yaml").write_text(re.sub(r"(gaussian_blur:\n  sigma: ).*", r"\g<1>0.9", config))
    with pytest.raises(UserError, match=r"gaussian_blur.sigma=0.9: .*other/purifier was saved with 0.5"):
        evaluate(["--robustbench", str(other)])
    shutil.rmtree(other / "purifier")
    stronger = load_settings("gaussian_blur/digits", ["gaussian_blur.sigma=0.9"])
    save_purifier(purifier_class("gaussian_blur").from_settings(stronger), other / "purifier")
    with pytest.raises(UserError, match=r"other: its evaluation is of another purifier, classifier or images than it"):
        evaluate(["--robustbench", str(other)])
    assert not (other / "robustbench").exists()


def test_an_entry_names_the_kind_of_purifier(judged: Path) -> None:
    """Reports know a trained purifier by its objective, which is no architecture; a stranger's has its own name."""
    report = Report.read(judged / REPORT)
    [row], [honesty] = report.results, report.honesty.values()
    for kind, purifier, named in (("maep", "robust+lora", "maep"), ("other", "Blur", "Blur"), (None, "maep", "maep")):
        changed = replace(report, results=(replace(row, kind=kind, purifier=purifier),), honesty={purifier: honesty})
        entry = model_info(changed)
        assert entry is not None
        assert entry["architecture"] == f"{row.classifier} behind {named}"


def configured(kind: type[Purifier]) -> Purifier:
    """A filter, as its configuration for the digits has it."""
    return kind.from_settings(load_settings(f"{kind.kind}/digits"))


@pytest.mark.parametrize(
    ("purifier", "rule"),
    [
        (lambda: configured(TotalVariationPurifier), 3), (lambda: configured(BitDepthPurifier), 1),
        (lambda: MAEPurifier(MaskedAutoencoder(SMALL), PurifySettings(noise=0.1)), 2),
        (lambda: MAEPurifier(MaskedAutoencoder(SMALL), PurifySettings(mask_ratio=0.5)), 2),
        (lambda: MAEPurifier(MaskedAutoencoder(SMALL), PurifySettings(passes=2)), 3),
    ],
)  # fmt: skip
def test_purifiers_that_break_a_rule(purifier: Callable[[], Purifier], rule: int) -> None:
    """By the rule's name and number."""
    made = purifier()
    with pytest.raises(UserError, match=RULES[rule].split(",")[0]):
        require_rules(made.eval(), train_small(), digits()[0][:2])


def test_purifiers_that_keep_them() -> None:
    """A median filter and a masked autoencoder without noise."""
    trained = MAEPurifier(MaskedAutoencoder(SMALL), PurifySettings())
    for made in (configured(MedianPurifier), trained):
        require_rules(made.eval(), train_small(), digits()[0][:2])


def test_every_kind_says_whether_it_is_a_loop() -> None:
    """Written down by hand, so that a new kind is thought about."""
    loops = {kind for kind in KINDS if purifier_class(kind).is_iterative}
    assert loops == LOOPS


LOOPS = {
    "adbm", "adp", "anti_adversary", "diffpure", "dram", "ebm", "flowpure", "freqpure", "gdmp", "pixeldefend",
    "scoreopt", "soap", "tvm",
}  # fmt: skip
