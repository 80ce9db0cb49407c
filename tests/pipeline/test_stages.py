"""The pipeline end to end on digits, by the real launcher: results, resume, what a changed setting runs again."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from maep.cli.compare import main as compare
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.pipeline.execution import check_inputs, run_pipeline, unfinished_stages
from maep.pipeline.stages import STAGES, needs_of
from maep.runtime.errors import UserError
from maep.storage.documents import CONTENT
from tests.data.images.test_build import arguments, write_folders
from tests.tiny import ROOT, Problem, environment

SMALL = [
    "evaluation.images=24", "evaluation.chunk_images=12", "evaluation.batch_size=12", "evaluation.adaptive_images=4",
    "evaluation.figure_images=2", "evaluation.attacks=[fgsm,autoattack-standard]", "pretrain.steps=12",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of every stage on the tiny problem."""
    run = Path(shutil.copytree(problem.prepared, tmp_path_factory.mktemp("pipeline") / "run"))
    done = problem.run("all", run, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def results(run: Path) -> list[dict[str, object]]:
    """The rows of report.json, without what depends on the clock."""
    rows = json.loads((run / "report.json").read_text())["results"]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def copy(run: Path, target: Path) -> Path:
    """A copy of a finished run to play with."""
    return Path(shutil.copytree(run, target))


def test_run_directory_holds_what_the_contract_says(finished: Path) -> None:
    """Every file and field of the contract is there, for every purifier, threat model and attack."""
    for name in (
        "config.yaml", "environment.json", "metrics.jsonl", "purifier/model.safetensors", "purifier/config.json",
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "report.json", "report.html",
    ):  # fmt: skip
        assert (finished / name).is_file(), name
    fields = {
        "dataset", "classifier", "purifier", "threat_model", "attack", "norm", "eps", "n", "clean_accuracy",
        "robust_accuracy", "clean_ci95", "robust_ci95", "average_accuracy", "undefended_clean_accuracy",
        "undefended_robust_accuracy", "psnr_clean", "psnr_adversarial", "ssim_clean", "ssim_adversarial", "seed",
        "config_hash",
    }  # fmt: skip
    rows = results(finished)
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert fields <= set(row)
    assert {row["threat_model"] for row in rows} == {"oblivious", "adaptive"}
    line = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "epoch", "samples", "loss", "lr", "images_per_second", "data_seconds", "step_seconds"} <= set(line)
    assert line["samples"] == 12 * 16


def test_finished_stages_are_not_run_again(problem: Problem, finished: Path, tmp_path: Path) -> None:
    """The same command again does no stage and changes no result."""
    run = copy(finished, tmp_path / "run")
    before = results(run)
    done = problem.run("all", run, *SMALL)
    assert done.stdout.count("finished before") == 7, done.stdout
    assert results(run) == before


