"""Whatever a file or a word holds: it is read, or refused by a UserError; no other exception leaves a reader.

A few seconds of it run always; `MAEP_FUZZ=100000 pytest tests/test_fuzz.py` tries that many inputs in all.
"""

import copy
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maep.config.data_settings import DataSettings
from maep.config.load import leaves_of, load_settings
from maep.config.schema import Settings
from maep.data.images.archives import open_archive
from maep.data.images.cifar import read_pickle
from maep.data.images.sources import survey
from maep.data.shard_manifest import ShardIndex, read_shard_manifest
from maep.evaluation.audit.gradient_masking import CheckRecord
from maep.evaluation.audit.purification_cost import CostRecord
from maep.evaluation.reporting.curves import read_metrics
from maep.evaluation.reporting.report_document import Report
from maep.evaluation.scoring.chunk_record import ChunkRecord, RecordHead
from maep.evaluation.scoring.plan import Plan
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.weights import read_weights
from maep.pipeline.stage_records import StageRecord
from maep.purifiers import MAEPurifier, read_purifier
from maep.purifiers.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, merge_adapter
from maep.purifiers.base import Source
from maep.purifiers.registry import purifier_class
from maep.purifiers.serialization import PurifierConfig
from maep.runtime.errors import UserError
from maep.storage.json_files import parse_json
from maep.storage.manifests import CheckpointManifest, Manifest
from maep.storage.tensor_files import ShardedTensors
from maep.training.checkpointing.directory import newest_whole

PARTS = 9  # tests below, which share the inputs of MAEP_FUZZ
EXAMPLES = int(os.environ.get("MAEP_FUZZ", "300")) // PARTS
ROOT = Path(__file__).parent
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="MAEP_FUZZ" not in os.environ, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

