"""Adversarial shards: the same bytes for any workers and any kill, in budget at 8 bits, refused for another purpose."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maep.attacks.gradient import attack
from maep.cli.shard_commands import worker
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data import adversarial, verification
from maep.data.adversarial import AttackRecord, ShardAttack, distances, make_adversarial_shards, quantise
from maep.data.adversarial_set import adversarial_path, check_adversarial
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_shards_path
from maep.data.shard_manifest import AdversarialManifest
from maep.data.shards import ShardSet, shard_problems, to_float, to_uint8
from maep.models.classifiers import classifier_identity, load_classifier
from maep.runtime.errors import UserError
from maep.storage import sealed
from maep.storage.atomic import sha256_file
from tests.tiny import ROOT, Problem, environment

SOON = 20.0  # seconds after which a thread that should long have come counts as lost


@pytest.fixture(scope="session")
def attackable(problem: Problem) -> list[str]:
    """Arguments that name the tiny problem's clean shards and classifier, wherever the cache is."""
    settings = load_settings("digits", problem.arguments(problem.prepared)[1:])
    weights = [f"data.shards={clean_shards_path(settings)}", f"classifier.weights={classifier_weights(settings)}"]
    return [*problem.arguments(problem.prepared)[1:], "attack.batch_size=20", *weights]


def settings_of(attackable: list[str], cache: Path, *more: str) -> Settings:
    return load_settings("digits", [*attackable, f"run.cache={cache}", *more])


def clean_of(settings: Settings) -> ShardSet:
    return ShardSet(clean_shards_path(settings) / "train")


def identity_of(settings: Settings) -> str:
    return classifier_identity(settings.classifier, classifier_weights(settings))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="session")
