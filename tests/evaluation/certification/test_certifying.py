"""Certificates of a run: shared by workers, killed and resumed, refused where they would mean nothing, reported."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from maep.cli.certify import main as certify
from maep.config.evaluation_settings import CertifySettings
from maep.config.load import load_settings
from maep.data.shards import ShardSet, to_float
from maep.evaluation.certification.certificate_record import plan_chunks
from maep.evaluation.certification.certifying import certify_all
from maep.evaluation.certification.smoothing import Smoothed
from maep.evaluation.certification.subjects import certified_identities
from maep.evaluation.certification.trained_noise import TrainedNoise, check_noise, trained_noise, untrained_note
from maep.evaluation.stage import subjects_of
from maep.pipeline.execution import run_pipeline
from maep.purifiers import save_purifier
from maep.purifiers.median import MedianPurifier
from maep.runtime.errors import UserError
from maep.training.worker import run_training
from tests.evaluation.certification.small_certification import contents, settings_for, units_of
from tests.small import write_shards
from tests.tiny import Problem

REPOSITORY = Path(__file__).resolve().parents[3]
NOISY = [
    "objective.name=nim", "objective.distance=mse", "objective.noise=fixed", "objective.noise_mean=0.25",
    "pretrain.mask_ratio=0", "finetune.method=full", "finetune.objective=stability",
]  # fmt: skip
QUICK = [
    "certify.sigma=[0.25]", "certify.images=6", "certify.chunk_images=2", "certify.first_draws=10", "certify.draws=60",
]  # fmt: skip


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", 20)


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory, test_set: ShardSet) -> Path:
    """Certificates by one worker that was left alone."""
    directory = tmp_path_factory.mktemp("one_worker")
    finish(workers(directory, test_set, 1))
    return directory


def workers(directory: Path, test: ShardSet, count: int, *killed: str) -> list[subprocess.Popen[str]]:
    """killed: after how many chunks they kill themselves."""
    command = [sys.executable, "-m", "tests.evaluation.certification.small_certification", str(directory)]
    how: dict[str, Any] = {"cwd": REPOSITORY, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    return [
        subprocess.Popen([*command, str(test.path), str(number), str(count), *killed], stdout=subprocess.PIPE, **how)
        for number in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> str:
    """What the workers said, after all ended well."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return "".join(outputs)


def test_four_workers_equal_one(tmp_path: Path, test_set: ShardSet, one_worker: Path) -> None:
    """Record by record, and no chunk twice."""
    output = finish(workers(tmp_path, test_set, 4))
    made = Counter(re.findall(r"(σ = .*: chunk \d+):", output))
    assert len(made) == 2 * 5
    assert set(made.values()) == {1}
    assert contents(tmp_path) == contents(one_worker)
    assert len(contents(tmp_path)) == 2 * 5
    assert not list(tmp_path.rglob("*.claim-*"))


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, test_set: ShardSet, one_worker: Path) -> None:
    """Killed after its second chunk, by SIGKILL; the same command makes the rest, and only that."""
    (process,) = workers(tmp_path, test_set, 1, "2")
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("chunk-*.json")}
    assert len(kept) == 2
    assert f"{len(kept)} of 10 chunks were done before" in finish(workers(tmp_path, test_set, 1))
    assert contents(tmp_path) == contents(one_worker)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_what_is_another_is_certified_again(tmp_path: Path, test_set: ShardSet, one_worker: Path) -> None:
    """Another classifier, purifier, seed or number of draws is another certificate; an edited record is refused."""
    settings = settings_for(one_worker)
    assert all(unit.is_done() for unit in units_of(settings, test_set))
    others = [settings_for(one_worker, draws=151), settings_for(one_worker, first_draws=21)]
    assert not any(unit.is_done() for other in others for unit in units_of(other, test_set))
    assert not any(unit.is_done() for unit in units_of(settings, test_set, purifier="another"))
    seeded = settings_for(one_worker)
    seeded.run.seed = 1
    assert not any(unit.is_done() for unit in units_of(seeded, test_set))
    few = settings_for(tmp_path, sigma=[0.25], images=2, chunk_images=2)
    (unit,) = units_of(few, test_set)
    assert certify_all([unit], few)
    entries = json.loads(unit.path.read_text())
    entries["certificates"][0]["radius"] = 9.0
    unit.path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match="altered since it was written"):
        certify_all([unit], few)


