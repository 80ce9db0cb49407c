"""Settings that change nothing are said, and refused nowhere."""

from pathlib import Path

import pytest

from maep.ablation.study import prepare
from maep.ablation.study import say_unread as say_unread_of_sweep
from maep.config.load import leaves, load_settings, to_yaml, writings
from maep.config.schema import Settings
from maep.pipeline.unread_settings import say_unread, unread_settings

DRAM = ["purifier.kind=dram", "objective.name=mae", "pretrain.mask_until=1", "finetune.method=none"]
WHOLE = ["attack.online=true", "pretrain.attacked=whole", "robust.late_steps=0"]
WORDS = ["run.seed=3", "evaluation.draws=9"]  # which are read


def said(capsys: pytest.CaptureFixture[str], cfg: str, words: list[str]) -> list[str]:
    """The lines that a command with this configuration and these words says."""
    capsys.readouterr()
    say_unread(load_settings(cfg, words), cfg, words)
    return capsys.readouterr().out.splitlines()


def said_of_sweep(capsys: pytest.CaptureFixture[str], cfg: str, scale: str | None, words: list[str]) -> list[str]:
    """The same of a sweep."""
    capsys.readouterr()
    say_unread_of_sweep(prepare(cfg, scale, words), words)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("word", "further", "deciding"),
    [
        ("robust.check_every=7", [], ["attack.online=true", "pretrain.attacked=whole"]),
        ("pretrain.epochs=9", [], ["pretrain.steps=null"]),
        ("finetune.epochs=9", ["finetune.steps=5"], ["finetune.steps=null"]),
        ("data.root=/images", ["data.shards=/shards"], ["data.shards=null"]),
        ("data.train_limit=9", ["data.shards=/shards"], ["data.shards=null"]),
        ("classifier.lr=0.5", ["classifier.weights=/w"], ["classifier.weights=null"]),
        (
            "classifier.lr=0.5",
            ["classifier.weights=/w"],
            ["robust.classifiers=[cifar_resnet14]", "attack.online=true", "pretrain.attacked=whole"],
        ),
        ("classifier.trades_weight=2", ["classifier.training=pgd_at"], ["classifier.training=trades"]),
        (
            "classifier.trades_weight=2",
            ["classifier.training=trades", "classifier.weights=/w"],
            ["classifier.weights=~"],
        ),
        ("classifier.train_eps=0.1", ["classifier.training=standard"], ["classifier.training=dkl"]),
        ("classifier.train_steps=7", ["classifier.training=dkl"], ["classifier.training=trades_awp"]),
        (
            "classifier.train_norm=L2",
            ["classifier.training=standard"],
            ["classifier.training=pgd_at", "classifier.train_eps=0.5", "classifier.train_step=0.1"],
        ),
        (
            "classifier.train_step=0.1",
            ["classifier.training=trades", "classifier.train_norm=L2", "classifier.train_eps=0.5"],
            ["classifier.training=awp"],
        ),
        ("classifier.awp_gamma=0.1", ["classifier.training=trades"], ["classifier.training=awp"]),
        ("classifier.averaging_decay=0.5", ["classifier.averaging=none"], ["classifier.averaging=steps"]),
        ("dram.detection=ks", DRAM, [*DRAM, "dram.false_alarms=0.1"]),
        ("classifier.averaging=steps", ["classifier.weights=/w"], ["classifier.weights=null"]),
        ("classifier.dkl_beta=3", ["classifier.training=trades"], ["classifier.training=dkl"]),
        (
            "classifier.train_late_from=0.5",
            ["classifier.training=pgd_at", "classifier.train_late_steps=0"],
            ["classifier.train_late_steps=3"],
        ),
        (
            "classifier.awp_warmup=20",
            ["classifier.training=awp", "classifier.epochs=20"],
            ["classifier.epochs=21"],
        ),
        ("robust.late_from=0.5", WHOLE, ["robust.late_steps=3"]),
        ("robust.check_images=9", [*WHOLE, "robust.check_every=0"], ["robust.check_every=5"]),
        ("attack.steps=7", ["attack.method=fgsm"], ["attack.method=bim"]),
        ("attack.random_start=False", ["attack.method=bim"], ["attack.method=pgd"]),
        ("attack.eps=0.1", ["purifier.kind=median"], ["purifier.kind=maep"]),
        ("pretrain.lr=0.1", ["purifier=/run"], ["purifier=null"]),
        ("finetune.lr=0.1", ["finetune.method=none"], ["finetune.method=ia3"]),
        ("finetune.rank=4", ["finetune.method=full"], ["finetune.method=dora"]),
        ("finetune.targets=both", ["finetune.method=full"], ["finetune.method=ia3"]),
        ("finetune.mask_until=0.5", ["finetune.mask_ratio=0"], ["finetune.mask_ratio=0.5"]),
        ("objective.smoothing=0.1", ["objective.distance=mse"], ["objective.distance=smooth_l1"]),
        ("objective.clean_weight=3", [], ["finetune.objective=robust", "finetune.method=full"]),
        ("objective.noise_mean=0.3", [], ["objective.name=nim", "pretrain.mask_ratio=0"]),
        ("attack.eps=0.1", ["objective.name=nim", "pretrain.mask_ratio=0"], ["objective.name=maep"]),
        ("objective.soft_weight=0.5", [], ["robust.teacher=cifar_resnet8=/w", "objective.name=robust"]),
        ("model.refine_scale=2", ["model.refine_width=0"], ["model.refine_width=8"]),
        (
            "model.residual_scale=0.5",
            ["model.refine_width=0", "model.prediction=pixels"],
            ["model.prediction=residual"],
        ),
        (
            "model.residual_scale=0.5",
            ["model.refine_width=0", "model.prediction=normalized"],
            ["model.refine_width=8", "model.prediction=normalized"],
        ),
        ("evaluation.blackbox_draws=5", ["evaluation.threat_models=[bpda]"], ["evaluation.threat_models=[blackbox]"]),
        ("evaluation.adaptive_images=5", ["evaluation.threat_models=[oblivious]"], ["evaluation.threat_models=[bpda]"]),
        ("certify.images=5", [], ["certify.sigma=[0.5]"]),
        ("certify.attack_images=5", ["certify.sigma=[0.5]"], ["certify.attack_radii=[0.5]"]),
        ("attack.shards=/shards", ["attack.online=true"], ["attack.online=false"]),
        ("attack.batch_size=9", ["attack.online=true"], ["attack.online=false"]),
        (
            "evaluation.exact_gradients=True",
            ["evaluation.threat_models=[bpda]"],
            ["evaluation.threat_models=[twin]", "evaluation.twin=/run"],
        ),
    ],
)
def test_what_is_given_and_not_read_is_said(
    word: str, further: list[str], deciding: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Until what decides in its place is set otherwise; of what nobody gave nothing is said."""
    (line,) = said(capsys, "digits", [*WORDS, *further, word])
    assert line.startswith(f"{word}: without effect: ")
    assert not said(capsys, "digits", [*WORDS, *further, word, *deciding])
    assert not said(capsys, "digits", [*WORDS, *further])


def test_milestones_beyond_the_end_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Also to who shortens a training whose milestones a configuration brings; those before the end are not."""
    data = "data.root=/images"
    for words in (["classifier.epochs=100"], ["classifier.milestones=[50, 201]"]):
        (line,) = said(capsys, "trades/cifar10_awp", [data, *words])
        assert line.startswith("classifier.milestones=[")
        assert "without effect: " + {0: "100, 150", 1: "201"}["milestones" in words[0]] + " not before the end" in line
    for words in ([], ["classifier.epochs=151"], ["classifier.milestones=[50, 199]"]):
        assert not said(capsys, "trades/cifar10_awp", [data, *words])


def test_a_line_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Of several settings in one line, too."""
    (line,) = said(capsys, "digits", ["robust.check_every=7", "robust.overfit_drop=11"])
    assert line.count("robust.overfit_drop") == line.count("robust.check_every") == 1


@pytest.mark.parametrize("name", ["cifar10_cpu", "certified/cifar10_cpu", "digits"])
def test_what_only_a_configuration_brings_is_not_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as the epochs of the one below, whose steps replace them: who runs it gave neither."""
    assert not said(capsys, name, ["data.root=/images", "run.seed=1"])
    assert not any(writing.is_users for writing in writings(name).values())


def test_a_file_of_ones_own_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it brings is said; not what its base from maep brings, nor what a later layer replaces."""
    own, above = tmp_path / "own.yaml", tmp_path / "above.yaml"
    own.write_text("base: digits\npretrain: {epochs: 9}\nrobust: {check_every: 7}\n")
    lines = said(capsys, str(own), [])
    assert [line.partition(":")[0] for line in lines] == ["pretrain.epochs=9", "robust.check_every=7"]
    above.write_text("base: own.yaml\npretrain: {steps: 5}\n")
    assert [line.partition(":")[0] for line in said(capsys, str(above), [])] == ["robust.check_every=7"]
    assert not said(capsys, str(above), ["pretrain.attacked=whole", "attack.online=true", "pretrain.mask_ratio=0"])
    own.write_text("base: cifar10_cpu\n")
    assert not said(capsys, str(own), ["data.root=/images"])


def test_the_settings_that_a_run_left_are_nobodys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's config.yaml holds all of them: who goes on with it gives none."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_settings("cifar10_cpu", ["data.root=/images"])))
    assert not said(capsys, str(path), [])
    assert len(said(capsys, str(path), ["pretrain.epochs=9"])) == 1


SWEEP = """\
title: of one's own
scales:
  paper: {base: digits, set: {robust: {check_every: 7}, evaluation: {eps: [8/255]}}}
grid:
  pretrain.steps: [5, %s]
  model.refine_width: [8, 16]
values: [clean_accuracy]
"""


def test_of_a_sweep_what_no_point_reads_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once for all points, of its file and of the words; what one of the points reads has its effect there."""
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SWEEP % "6")
    words = [f"run.cache={tmp_path}", "pretrain.epochs=9"]
    lines = said_of_sweep(capsys, str(sweep), None, words)
    assert sorted(line.partition(":")[0] for line in lines) == ["pretrain.epochs=9", "robust.check_every=7"]
    sweep.write_text(SWEEP % "~")
    lines = said_of_sweep(capsys, str(sweep), None, words)
    assert [line.partition(":")[0] for line in lines] == ["robust.check_every=7"]


def test_of_a_sweep_from_maep_only_the_words_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Axes that the words bring are among them."""
    words = [f"run.cache={tmp_path}", f"data.root={tmp_path}"]
    assert not said_of_sweep(capsys, "ablation/table15", "cpu", words)
    lines = said_of_sweep(capsys, "ablation/table15", "cpu", [*words, "grid.robust.check_every=[7, 8]"])
    assert [line.partition(":")[0] for line in lines] == ["robust.check_every=7"]


@pytest.mark.parametrize(
    "words",
    [[], ["purifier=/run", "classifier.weights=/w", "data.shards=/s"], ["evaluation.threat_models=[oblivious]"]],
)
def test_every_name_is_a_setting(words: list[str]) -> None:
    """What is said of a name that no setting has would never be said."""
    settings = load_settings("digits", [*words, "model.refine_width=0", "model.prediction=pixels"])
    names = {name for unread in unread_settings(settings) for name in (*unread.names, *unread.deciders, *unread.by)}
    assert names <= leaves(Settings).keys()
    assert len(names) > 60
