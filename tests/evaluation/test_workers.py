"""Any number of workers, killed anywhere, give what one gives, image by image, and attack no chunk twice."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from maep.data import shards
from maep.data.shards import ShardSet
from maep.evaluation.scoring.evaluation import prepare
from maep.evaluation.workers import evaluate_all, stopped_at_once
from maep.runtime.errors import Stopped, UserError
from tests.evaluation.small_evaluation import (
    IMAGES,
    SHARED_RUN,
    adversarial_images,
    contents,
    settings_for,
    two_purifiers,
)
from tests.small import write_shards

REPOSITORY = Path(__file__).resolve().parents[2]
ATTACKED = re.compile(r"(\w+ · .*: chunk \d+) attacked")


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", IMAGES)


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory, test_set: ShardSet) -> Path:
    """The evaluation of two purifiers by one worker that was left alone."""
    directory = tmp_path_factory.mktemp("one_worker")
    # In a process of its own, as the workers are: what this one computed before may decide a last bit.
    _finish(_workers(directory, test_set, 1))
    return directory


def _workers(directory: Path, test: ShardSet, count: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.evaluation.small_evaluation", str(directory), str(test.path)]
    how: dict[str, Any] = {"cwd": REPOSITORY, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    return [
        subprocess.Popen([*command, str(number), str(count)], stdout=subprocess.PIPE, **how) for number in range(count)
    ]


def _finish(workers: list[subprocess.Popen[str]]) -> str:
    """What the workers said, after all ended well."""
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers), outputs
    return "".join(outputs)


def _assert_same(directory: Path, one_worker: Path) -> None:
    ours, theirs = (settings_for(path, **SHARED_RUN) for path in (directory, one_worker))
    for purifier in ("pretrained", "lora"):
        assert contents(ours, purifier) == contents(theirs, purifier)
    assert adversarial_images(directory) == adversarial_images(one_worker)
    assert not list(directory.rglob("*.partial.safetensors"))
    assert not list(directory.rglob("*.claim-*"))


def test_two_workers(tmp_path: Path, test_set: ShardSet, one_worker: Path) -> None:
    """Two workers attack each chunk once, oblivious ones for both purifiers together, and end with the same records."""
    output = _finish(_workers(tmp_path, test_set, 2))
    assert output.count("finished\n") >= 1
    attacked = Counter(ATTACKED.findall(output))
    assert len(attacked) == 5 + 2 * 2, "five oblivious chunks, two adaptive ones of each purifier, which is named"
    assert set(attacked.values()) == {1}
    assert {name.split(" · ")[0] for name in attacked} == {"oblivious", "pretrained", "lora"}
    _assert_same(tmp_path, one_worker)


def test_four_workers_one_killed(tmp_path: Path, test_set: ShardSet, one_worker: Path) -> None:
    """Of four workers one is killed while it attacks; the others take its chunk over and finish everything."""
    workers = _workers(tmp_path, test_set, 4)
    victim = _kill_attacking(workers, tmp_path)
    output = _finish([worker for worker in workers if worker is not victim])
    assert "taken over" in output
    assert output.count("finished\n") >= 1
    _assert_same(tmp_path, one_worker)


def _kill_attacking(workers: list[subprocess.Popen[str]], directory: Path) -> subprocess.Popen[str]:
    """SIGKILL the first worker that is seen to have claimed an attack; returns it."""
    claims, deadline = directory / "cache" / "attacked" / ".claims", time.monotonic() + 250
    while time.monotonic() < deadline:
        for claim, worker in itertools.product(claims.glob("attack-*.claim-*"), workers):
            if f"process {worker.pid} " in _text(claim):
                worker.send_signal(signal.SIGSTOP)  # what it holds while it stands still, it holds when it is killed
                if f"process {worker.pid} " in _text(claim):
                    worker.send_signal(signal.SIGKILL)
                    worker.communicate()
                    return worker
                worker.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    pytest.fail("never saw a worker attack")


def _text(claim: Path) -> str:
    try:
        return claim.read_text()
    except FileNotFoundError:
        return ""


def test_a_missing_chunk_is_named_until_it_is_there(tmp_path: Path, test_set: ShardSet) -> None:
    """While another living worker has a chunk, a worker does all the rest, says so, and the merge names the chunk."""
    from maep.storage.claims import Claims

    settings = settings_for(tmp_path, attacks=["fgsm"], threat_models=["oblivious"])
    evaluations = two_purifiers(settings, test_set)
    attack = evaluations[0].attacks.undefended(prepare(evaluations[0])[1])
    settings.compute.claim_timeout = 2.0
    with (
        Claims(tmp_path / "cache" / "attacked" / ".claims", 2.0, "another") as other,
        other.hold(f"attack-{attack.identity[:24]}") as is_held,
    ):
        assert is_held
        assert not evaluate_all(evaluations)
        with pytest.raises(UserError, match=r"oblivious/fgsm-Linf-0.1/chunk-0001.json: this chunk has not been"):
            contents(settings)
    assert evaluate_all(evaluations)
    assert len(contents(settings)) == len(contents(settings, "lora")) == 3


def test_no_claim_lists_what_grows_with_the_test_set(
    tmp_path: Path, test_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three times the chunks, folders of records and attacks are listed as often, and claims are as few."""
    scandir, listdir = os.scandir, os.listdir
    listings: Counter[str] = Counter()
    claims: list[int] = []

    def counted(path: Any = ".") -> Any:
        listings[str(path)] += 1
        return scandir(path)

    def noted(path: Any = ".") -> list[Any]:
        names = listdir(path)
        claims.append(len(names))
        return names

    totals = []
    for name, images in (("few", 4), ("many", 12)):
        settings = settings_for(
            tmp_path / name, images=images, chunk_images=1, attacks=["fgsm"], threat_models=["oblivious"]
        )
        evaluations = two_purifiers(settings, test_set)
        listings.clear()
        claims.clear()
        with monkeypatch.context() as patched:
            patched.setattr(os, "scandir", counted)
            patched.setattr(os, "listdir", noted)
            assert evaluate_all(evaluations)
        totals.append(sum(count for path, count in listings.items() if path.startswith(str(tmp_path / name))))
        assert len(claims) >= 3 * images
        assert max(claims) <= 3
    assert totals[0] == totals[1] > 0


def test_a_signal_while_an_image_is_decoded_is_no_damaged_image(
    test_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes every fault of what it does, as the reading of shards does, takes no request to stop for one."""

    def signalled(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(shards, "decode_image", signalled)
    with stopped_at_once(), pytest.raises(Stopped, match="stopped by SIGTERM; the same command goes on"):
        test_set.images([0])