def test_the_plan_is_of_what_there_is() -> None:
    """No more images than the set has, the last chunk smaller, each noise once however often it is named."""
    settings = CertifySettings(sigma=[0.5, 0.25, 0.5], images=50, chunk_images=3)
    tasks = plan_chunks(settings, 8)
    assert [(task.sigma, task.chunk, task.first, task.count) for task in tasks] == [
        (sigma, chunk, 3 * chunk, count) for sigma in (0.5, 0.25) for chunk, count in ((0, 3), (1, 3), (2, 2))
    ]
    assert len({task.path for task in tasks}) == 6
    assert [task.ids for task in plan_chunks(settings, 1)] == [range(1), range(1)]


ATTACKED = [
    "certify.attack_radii=[0.25, 1]", "certify.attack_images=2", "certify.attack=pgd-2", "certify.attack_draws=12",
]  # fmt: skip


def test_a_run_trains_on_noise_and_is_certified(problem: Problem, run_dir: Path, capsys: Any) -> None:
    """MSE on noise, then the stability loss through the classifier, certificates of both, and their report; with the
    attacks beside them.
    """
    words = problem.arguments(run_dir, *NOISY, *QUICK, *ATTACKED, "evaluation.attacks=[fgsm]", "evaluation.images=4",
                              "evaluation.adaptive_images=2", "evaluation.chunk_images=4")  # fmt: skip
    settings = load_settings(words[0].partition("=")[2], words[1:])
    for stage in ("pretrain", "finetune"):
        run_pipeline(settings, stage, run_training)
    logged = [json.loads(line) for line in (run_dir / "metrics-finetune.jsonl").read_text().splitlines()]
    assert {"l_stability", "l_pixel"} <= set(logged[-1])
    assert certify(words) == 0
    assert "accuracy in % at an L2 radius" in " ".join(capsys.readouterr().out.split())
    assert certify(words) == 0
    assert "certify: finished before" in capsys.readouterr().out
    for stage in ("evaluate", "report"):
        run_pipeline(settings, stage, run_training)
    rows = json.loads((run_dir / "report.json").read_text())["certificates"]
    assert [row["purifier"] for row in rows] == ["nim", "nim+full"]
    assert {(row["threat_model"], row["norm"], row["sigma"], row["samples"], row["n"]) for row in rows} == {
        ("certified", "L2", 0.25, 60, 6)
    }
    for row in rows:
        radii, values = zip(*row["certified"], strict=True)
        assert list(radii) == sorted(radii)
        assert list(values) == sorted(values, reverse=True)
        assert (row["trained_on_noise"], row["trained_sigma"]) == (True, 0.25)
        assert [(each["radius"], each["n"]) for each in row["attacked"]] == [(0.25, 2), (1, 2)]
        assert all(each["certified"] <= each["smoothed"] and not each["broken"] for each in row["attacked"])
    page = (run_dir / "report.html").read_text()
    assert "Threat model: certified" in page
    assert "The same images, attacked" in page
    assert "What it is worth" in page
    assert "certified: the smoothed classifier" in page.replace("Certified", "certified")
    (run_dir / "certificates" / "full" / "sigma-0.25" / "chunk-0001.json").unlink()
    with pytest.raises(UserError, match="chunk-0001.json: has not been certified; run stage=certify"):
        run_pipeline(settings, "report", run_training)
    beside_the_bare_classifier([*words, "certify.undefended=true"], run_dir, capsys)