def test_changed_setting_runs_only_what_depends_on_it(problem: Problem, finished: Path, tmp_path: Path) -> None:
    """Another LoRA rank: finetune and later stages run again, the setting is named, the old adapter is kept."""
    run = copy(finished, tmp_path / "run")
    done = problem.run("all", run, *SMALL, "finetune.rank=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finetune: runs again: finetune.rank changed from 2 to 3" in done.stdout
    for stage in ("shards", "classifier", "attack", "pretrain"):
        assert f"{stage}: finished before" in done.stdout
    assert list(run.glob("superseded/finetune-*/adapter/adapter_model.safetensors"))


def test_missing_result_is_made_again(problem: Problem, finished: Path, tmp_path: Path) -> None:
    """A deleted purifier is noticed, said, and exported again from its checkpoints with the same bytes."""
    run = copy(finished, tmp_path / "run")
    weights = (run / "purifier" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "purifier")
    done = problem.run("pretrain", run, *SMALL)
    assert "its result is missing or altered" in done.stdout
    assert (run / "purifier" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_evaluation_gives_the_same_numbers(
    problem: Problem, finished: Path, tmp_path: Path, signum: int
) -> None:
    """Stopped in the middle of the attacks, with nothing cached from before, and resumed: the same report."""
    run = copy(finished, tmp_path / "run")
    shutil.rmtree(run / "evaluation")
    cache = Path(shutil.copytree(problem.cache, tmp_path / "cache"))
    shutil.rmtree(cache / "attacked")
    elsewhere = Problem(cache, problem.prepared)
    process = subprocess.Popen(
        elsewhere.command("all", run, *SMALL), cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while not any((run / "evaluation").rglob("chunk-0000.json")):
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.02)
    process.send_signal(signum)
    process.communicate()
    done = elsewhere.run("all", run, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(run) == results(finished)


def test_record_of_another_attack_is_refused(problem: Problem, finished: Path, tmp_path: Path) -> None:
    """stage=report with a record in the place of another: exit code 2, one line that says so, and no result."""
    run = copy(finished, tmp_path / "run")
    (run / "report.json").unlink()
    place = run / "evaluation" / "pretrained" / "oblivious"
    names = [place / f"{attack}-Linf-0.12549" / "chunk-0001.json" for attack in ("fgsm", "autoattack-standard")]
    shutil.copy(*names)
    done = problem.run("report", run, *SMALL)
    assert done.returncode == 2
    assert "autoattack-standard-Linf-0.12549/chunk-0001.json: was written for another attack, not" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "%" not in done.stdout
    assert not (run / "report.json").exists()


def again(problem: Problem, run: Path, stage: str, *more: str) -> None:
    """The same command, in this process; it may not train."""
    settings = load_settings("digits", problem.arguments(run, *SMALL, *more)[1:])
    run_pipeline(settings, stage, lambda name, _: pytest.fail(f"{name} was launched"))


def edit(record: Path, taken_out: Sequence[str]) -> None:
    """Every image of a chunk was defended: what somebody who wants a better number writes."""
    entries = json.loads(record.read_text())
    entries["predictions"]["defended_adversarial"] = entries["labels"]
    for name in taken_out:
        del entries[name]
    record.write_text(json.dumps(entries))


@pytest.mark.parametrize("taken_out", [(), (CONTENT,), (CONTENT, "keys")], ids=["nothing", "digest", "and keys"])
def test_an_edited_record_of_a_finished_run_is_refused(
    problem: Problem, finished: Path, tmp_path: Path, taken_out: tuple[str, ...]
) -> None:
    """By every stage that would take it over, also under a changed setting; once it is removed, it is made again."""
    run = copy(finished, tmp_path / "run")
    before, report = results(run), (run / "report.json").read_bytes()
    record = run / "evaluation" / "pretrained" / "oblivious" / "fgsm-Linf-0.12549" / "chunk-0001.json"
    edit(record, taken_out)
    for stage, *more in (("report",), ("all",), ("evaluate",), ("all", "evaluation.adaptive_images=5")):
        with pytest.raises(UserError, match=r"fgsm-Linf-0\.12549/chunk-0001\.json: altered since"):
            again(problem, run, stage, *more)
        assert (run / "report.json").read_bytes() == report
    with pytest.raises(UserError, match=r"chunk-0001\.json: altered since"):
        compare([str(finished), str(run), "--out", str(tmp_path / "out")])
    record.unlink()
    again(problem, run, "all")
    assert results(run) == before


def test_an_edited_report_is_not_compared(finished: Path, tmp_path: Path) -> None:
    """Its digest is in the record of its stage."""
    run = copy(finished, tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    report["results"][0]["clean_accuracy"] = 99.0
    (run / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"report\.json: altered since stage report finished"):
        compare([str(finished), str(run), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_every_document_of_a_run_carries_its_digest(finished: Path) -> None:
    """Of what a later stage takes for granted; the report's is in its stage's record."""
    names = [path for place in ("stages", "evaluation") for path in sorted((finished / place).rglob("*.json"))]
    names += sorted(finished.rglob("manifest.json"))
    assert len(names) > 20
    assert [str(path) for path in names if CONTENT not in json.loads(path.read_text())] == []
    assert "report.json" in json.loads((finished / "stages" / "report.json").read_text())["files"]


def test_stage_without_its_needs_is_refused(problem: Problem, tmp_path: Path) -> None:
    """stage=evaluate in an empty run directory names the stage that is missing."""
    done = problem.run("evaluate", tmp_path / "empty")
    assert done.returncode == 2
    assert "needs stage" in done.stderr


def test_unknown_stage_is_refused(problem: Problem, tmp_path: Path) -> None:
    """A mistyped stage is answered with the list of stages."""
    done = problem.run("pretrian", tmp_path / "run")
    assert done.returncode == 2
    assert "shards, classifier, attack, pretrain, finetune, evaluate, certify, report, all" in done.stderr
    assert not (tmp_path / "run").exists()


def test_unwritable_run_directory_is_one_line(problem: Problem, tmp_path: Path) -> None:
    """A run directory below a file cannot be made: exit code 2 and one line that names it."""
    (tmp_path / "file").touch()
    done = problem.run("shards", tmp_path / "file" / "run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "run.dir" in done.stderr


def test_digits_reaches_its_accuracies(tmp_path: Path) -> None:
    """cfg=digits as it is, shorter: the undefended classifier falls, the purified one holds against AutoAttack."""
    short = ["pretrain.steps=200", "finetune.steps=10", "evaluation.images=60", "evaluation.adaptive_images=4"]
    short += ["evaluation.attacks=[autoattack-standard]", "evaluation.purifiers=pretrained"]
    where = [f"run.dir={tmp_path}/run", f"run.cache={tmp_path}/cache"]
    command = Problem(tmp_path, tmp_path).command("all", tmp_path / "run")[:4]
    done = subprocess.run(
        [*command, "cfg=digits", *short, *where], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    oblivious = next(row for row in results(tmp_path / "run") if row["threat_model"] == "oblivious")
    assert float(str(oblivious["undefended_clean_accuracy"])) >= 97
    assert float(str(oblivious["undefended_robust_accuracy"])) <= 5
    assert float(str(oblivious["clean_accuracy"])) >= 90
    assert float(str(oblivious["robust_accuracy"])) >= 50
    assert "report.html" in done.stdout


ONLINE = ["attack.online=true", "objective.name=robust", "pretrain.attacked=whole"]


@pytest.mark.parametrize("changed", ["attack.eps=0.05", "attack.steps=3", "classifier.arch=cifar_resnet20"])
def test_a_training_that_attacks_as_it_goes_depends_on_the_attack(tmp_path: Path, changed: str) -> None:
    """Its attack and its classifier are inputs, as those of a training on attacked shards are."""

    def identity(*overrides: str) -> str:
        weights = f"classifier.weights={tmp_path / 'weights.pt'}"
        return STAGES["attack"].identity(load_settings("digits", [weights, *overrides]))

    (tmp_path / "weights.pt").write_bytes(b"of a classifier")
    online = identity(*ONLINE)
    assert identity(*ONLINE) == online != identity(*ONLINE, changed)
    (tmp_path / "weights.pt").write_bytes(b"of another one")
    assert identity(*ONLINE) != online


def test_a_training_against_several_classifiers_depends_on_each(tmp_path: Path) -> None:
    """On what their files hold. The classifier stage says which file is missing, and works where one has none."""
    own, further = tmp_path / "own.safetensors", tmp_path / "further.safetensors"
    several = [*ONLINE, f"classifier.weights={own}", f"robust.classifiers=[cifar_resnet14={further}]"]

    def settings(*overrides: str) -> Settings:
        return load_settings("digits", [*several, *overrides])

    own.write_bytes(b"of a classifier")
    with pytest.raises(UserError, match=r"robust\.classifiers=cifar_resnet14=.*further\.safetensors: no such file"):
        STAGES["classifier"].check(settings())
    further.write_bytes(b"of a further one")
    before = STAGES["attack"].identity(settings())
    assert before != STAGES["attack"].identity(settings("robust.classifiers=[]"))
    further.write_bytes(b"of another one")
    assert before != STAGES["attack"].identity(settings())
    assert STAGES["classifier"].idle(settings())
    assert not STAGES["classifier"].idle(settings("robust.classifiers=[cifar_resnet14]"))


def test_a_finetuning_by_the_classifier_needs_it() -> None:
    """After a pretraining on noise, which knows no classifier, another one finetunes again and pretrains no more."""
    settings = load_settings("certified/digits", [])
    assert "classifier" in needs_of(STAGES["finetune"], settings)
    assert "classifier" not in needs_of(STAGES["pretrain"], settings)
    assert STAGES["attack"].identity(settings) == "noise"
    assert "classifier" not in needs_of(STAGES["finetune"], load_settings("digits", []))


ATTACKED_WHOLE = ["attack.online=true", "pretrain.attacked=whole", "objective.name=robust", "pretrain.mask_ratio=0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classifier.arch=resnt18"], "classifier.arch=resnt18: unknown; .*did you mean resnet18"),
        ([*ATTACKED_WHOLE, "robust.classifiers=[resnt18]"], "robust.classifiers=resnt18: unknown"),
        ([*ATTACKED_WHOLE, "robust.teacher=resnt18=nowhere.pt"], "robust.teacher=resnt18=nowhere.pt: no such file"),
        (["pretrain.source=nonsense"], "nonsense"),
        (["pretrain.source=digits", "pretrain.source_set=[data.foo=1]"], "data.foo"),
        (["finetune.clean_shards=nowhere", "finetune.adversarial_shards=nowhere"], "finetune.clean_shards=nowhere: no"),
        (["attack.shards=nowhere"], "attack.shards=nowhere: no shard set"),
    ],
)
def test_what_a_later_stage_could_not_use_is_said_first(tmp_path: Path, words: list[str], message: str) -> None:
    """Names and places that no stage asks about before training: one line, and nothing is written."""
    settings = load_settings("digits", [f"run.dir={tmp_path}/run", f"run.cache={tmp_path}/cache", *words])
    with pytest.raises(UserError, match=message):
        run_pipeline(settings, "all", lambda name, _: pytest.fail(f"{name} was launched"))
    assert not list(tmp_path.rglob("*.*"))


def test_too_few_classes_are_said_before_anything_is_trained(tmp_path: Path) -> None:
    """As soon as there are images; those who attack with other attacks go on."""
    words = arguments(tmp_path / "cache", write_folders(tmp_path / "images"), f"run.dir={tmp_path}/run")
    settings = load_settings(None, words)
    with pytest.raises(
        UserError, match=r"evaluation\.attacks: autoattack-standard: needs at least 4 classes .* have 3;"
    ):
        run_pipeline(settings, "all", lambda stage, _: pytest.fail(f"{stage} was launched"))
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name[0] != "."] == ["shards"]
    for more, key in (
        (["evaluation.adaptive_attacks=[pgd-2]"], "evaluation.attacks"),
        (["evaluation.attacks=[pgd-2]", "evaluation.adaptive_attacks=[apgd-t]"], "evaluation.adaptive_attacks"),
        (["evaluation.attacks=[pgd-2]", "certify.sigma=[0.5]", "certify.attack_radii=[1]"], "certify.attack"),
    ):
        with pytest.raises(UserError, match=f"^{key}: .* needs at least 4 classes"):
            check_inputs(["evaluate", "certify"], load_settings(None, [*words, *more]))
    for more in (
        ["evaluation.attacks=[pgd-2]"],
        ["evaluation.threat_models=[adaptive, blackbox]", "evaluation.adaptive_attacks=[pgd-2]"],
        ["evaluation.threat_models=[blackbox]"],
    ):
        check_inputs(["evaluate"], load_settings(None, [*words, *more]))


@pytest.mark.parametrize("section", ["pretrain", "finetune"])
def test_a_share_of_clean_images_is_of_pairs(section: str, tmp_path: Path) -> None:
    """Where a training makes its second images itself it would do nothing: refused, unless nothing is trained."""
    words = [f"run.dir={tmp_path}", f"{section}.clean_share=0.5"]
    check_inputs([section], load_settings("digits", words))
    for more in (["attack.online=true"], ["objective.name=nim", "pretrain.mask_ratio=0"]):
        with pytest.raises(UserError, match=f"^{section}.clean_share=0.5: is of pairs in shards"):
            check_inputs([section], load_settings("digits", [*words, *more]))
    check_inputs(["finetune"], load_settings("digits", [*words, "attack.online=true", "finetune.method=none"]))


def test_too_few_images_to_hold_out_are_said_before_anything_is_trained(tmp_path: Path) -> None:
    """Of 14 training images robust.check_images=256 leaves none: known once there are shards."""
    words = [*arguments(tmp_path / "cache", write_folders(tmp_path / "data")), f"run.dir={tmp_path / 'run'}"]
    whole = ["attack.online=true", "objective.name=robust", "pretrain.mask_ratio=0", "finetune.method=none"]
    settings = load_settings("digits", [*words, *whole, "pretrain.attacked=whole", "model.image_size=16"])
    with pytest.raises(UserError, match=r"robust\.check_images=256: leaves nothing of \d+ training images"):
        run_pipeline(settings, "all", lambda name, _: pytest.fail(f"{name} was launched"))
    assert not (tmp_path / "cache" / "classifiers").exists()


def test_what_all_runs_of_a_sweep_have_in_common_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Images that were replaced, which each of its points finds out by itself."""
    root = write_folders(tmp_path / "data")
    runs = [
        load_settings(None, [*arguments(tmp_path / "cache", root), f"run.dir={tmp_path / name}"]) for name in ("a", "b")
    ]
    for settings in runs:
        run_pipeline(settings, "shards", lambda _name, _settings: None)
    (root / "a" / "a0.png").unlink()
    capfd.readouterr()
    assert all("shards" in unfinished_stages(settings) for settings in runs)
    assert capfd.readouterr().out.count("shards: its result cannot be read") == 1
