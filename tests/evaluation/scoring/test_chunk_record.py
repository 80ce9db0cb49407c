"""Records, plans and answers are read with their types checked; what an older version wrote loads, a newer one not."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from maep.data.shards import ShardSet
from maep.evaluation.audit.gradient_masking import CheckRecord
from maep.evaluation.audit.purification_cost import CostRecord
from maep.evaluation.reporting.report_document import Report
from maep.evaluation.scoring import chunk_record
from maep.evaluation.scoring.chunk_record import ChunkRecord, is_recorded, read_record, read_row, record_path
from maep.evaluation.scoring.plan import Plan
from maep.runtime.errors import UserError
from maep.runtime.plain_files import read_bytes
from maep.storage import documents
from maep.storage.documents import CONTENT, Document
from tests.evaluation.small_evaluation import IMAGES, run, settings_for
from tests.small import write_shards
from tests.tiny import ROOT


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation."""
    path = tmp_path_factory.mktemp("evaluated")
    test: ShardSet = write_shards(path / "test", IMAGES)
    return run(settings_for(path, attacks=["fgsm"], images=8, threat_models=["oblivious"], check_images=1), test)


DOCUMENTS: dict[str, type[Document]] = {
    "plan.json": Plan,
    "checks.json": CheckRecord,
    "purifying.json": CostRecord,
    "oblivious/fgsm-Linf-0.1/chunk-0000.json": ChunkRecord,
}


def changed(directory: Path, name: str, tmp_path: Path, **entries: Any) -> Path:
    """A copy of a document with other entries; None takes one out."""
    values = {**json.loads((directory / name).read_text()), **entries}
    path = tmp_path / Path(name).name
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_written_and_read(directory: Path, tmp_path: Path, name: str) -> None:
    """What is read is what is written, with a format; without one, as before there was any, it is the same."""
    document = DOCUMENTS[name].read(directory / name)
    values = json.loads((directory / name).read_text())
    assert len(values.pop(CONTENT)) == 64, "a document carries its own digest"
    assert json.loads(json.dumps(document.to_json())) == values
    assert document.to_json()["format"] == 2
    nested = {"checks.json": "answers", "purifying.json": "cost"}.get(name)
    before = {**values.pop(nested), **values} if nested else values
    del before["format"]
    if isinstance(document, ChunkRecord):  # of that time it had no keys either
        del before["keys"]
        document = dataclasses.replace(document, keys=())
    path = tmp_path / "before.json"
    path.write_text(json.dumps(before))
    assert DOCUMENTS[name].read(path) == document


@pytest.mark.parametrize("name", DOCUMENTS)
def test_newer_format(directory: Path, tmp_path: Path, name: str) -> None:
    """A newer format is refused, by the file's name."""
    path = changed(directory, name, tmp_path, format=3)
    with pytest.raises(UserError, match=f"{path.name}: format 3; this version of maep reads up to 2"):
        DOCUMENTS[name].read(path)


def test_damaged_record(directory: Path, tmp_path: Path) -> None:
    """A record with an entry of the wrong type, or without one, is named with the entry."""
    name = "oblivious/fgsm-Linf-0.1/chunk-0000.json"
    with pytest.raises(UserError, match=r"chunk-0000.json: labels\[1\]=\"two\": expected a whole number"):
        ChunkRecord.read(changed(directory, name, tmp_path, labels=[1, "two"]))
    with pytest.raises(UserError, match="chunk-0000.json: lacks the entry 'survivors'"):
        ChunkRecord.read(changed(directory, name, tmp_path, survivors=None))


def test_a_record_without_its_digest_is_refused(directory: Path, tmp_path: Path) -> None:
    """While the evaluation goes on, too; one from before there were digests, and keys, is read."""
    name = "oblivious/fgsm-Linf-0.1/chunk-0000.json"
    for taken in ({CONTENT: None}, {CONTENT: None, "keys": None}, {CONTENT: None, "format": 1}):
        with pytest.raises(UserError, match=r"chunk-0000\.json: altered since it was written"):
            ChunkRecord.read(changed(directory, name, tmp_path, **taken))
    old = {CONTENT: None, "keys": None, "format": 1}
    assert ChunkRecord.read(changed(directory, name, tmp_path, **old)).keys == ()


def test_a_records_digest_is_that_of_its_bytes(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is encoded again to check it; laid out otherwise it is the same record; one edited byte is noticed."""
    written = directory / "oblivious/fgsm-Linf-0.1/chunk-0000.json"
    record, text = ChunkRecord.read(written), written.read_text()
    assert ChunkRecord.read(changed(directory, str(written.relative_to(directory)), tmp_path)) == record
    (tmp_path / "edited.json").write_text(text.replace('"count":8', '"count":9'))
    with pytest.raises(UserError, match=r"edited\.json: altered since it was written"):
        ChunkRecord.read(tmp_path / "edited.json")
    monkeypatch.setattr(documents, "digest", lambda value: pytest.fail("encoded again"))
    assert ChunkRecord.read(written) == record


def test_record_of_something_else_is_not_read_further(directory: Path) -> None:
    """Whatever is in it, a record with another identity is none of this evaluation's."""
    plan = Plan.read(directory / "plan.json")
    (planned,) = plan.tasks
    assert read_record(directory, planned.task, planned.identity) is not None
    assert read_record(directory, planned.task, "another") is None


def test_a_record_is_read_once(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who asks whether it is there; again once it was touched, for another identity, and where it was gone."""
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    (planned,) = Plan.read(copy / "plan.json").tasks
    path, reads = record_path(copy, planned.task), []
    monkeypatch.setattr(chunk_record, "read_bytes", lambda *words: reads.append(words[0]) or read_bytes(*words))
    assert all(is_recorded(copy, planned.task, planned.identity) for _ in range(3))
    assert reads == [path]
    assert not is_recorded(copy, planned.task, "another")
    content = path.read_text()
    path.write_text(content.replace('"first"', '"first "'))
    with pytest.raises(UserError, match="altered since|lacks the entry"):
        is_recorded(copy, planned.task, planned.identity)
    path.unlink()
    assert not is_recorded(copy, planned.task, planned.identity)
    path.write_text(content)
    assert is_recorded(copy, planned.task, planned.identity)
    assert len(reads) == 4


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "reports").glob("*/report.json")), ids=lambda p: p.parent.name
)
def test_committed_reports(path: Path) -> None:
    """Every report that the project holds to is read, the oldest ones too, with its rows as they are."""
    report, entries = Report.read(path), json.loads(path.read_text())
    assert report.results
    for row, before in zip(report.to_json()["results"], entries["results"], strict=True):
        assert {key: row[key] for key in before} == before


def test_records_of_a_larger_evaluation_are_not_of_a_smaller_one(tmp_path: Path) -> None:
    """They stay beside those of a row, which are the ones that the plan names; without a plan it is all there are."""
    test = write_shards(tmp_path / "test", IMAGES)
    how = {"attacks": ["fgsm"], "threat_models": ["oblivious"], "chunk_images": 4, "check_images": 1}
    for images in (8, 4):
        directory = run(settings_for(tmp_path, **how, images=images), test)
    row = "pretrained/oblivious/fgsm-Linf-0.1"
    assert len(list((directory.parent / row).glob("chunk-*.json"))) == 2
    assert [record.ids for record in read_row(directory.parent, row)] == [(0, 1, 2, 3)]
    (directory / "plan.json").unlink()
    assert len(read_row(directory.parent, row)) == 2