def beside_the_bare_classifier(words: list[str], run_dir: Path, capsys: Any) -> None:
    """certify.undefended=true adds its certificates, of the classifier alone, to those of the purifiers, which stay."""
    capsys.readouterr()
    assert certify(words) == 0
    assert "9 of 15 chunks were done before" in capsys.readouterr().out
    settings = load_settings(words[0].partition("=")[2], words[1:])
    run_pipeline(settings, "report", run_training)
    *_, row = json.loads((run_dir / "report.json").read_text())["certificates"]
    assert (row["purifier"], row["trained_on_noise"], row["n"]) == ("none", False, 6)
    assert "none was not trained" not in (run_dir / "report.html").read_text()
    (chunk, *_) = sorted((run_dir / "certificates" / "none").glob("sigma-*/*.json"))
    first = json.loads(chunk.read_text())["certificates"][0]
    test, defenses = subjects_of(settings)
    classifier = defenses["pretrained"].classifier
    smoothed = Smoothed(classifier, classifier, settings.certify, 0.25, settings.run.seed)
    image = to_float(test.batch(range(1))[0])[0]
    assert first == asdict(smoothed.certify(image, first["label"], 0, first["key"]))


def test_a_purifier_named_as_the_bare_classifier_is_refused(tmp_path: Path) -> None:
    """Its certificates would be taken for the classifier's."""
    save_purifier(MedianPurifier.from_settings(load_settings("median/digits", [])), tmp_path / "none")
    words = [f"purifier={tmp_path / 'none'}", "certify.undefended=true", "certify.sigma=[0.25]"]
    with pytest.raises(UserError, match="none is the name of the classifier alone; rename the folder"):
        certified_identities(load_settings("digits", words))


def test_bad_input(problem: Problem, run_dir: Path, capsys: Any) -> None:
    """One line each: no σ, another σ than the training's, fewer draws than choose the class, too few for any."""

    def refused(*words: str) -> str:
        before = sorted(run_dir.rglob("*"))
        with pytest.raises(UserError) as error:
            certify(problem.arguments(run_dir, *words))
        assert sorted(run_dir.rglob("*")) == before
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "certify.sigma" in refused()
    assert "was trained on noise of 0.25" in refused(*NOISY, "certify.sigma=[0.5]")
    assert "certify.sigma=[0.25]" in refused(*NOISY, "certify.sigma=[0.25, 0.5]")
    assert "at least certify.first_draws=100" in refused("certify.sigma=[0.25]", "certify.draws=99")
    assert "at least 10" in refused("certify.sigma=[0.25]", "certify.draws=9", "certify.first_draws=1")
    mixed = ("finetune.objective=stability", "finetune.method=full", "certify.sigma=[0.25]")
    assert "choose two that train on the same" in refused(*mixed)
    assert "leave out attack.online" in refused(*NOISY, "attack.online=true", "certify.sigma=[0.25]")
    assert "--worker" in refused("--worker", "4/4", "certify.sigma=[0.25]")
    with pytest.raises(UserError, match="certify.sigma"):
        settings = load_settings("digits", problem.arguments(run_dir)[1:])
        run_pipeline(settings, "certify", run_training)


def test_a_purifier_that_was_not_trained_on_noise_is_warned_of(
    problem: Problem, run_dir: Path, capsys: Any, tmp_path: Path
) -> None:
    """With what to expect; also where nothing says what it was trained on, or its own run does."""
    words = problem.arguments(run_dir, *QUICK, "certify.images=2", "purifier.kind=median", "finetune.method=none")
    assert certify(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "median was not trained on Gaussian noise: expect its accuracy under noise of 0.25 to collapse" in said
    given = problem.arguments(tmp_path / "other", *QUICK, "certify.images=2", f"purifier={run_dir}/purifier")
    assert certify(given) == 0
    assert "was not trained on Gaussian noise" in " ".join(capsys.readouterr().out.split())
    (run_dir / "config.yaml").unlink()
    assert certify([*given, "certify.draws=61"]) == 0
    assert "is not known to have been trained on Gaussian noise" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "is_there"), [("diffpure/digits", True), ("adbm/digits", True), ("adp/digits", True),
                           ("flowpure/digits", False), ("ebm/digits", False), ("digits", False)],
)  # fmt: skip
def test_denoisers_are_trained_on_noise(name: str, is_there: bool) -> None:
    """Of many deviations, so that none is another than the training's; what learns pairs, or walks, is not."""
    settings = load_settings(name, ["certify.sigma=[0.25, 0.5]"])
    assert trained_noise(settings, "pretrained") == TrainedNoise(True, is_there)
    check_noise(settings)
    assert bool(untrained_note("it", trained_noise(settings, "pretrained"), 0.5)) != is_there