KEYS = [key for key in leaves_of(Settings()) if key not in ("run.dir", "run.cache")]
TEXT = st.text(max_size=12) | st.sampled_from(
    ["", "null", "true", "1e400", "-1", "0", "nan", "[1,2]", "{a: 1}", "8/255", "${run.dir}", "${oc.env:HOME}", "~x",
     "&a *a", "[[[", "1" * 50, "\x1b[2J", "a\nb", "\ud800", "٣"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
RECORDS: list[Callable[[Any, str], object]] = [
    cls.from_json for cls in (ChunkRecord, RecordHead, Plan, StageRecord, CheckRecord, CostRecord, Report, Manifest)
]


def only_user_errors(call: Callable[..., object], *values: Any) -> None:
    """Anything else is a failure of the test; a message is one line."""
    try:
        call(*values)
    except UserError as error:
        message = str(error)
        if "\n" in message or not message:
            pytest.fail(f"not one line: {message!r}")


def artefact(name: str) -> bytes:
    """A file that an earlier version wrote."""
    with tarfile.open(ROOT / "formats" / "0" / "artefacts.tar.gz") as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places in a JSON value, of the first entries of long lists."""
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:3] if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in paths_in(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], replacement: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return replacement
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], replacement)
    return copy


def documents(*names: str) -> st.SearchStrategy[Any]:
    """JSON that a file may hold: what was written once with one to three places changed, or anything."""
    bases = [json.loads(artefact(name)) for name in names]
    places = {number: paths_in(base) for number, base in enumerate(bases)}

    @st.composite
    def draw_document(draw: st.DrawFn) -> Any:
        number = draw(st.integers(0, len(bases) - 1))
        value = bases[number]
        for _ in range(draw(st.integers(1, 3))):
            with suppress(KeyError, IndexError, TypeError, AttributeError):  # an earlier change took the place away
                value = changed(value, draw(st.sampled_from(places[number])), draw(VALUES))
        return value

    return draw_document() | VALUES


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a file with some replaced, cut or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.sampled_from([0, 1, 1, 4, 400]))] = draw(st.binary(max_size=8))
    return bytes(data)


@fuzz
@given(st.lists(st.tuples(st.sampled_from(KEYS) | TEXT, VALUES.map(str) | TEXT), max_size=4))
def test_settings(words: list[tuple[str, str]]) -> None:
    """key=value words of any key and value."""
    only_user_errors(load_settings, "digits", [f"{key}={value}" for key, value in words])


@fuzz
@given(
    st.sampled_from(RECORDS),
    documents(
        "run/evaluation/lora/oblivious/pgd-2-Linf-0.0156863/chunk-0000.json", "run/evaluation/lora/plan.json",
        "run/evaluation/lora/checks.json", "run/evaluation/lora/purifying.json", "run/stages/report.json",
        "run/report.json",
    ),
)  # fmt: skip
def test_records(read: Callable[[Any, str], object], value: Any) -> None:
    """Records of chunks, stages and checks, plans and reports, each also read as another."""
    only_user_errors(lambda: read(parse_json(json.dumps(value), "file"), "file"))


@fuzz
@given(
    documents(
        "cache/shards/digits-80c0718d/train/manifest.json", "cache/adversarial/digits-1035fc46/manifest.json",
        "cache/shards/digits-80c0718d/train/shard-00000.index.json",
    )
)  # fmt: skip
def test_shard_manifests_and_indexes(value: Any) -> None:
    """And each read as the other."""
    content = json.dumps(value).encode()
    only_user_errors(read_shard_manifest, content, "file")
    only_user_errors(lambda: ShardIndex.from_json(parse_json(content, "file"), "file"))


@fuzz
@given(documents("run/checkpoints/step-000006/manifest.json"), st.none() | st.binary(max_size=40))
def test_checkpoint_manifests(tmp_path_factory: pytest.TempPathFactory, value: Any, raw: bytes | None) -> None:
    """In the directory of a training that looks for where to go on from."""
    content = json.dumps(value).encode() if raw is None else raw
    directory = tmp_path_factory.getbasetemp() / "checkpoints" / "step-000006"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").write_bytes(content)
    only_user_errors(newest_whole, directory.parent)
    only_user_errors(CheckpointManifest.read, directory / "manifest.json")


@fuzz
@given(documents("run/purifier/config.json"))
def test_purifier_configurations(value: Any) -> None:
    """Built without weights, as far as its configuration goes."""

    def build() -> None:
        config = PurifierConfig.from_json(parse_json(json.dumps(value), "config.json"), "config.json")
        purifier_class(config.kind, "config.json: kind").from_config(config.entries, {}, Source("config.json", "file"))

    only_user_errors(build)


@cache
def _network(directory: Path) -> MaskedAutoencoder:
    """The purifier that an earlier version wrote; written into `directory` first."""
    for name in ("config.json", "manifest.json", "model.safetensors"):
        (directory / name).write_bytes(artefact(f"run/purifier/{name}"))
    return read_purifier(directory, MAEPurifier).model


ADAPTER = artefact("run/adapter/adapter_model.safetensors")
HEAD = 600  # bytes of a safetensors file that name its tensors; the rest are numbers


@fuzz
@given(
    documents("run/adapter/adapter_config.json"),
    st.just(ADAPTER) | damaged(ADAPTER[:HEAD]).map(lambda head: head + ADAPTER[HEAD:]) | damaged(ADAPTER),
)
def test_adapters(tmp_path_factory: pytest.TempPathFactory, value: Any, weights: bytes) -> None:
    """Of a configuration and weights that peft may choke on, merged into the network they were trained on."""
    directory, base = tmp_path_factory.getbasetemp() / "adapter", tmp_path_factory.getbasetemp() / "adapted"
    for folder in (directory, base):
        folder.mkdir(exist_ok=True)
    (directory / ADAPTER_CONFIG).write_text(json.dumps(value))
    (directory / ADAPTER_WEIGHTS).write_bytes(weights)
    only_user_errors(merge_adapter, copy.deepcopy(_network(base)), directory)


def _torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a.weight": torch.zeros(2, 3)}, "epoch": 3}, buffer)
    return buffer.getvalue()


PART = artefact("run/checkpoints/step-000006/rank-0000-of-0002.safetensors")


@fuzz
@given(damaged(PART[:HEAD]).map(lambda head: head + PART[HEAD:]) | damaged(PART), damaged(_torch_file()))
def test_weights(tmp_path_factory: pytest.TempPathFactory, part: bytes, saved: bytes) -> None:
    """A rank's file of a checkpoint and a file of torch's, as far as they are read before their values are used."""
    directory = tmp_path_factory.getbasetemp() / "weights"
    directory.mkdir(exist_ok=True)
    (directory / "rank-0000-of-0001.safetensors").write_bytes(part)
    (directory / "saved.pt").write_bytes(saved)

    def read_checkpoint() -> None:
        tensors = ShardedTensors(directory)
        for name in tensors.names():
            tensors.shape(name)
            tensors.tensor(name)

    only_user_errors(read_checkpoint)
    only_user_errors(read_weights, directory / "saved.pt")


def _png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def _zip(labels: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"labels.csv": labels, "images/a.png": _png(), "images/b.png": _png()}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("train/x/a.png", "train/y/b.png", "test/x/c.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(_png())
            archive.addfile(entry, io.BytesIO(_png()))
    return buffer.getvalue()


LABELS = b"file,label\nimages/a.png,0\nimages/b.png,1\n"


@fuzz
@given(
    st.sampled_from(["a.zip", "a.tar"]),
    st.one_of(damaged(_zip(LABELS)), damaged(_tar()), damaged(LABELS).map(_zip), st.binary(max_size=60).map(_zip)),
)
def test_archives_and_label_files(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    """Listed and read file by file, and surveyed as the shards stage does."""
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)

    def read() -> None:
        archive = open_archive(path)
        for file in archive.files:
            archive.read(file, 10_000)

    only_user_errors(read)
    only_user_errors(lambda: survey(DataSettings(root=str(path))))


@fuzz
@given(damaged(pickle.dumps({b"data": [1, 2], b"labels": [0]}, 2)), damaged(b'{"step": 1, "loss": 2.0, "lr": 0.1}\n'))
def test_pickles_and_logs(tmp_path_factory: pytest.TempPathFactory, content: bytes, log: bytes) -> None:
    """A damaged batch of CIFAR's and a damaged metrics.jsonl are named."""
    only_user_errors(read_pickle, content, "batch")
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(log * 2)
    only_user_errors(read_metrics, path)