def made(attackable: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adversarial shards, made by one worker without a stop."""
    return make_adversarial_shards(settings_of(attackable, tmp_path_factory.mktemp("made")))


def command(attackable: list[str], cache: Path, *more: str) -> list[str]:
    return [sys.executable, "shards/attack.py", "cfg=digits", *attackable, f"run.cache={cache}", *more]


# --- sameness ---


@pytest.mark.parametrize("order", [[(1, 2), (0, 2)], [(2, 3), (0, 3), (1, 3)]])
def test_any_workers_make_the_same_bytes(
    order: list[tuple[int, int]], attackable: list[str], made: Path, tmp_path: Path
) -> None:
    """Two or three workers, in any order, write the same files as one, manifest included; the last one seals."""
    settings = settings_of(attackable, tmp_path)
    for number, share in enumerate(order):
        path = make_adversarial_shards(settings, share)
        assert (path / "manifest.json").exists() == (number == len(order) - 1)
    assert contents(path) == contents(made)
    assert path.name == made.name


def test_concurrent_killed_workers_end_with_the_same_bytes(attackable: list[str], made: Path, tmp_path: Path) -> None:
    """Two worker processes at once, one SIGKILLed after a shard and started again: the same bytes."""
    slow = command(attackable, tmp_path, "--worker")
    processes = [
        subprocess.Popen([*slow, f"{number}/2"], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        for number in (0, 1)
    ]
    directory = tmp_path / "adversarial" / made.name
    deadline = time.monotonic() + 120
    while not (directory / "shard-00000.attack.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGKILL)
    assert processes[0].wait() == -signal.SIGKILL
    assert processes[1].wait() == 0
    assert not (directory / "manifest.json").exists()
    finished = (directory / "shard-00000.tar").stat().st_mtime_ns
    make_adversarial_shards(settings_of(attackable, tmp_path), (0, 2))
    assert contents(directory) == contents(made)
    assert (directory / "shard-00000.tar").stat().st_mtime_ns == finished


def test_a_living_worker_does_a_killed_ones_shards(attackable: list[str], made: Path, tmp_path: Path) -> None:
    """Of two workers that share, one is SIGKILLed with a shard in its hands: the other ends with the same bytes."""
    code = (
        "import sys; from maep.config.load import load_settings\n"
        "from maep.data.adversarial import make_adversarial_shards\n"
        "make_adversarial_shards(load_settings('digits', sys.argv[2:]), (int(sys.argv[1]), 2), shared=True)"
    )
    words = [*attackable, f"run.cache={tmp_path}", "compute.claim_timeout=3"]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, number, *words], cwd=ROOT, env=environment()) for number in "01"
    ]
    directory = tmp_path / "adversarial" / made.name
    deadline = time.monotonic() + 120
    while not list(directory.glob(".tmp-shard-00000.tar*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    processes[0].kill()
    assert processes[0].wait() == -signal.SIGKILL
    assert processes[1].wait() == 0
    assert contents(directory) == contents(made)
    assert (directory / "manifest.json").exists()


def test_damaged_and_foreign_shards_are_made_again(attackable: list[str], made: Path, tmp_path: Path) -> None:
    """Of an unfinished directory only whole shards of this attack are kept; the others are made again."""
    settings = settings_of(attackable, tmp_path)
    path = make_adversarial_shards(settings)
    (path / "manifest.json").unlink()
    os.truncate(path / "shard-00001.tar", 5000)
    foreign = json.loads((path / "shard-00002.attack.json").read_text())
    (path / "shard-00002.attack.json").write_text(json.dumps({**foreign, "identity": "other"}))
    (path / "shard-00003.index.json").unlink()
    kept = (path / "shard-00000.tar").stat().st_mtime_ns
    make_adversarial_shards(settings)
    assert contents(path) == contents(made)
    assert (path / "shard-00000.tar").stat().st_mtime_ns == kept


def test_a_shard_is_hashed_once(
    attackable: list[str], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its maker: not by workers that start later, nor to seal the set. Damage that leaves the stamp is found then,
    as the manifest has what the maker has hashed.
    """
    settings, hashed = settings_of(attackable, tmp_path), list[str]()
    monkeypatch.setattr(verification, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    monkeypatch.setattr(sealed, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    path = make_adversarial_shards(settings, (0, 2))
    damaged = path / "shard-00000.tar"
    before, content = damaged.stat(), bytearray(damaged.read_bytes())
    content[600] ^= 1
    damaged.write_bytes(content)
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    make_adversarial_shards(settings, (1, 2))
    shards = [name for name in hashed if name.startswith("shard-") and "attack" not in name]
    assert sorted(shards) == sorted(name for name in contents(made) if name.endswith((".tar", ".index.json")))
    assert shard_problems(path) == [f"{damaged}: altered (SHA-256 differs from its manifest)"]
    assert (path / "manifest.json").read_bytes() == (made / "manifest.json").read_bytes()


def test_a_finished_shards_record_is_read_once(
    attackable: list[str], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a worker that starts, looks at each claim, and seals the set, though it asks four times."""
    settings = settings_of(attackable, tmp_path)
    path = make_adversarial_shards(settings)
    for missing in ("manifest.json", "shard-00001.tar"):
        (path / missing).unlink()
    reads = list[str]()
    read = AttackRecord.read
    monkeypatch.setattr(AttackRecord, "read", lambda path: reads.append(path.name) or read(path))
    make_adversarial_shards(settings)
    again = ["shard-00001.attack.json"]  # it was made anew
    assert sorted(reads) == sorted([name for name in contents(made) if name.endswith(".attack.json")] + again)


def test_finished_shards_are_left_alone(attackable: list[str], made: Path) -> None:
    """Asked again for shards that are there, nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    make_adversarial_shards(settings_of(attackable, made.parents[1]))
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before


# --- overlap ---


def test_reading_and_writing_go_on_during_an_attack(
    attackable: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attack waits for the next batch of its shard to be read, and for the one before the last to be written:
    in vain, if they came one after the other.
    """
    settings = settings_of(attackable, tmp_path, "attack.batch_size=10")
    shards = [list(range(s.first, s.first + s.count, 10)) for s in clean_of(settings).manifest.shards]
    assert max(map(len, shards)) == 3
    following = dict(pair for firsts in shards for pair in pairwise(firsts))
    before_last = {later: first for firsts in shards for first, later in zip(firsts, firsts[2:], strict=False)}
    read, written = defaultdict(threading.Event), defaultdict(threading.Event)
    batch, write, threads = ShardSet.batch, adversarial._write, set()

    def reading(shards: ShardSet, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        result = batch(shards, indices)
        read[indices[0]].set()
        return result

    def writing(writer: Any, attacked: Any) -> Any:
        result = write(writer, attacked)
        written[attacked.batch.indices[0]].set()
        return result

    def attacking(model: Any, images: Tensor, labels: Tensor, spec: Any, keys: Sequence[int], seed: int) -> Tensor:
        threads.add(threading.get_ident())
        if keys[0] in following:
            assert read[following[keys[0]]].wait(SOON), "the next batch was not read during an attack"
        if keys[0] in before_last:
            assert written[before_last[keys[0]]].wait(SOON), "the batch before the last was not written"
        return attack(model, images, labels, spec, keys, seed)

    monkeypatch.setattr(ShardSet, "batch", reading)
    monkeypatch.setattr(adversarial, "_write", writing)
    monkeypatch.setattr(adversarial, "attack", attacking)
    assert ShardSet(make_adversarial_shards(settings)).verify() == []
    assert threads == {threading.get_ident()}


def test_a_sample_that_is_damaged_ends_it_in_one_line(attackable: list[str], tmp_path: Path) -> None:
    """What the reading thread raises is what the command says; of the shard nothing is left."""
    settings = settings_of(attackable, tmp_path)
    copy = Path(shutil.copytree(str(clean_of(settings).path), tmp_path / "copy"))
    clean, model = ShardSet(copy), load_classifier(settings.classifier, 10, None)
    entry, path = clean.manifest.shards[1], tmp_path / "attacked"
    work = ShardAttack(settings.attack, 0, 60.0, clean, "none", model, torch.device("cpu"), path)
    (copy / entry.name).write_bytes(bytes(byte ^ 255 for byte in (copy / entry.name).read_bytes()))
    with pytest.raises(UserError, match=entry.name):
        work.run((0, 1), shared=False)
    assert (path / "shard-00000.attack.json").is_file()
    assert not list(path.glob("*shard-00001*"))


# --- content ---


def test_manifest_says_what_the_shards_hold(attackable: list[str], made: Path) -> None:
    """Keys, labels and shards are parallel to the clean ones; eps and success are what the stored images give."""
    settings = settings_of(attackable, made.parents[1])
    clean, adversarial = clean_of(settings), ShardSet(made)
    assert adversarial.verify() == []
    assert adversarial.manifest.shards == clean.manifest.shards
    (images, labels), (attacked, same) = (part.batch(range(len(clean))) for part in (clean, adversarial))
    assert torch.equal(labels, same)
    manifest = adversarial.manifest
    assert isinstance(manifest, AdversarialManifest)
    used = distances(attacked, images, "Linf")
    assert manifest.eps_used == float(used.max())
    assert 0 < manifest.eps_used <= settings.attack.eps + 1e-9
    model = load_classifier(settings.classifier, 10, classifier_weights(settings))
    right, still = (model(to_float(part)).argmax(1) == labels for part in (images, attacked))
    assert manifest.clean_accuracy == pytest.approx(100 * float(right.float().mean()))
    assert manifest.adversarial_accuracy == pytest.approx(100 * float(still.float().mean()))
    assert manifest.success_rate == pytest.approx(100 * float((right & ~still).sum() / right.sum()))
    assert manifest.success_rate > 0
    assert manifest.kind == "adversarial"
    assert manifest.clean_identity == clean.identity


@pytest.mark.parametrize("method", ["fgsm", "bim", "pgd"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 1.5)])
@pytest.mark.parametrize("targeted", [False, True])
def test_every_attack_is_stored_in_budget(
    method: str, norm: str, eps: float, targeted: bool, attackable: list[str], tmp_path: Path
) -> None:
    """FGSM, BIM and PGD, in both norms, targeted or not: stored images differ from clean ones by at most eps."""
    how = [f"attack.method={method}", f"attack.norm={norm}", f"attack.eps={eps}", f"attack.step={eps / 2}"]
    settings = settings_of(attackable, tmp_path, *how, f"attack.targeted={str(targeted).lower()}")
    clean = clean_of(settings)
    adversarial = ShardSet(make_adversarial_shards(settings))
    used = distances(adversarial.batch(range(120))[0], clean.batch(range(120))[0], norm)
    assert 0.5 * eps < float(used.max()) <= eps
    assert isinstance(adversarial.manifest, AdversarialManifest)
    assert 0 <= adversarial.manifest.success_rate <= 100


def at_the_edge(norm: str, eps: float, count: int = 50) -> tuple[Tensor, Tensor]:
    """Clean 8-bit images, and images exactly eps away from them."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(60, 196, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    noise = torch.randn(count, 3, 16, 16, generator=generator)
    delta = noise.sign() if norm == "Linf" else noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return clean, to_float(clean) + eps * delta


@pytest.mark.parametrize(
    ("norm", "eps"), [("Linf", 8 / 255), ("Linf", 0.1), ("Linf", 2.6 / 255), ("L2", 0.25), ("L2", 0.5), ("L2", 3.0)]
)
def test_rounding_keeps_the_budget(norm: str, eps: float) -> None:
    """An image on the edge of its ball stays inside after rounding to 8 bits, and close to the edge."""
    clean, adversarial = at_the_edge(norm, eps)
    used = distances(quantise(adversarial, clean, norm, eps), clean, norm)
    assert float(used.max()) <= eps + 1e-12
    assert float(used.min()) >= (int(eps * 255 + 1e-6) / 255 if norm == "Linf" else 0.9 * eps)
    if eps in (0.1, 2.6 / 255, 0.25, 0.5):
        plain = distances(to_uint8(adversarial), clean, norm)
        assert float(plain.max()) > eps, "plain rounding would have served"


def test_rounding_inside_the_ball_is_plain() -> None:
    """An image well inside its ball, or at the ends of the range, is rounded to its nearest levels and no more."""
    clean, adversarial = at_the_edge("L2", 0.3)
    assert torch.equal(quantise(adversarial, clean, "L2", 1.0), to_uint8(adversarial))
    ends = torch.tensor([0, 255, 3, 252], dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    moved = (to_float(ends) + torch.tensor([-1, 1, -1, 1]).view(1, 1, 2, 2) * 8 / 255).clamp(0, 1)
    assert torch.equal(quantise(moved, ends, "Linf", 8 / 255), to_uint8(moved))


# --- refusals ---


def test_shards_for_another_purpose_are_refused(attackable: list[str], made: Path, tmp_path: Path) -> None:
    """Adversarial shards made for another classifier, attack or image set are refused, naming which."""
    settings = settings_of(attackable, tmp_path)
    clean, adversarial, identity = clean_of(settings), ShardSet(made), identity_of(settings)
    check_adversarial(adversarial, clean, identity, settings)
    with pytest.raises(UserError, match="another classifier"):
        check_adversarial(adversarial, clean, "0" * 64, settings)
    with pytest.raises(UserError, match="another image set"):
        check_adversarial(adversarial, ShardSet(clean.path.parent / "test"), identity, settings)
    with pytest.raises(UserError, match="not adversarial shards"):
        check_adversarial(clean, clean, identity, settings)
    for change in ({"eps": 0.2}, {"norm": "L2"}, {"steps": 3}, {"method": "bim"}, {"targeted": True}):
        other = replace(settings, attack=replace(settings.attack, **change))
        with pytest.raises(UserError, match=f"another attack: made with attack.{next(iter(change))}="):
            check_adversarial(adversarial, clean, identity, other)


def test_given_shards_are_checked_not_made(attackable: list[str], made: Path, tmp_path: Path) -> None:
    """attack.shards takes fitting shards as they are; with other weights they are refused."""
    assert make_adversarial_shards(settings_of(attackable, tmp_path, f"attack.shards={made}")) == made
    state = load_file(settings_of(attackable, tmp_path).classifier.weights)
    state["linear.bias"] += 1
    save_file(state, tmp_path / "other.safetensors")
    given = [f"attack.shards={made}", f"classifier.weights={tmp_path / 'other.safetensors'}"]
    with pytest.raises(UserError, match=f"{made}: made for another classifier"):
        make_adversarial_shards(settings_of(attackable, tmp_path, *given))


def test_place_depends_on_what_counts(attackable: list[str], tmp_path: Path) -> None:
    """Another attack, seed, batch size or classifier has another place; the number of threads has not."""
    base = settings_of(attackable, tmp_path)
    clean = clean_of(base)

    def place(*more: str, identity: str = "a") -> Path:
        return adversarial_path(settings_of(attackable, tmp_path, *more), clean, identity)

    others = [place("attack.eps=0.2"), place("run.seed=5"), place("attack.batch_size=7"), place(identity="b")]
    assert len({place(), *others}) == 5
    assert place("compute.threads=2", "data.workers=1") == place()


def test_missing_inputs_are_named(attackable: list[str], tmp_path: Path) -> None:
    """Without clean shards or weights it says what is missing and what makes it, and writes nothing."""
    with pytest.raises(UserError, match=r"no clean train shards; run shards/build\.py"):
        make_adversarial_shards(load_settings("digits", [f"run.cache={tmp_path / 'cache'}"]))
    with pytest.raises(UserError, match=r"classifier\.weights=.*nowhere.*no such file"):
        make_adversarial_shards(settings_of(attackable, tmp_path / "cache", "classifier.weights=nowhere"))
    with pytest.raises(UserError, match="run the classifier stage"):
        make_adversarial_shards(settings_of(attackable, tmp_path / "cache", "classifier.weights=null"))
    with pytest.raises(UserError, match=r"attack\.eps=0\.002: below one level"):
        make_adversarial_shards(settings_of(attackable, tmp_path / "cache", "attack.eps=0.002"))
    assert not (tmp_path / "cache").exists()


def test_damaged_clean_shard_is_named(attackable: list[str], tmp_path: Path) -> None:
    """An altered clean shard is found before anything is attacked, and named."""
    settings = settings_of(attackable, tmp_path)
    copy = Path(shutil.copytree(clean_shards_path(settings), tmp_path / "clean"))
    shard = copy / "train" / "shard-00002.tar"
    content = np.fromfile(shard, dtype=np.uint8)
    content[3000] ^= 1
    content.tofile(shard)
    assert shard_problems(copy / "train")
    with pytest.raises(UserError, match=r"shard-00002\.tar: altered"):
        make_adversarial_shards(settings_of(attackable, tmp_path / "cache", f"data.shards={copy}"))
    assert not (tmp_path / "cache" / "adversarial").exists()


def test_impossible_share_ends_with_one_line() -> None:
    """A share that is not i/n with i < n: exit code 2 and one line that says what is expected."""
    assert worker("0/1") == (0, 1)
    assert worker("2/3") == (2, 3)
    for share in ("a/b", "1", "0/0", "-1/2", "1/2/3"):
        with pytest.raises(UserError, match="expected i/n"):
            worker(share)
    words = [sys.executable, "shards/attack.py", "cfg=digits", "--worker", "2/2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --worker 2/2: expected i/n")
    assert done.stderr.count("\n") == 1
