"""What older versions wrote loads with this one: purifiers, checkpoints, shards, records, whole runs."""

import json
import tarfile
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from maep import load_purifier
from maep.config.load import load_settings
from maep.data.shards import find_shard_sets, shard_problems
from maep.evaluation.reporting.report import read_results
from maep.evaluation.scoring.chunk_record import ChunkRecord
from maep.launch.cluster.job_records import read_records, stage_folder
from maep.launch.monitor.failures import failures_of, first_killed
from maep.launch.monitor.logs import show_logs
from maep.launch.monitor.status import print_status
from maep.pipeline.execution import run_pipeline, unfinished_stages
from maep.pipeline.stage_records import StageRecord
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json, write_json
from maep.storage.documents import CONTENT

FORMATS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/artefacts.tar.gz"))


@pytest.fixture(params=FORMATS)
def artefacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a format's version wrote, as the working directory: its paths are relative."""
    with tarfile.open(Path(__file__).parent / request.param / "artefacts.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def expected(artefacts: Path) -> dict[str, Tensor]:
    """What the purifiers made of two images, and of a larger one, then."""
    return load_file(artefacts / "expected.safetensors")


@pytest.mark.parametrize(
    ("name", "path"), [("run", "run"), ("purifier", "run/purifier"), ("checkpoint", "run/checkpoints/step-000006")]
)
@torch.inference_mode()
def test_purifiers_load_and_purify_as_before(expected: dict[str, Tensor], name: str, path: str) -> None:
    """A run with its LoRA adapter, a purifier/ and a checkpoint of two ranks give the same images."""
    purifier = load_purifier(path)
    for images in ("images", "big"):
        torch.testing.assert_close(purifier(expected[images]), expected[f"{name}.{images}"], rtol=0, atol=1e-5)


def test_shards_verify(artefacts: Path) -> None:
    """Clean and adversarial shard sets are whole, and their images and labels are read."""
    sets = find_shard_sets(artefacts / "cache")
    assert len(sets) == 3
    for path in sets:
        assert shard_problems(path) == []


def test_a_finished_run_is_still_finished(artefacts: Path) -> None:
    """No stage of it would run again; without its records the report is made again from them, with the same rows."""
    settings = load_settings("run/config.yaml")
    assert unfinished_stages(settings) == {}
    before = read_json(artefacts / "run" / "report.json")
    (artefacts / "run" / "stages" / "report.json").unlink()
    run_pipeline(settings, "report", lambda name, _: pytest.fail(f"{name} was launched"))
    after = read_json(artefacts / "run" / "report.json")
    assert [without_new(row, old) for row, old in zip(after["results"], before["results"], strict=True)] == before[
        "results"
    ]


@pytest.mark.parametrize("stage", ["all", "report"])
def test_an_edited_record_of_a_finished_run_is_refused(artefacts: Path, stage: str) -> None:
    """Records of then carry no digest; that of all of them stands in the stage's record."""
    record = artefacts / "run" / "evaluation" / "lora" / "oblivious" / "pgd-2-Linf-0.0156863" / "chunk-0001.json"
    entries = read_json(record)
    entries["predictions"]["defended_adversarial"] = entries["labels"]
    write_json(record, entries)
    before = (artefacts / "run" / "report.json").read_bytes()
    with pytest.raises(UserError, match="not all as it was when stage evaluate finished"):
        run_pipeline(load_settings("run/config.yaml"), stage, lambda name, _: pytest.fail(f"{name} was launched"))
    assert (artefacts / "run" / "report.json").read_bytes() == before


def test_records_of_format_1_make_the_same_report(tmp_path: Path) -> None:
    """Plans, checks, costs and records; one whose digest was taken out had it then, as its keys tell."""
    with tarfile.open(Path(__file__).parent / "1" / "records.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "run"
    results = read_results(load_settings(str(run / "config.yaml")), run / "evaluation")
    rows = json.loads(json.dumps([row.result.to_json() for result in results for row in result.rows]))
    expected = read_json(run / "report.json")["results"]
    key = itemgetter("purifier", "threat_model", "attack")
    assert sorted(rows, key=key) == sorted(expected, key=key)
    assert all(StageRecord.read(path).finished for path in (run / "stages").glob("*.json"))
    record = run / "evaluation" / "lora" / "oblivious" / "pgd-2-Linf-0.0156863" / "chunk-0001.json"
    entries = read_json(record)
    del entries[CONTENT]
    with pytest.raises(UserError, match=r"chunk-0001\.json: altered since"):
        ChunkRecord.from_json(entries, record)


def without_new(row: dict[str, object], old: dict[str, object]) -> dict[str, object]:
    """The entries of a row that its version knew; later ones add some."""
    return {key: value for key, value in row.items() if key in old}


def test_a_stopped_training_goes_on(artefacts: Path) -> None:
    """From the checkpoint of two ranks, on one: two more steps, with the samples counted on."""
    settings = load_settings("run/config.yaml", ["pretrain.steps=8", "finetune.method=none"])
    (artefacts / "run" / "stages" / "pretrain.json").unlink()
    from maep.training.worker import run_training

    run_pipeline(settings, "pretrain", run_training)
    lines = (artefacts / "run" / "metrics.jsonl").read_text().splitlines()
    assert '"step": 8' in lines[-1]
    assert '"samples": 64' in lines[-1]


def test_attempts_of_a_job_are_shown(artefacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The job that was submitted then, why it was requeued, which rank failed where, and its log."""
    run = Path("run")
    [record] = read_records(run)
    log = record.log(stage_folder(run, "pretrain"))
    log.write_text("srun: error: node2: task 1: Killed\njob 17, life 0: begins again: x\n")
    print_status(run)
    page = " ".join(capsys.readouterr().out.split())
    assert "pretrain 17 finished 1 (1 crashed)" in page
    assert "left out" not in page
    (failure,) = failures_of(run, record, [], pytest.fail)
    assert failure.startswith("pretrain: job 17, attempt 0, rank 1 on node2: RuntimeError: shapes differ")
    assert first_killed(log, 0) == "rank 1 on node2 was killed (Killed)"
    assert str(log) in next(show_logs(run, None, None, None, 1))
