"""Attacks that follow a fast surrogate: what they make is kept apart, and every verdict is the exact model's."""

from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.attack_state import load_tensors
from maep.attacks.gradient import attack
from maep.config.evaluation_settings import EvaluationSettings, PurifySettings
from maep.config.training_settings import ModelSettings
from maep.data.shards import ShardSet
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation, prepare
from maep.evaluation.scoring.reduced_model import SurrogateSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier
from tests.evaluation.small_evaluation import IMAGES, contents, directory_of, run, settings_for
from tests.small import Blur, digits, train_small, write_shards


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", IMAGES)


def test_records_of_a_bf16_attack(tmp_path: Path, test_set: ShardSet) -> None:
    """Other images than fp32's, beside them in the cache; predictions are those of the fp32 modules on them."""
    exact = settings_for(tmp_path, attacks=["pgd-3"])
    run(exact, test_set)
    before = contents(exact)
    reduced = settings_for(tmp_path, attacks=["pgd-3"], precision="bf16")
    run(reduced, test_set)
    records = contents(reduced)
    assert [record["identity"] for record in records] != [record["identity"] for record in before]
    assert {record["depends_on"].get("precision") for record in before} == {None}
    classifier, purifier = train_small(), Blur().requires_grad_(False)
    paths = list(Path(reduced.run.cache).glob("attacked/*/chunk-0000.safetensors"))
    assert len(paths) == 2
    images = {tuple((load_tensors(path) or ({},))[0]["images"].flatten().tolist()) for path in paths}
    assert len(images) == 2, "the two attacks made different images"
    adaptive = next(record for record in records if record["threat_model"] == "adaptive")
    state = load_tensors(directory_of(reduced) / "adaptive" / "pgd-3-Linf-0.1" / "chunk-0000.safetensors")
    assert state
    answers = classifier(purifier(state[0]["images"])).argmax(1)
    assert adaptive["predictions"]["defended_adversarial"] == answers.tolist() == state[0]["predictions"].tolist()
    run(exact, test_set)
    assert contents(exact) == before


def test_exact_attacks_keep_their_identity() -> None:
    """The default adds nothing to what an attack's images depend on, so that images made before stay valid."""
    assert SurrogateSettings.of(EvaluationSettings()).is_exact
    assert SurrogateSettings.of(EvaluationSettings()).facts() == {}
    assert SurrogateSettings("bf16", compile=True).facts() == {"precision": "bf16", "compile": True}


def test_compiled(tmp_path: Path, test_set: ShardSet) -> None:
    """The purifier's network and the classifier are really compiled; attacks through them go where exact ones do."""
    encoder = {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 1}
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 1}
    model = MaskedAutoencoder(ModelSettings(image_size=8, patch_size=4, **encoder, **decoder))
    purifier = MAEPurifier(model, PurifySettings(overlap=2)).eval()
    settings = settings_for(tmp_path, compile=True)
    defense = Defense(purifier, train_small(), "it", "small")
    evaluation = Evaluation(settings, defense, test_set, directory_of(settings))
    task = next(task for task in prepare(evaluation) if task.threat_model == "adaptive")
    chunk = evaluation.attacks.defended(task)
    assert chunk.surrogate is not None
    images, labels = digits()[0][:4], digits()[1][:4]
    counters.clear()
    spec = AttackSpec("pgd", "Linf", 0.1, 0.025, 2, random_start=True, targeted=False)
    followed, exact = (attack(net, images, labels, spec, range(4), 0) for net in (chunk.surrogate, chunk.model))
    assert counters["stats"]["unique_graphs"] >= 2
    assert float((followed - exact).abs().mean()) < 0.01
    torch.testing.assert_close(chunk.surrogate(images), chunk.model(images), rtol=1e-3, atol=1e-3)
    assert isinstance(chunk.model, nn.Sequential)


def test_what_cannot_be_compiled_is_followed_as_it_is(
    tmp_path: Path, test_set: ShardSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine without a compiler the attack is the exact model's, which is said and stands in the records."""

    def fails(graph: object, inputs: object) -> NoReturn:
        raise RuntimeError("g++ was not found")

    compiling, exact = (settings_for(tmp_path, attacks=["pgd-3"], compile=each) for each in (True, False))
    run(exact, test_set)
    before = contents(exact)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    run(compiling, test_set)
    records = contents(compiling)
    assert "evaluation.compile=true: torch.compile failed" in capsys.readouterr().out
    assert [record["predictions"] for record in records] == [record["predictions"] for record in before]
    assert all("torch.compile failed" in " ".join(record["warnings"]) for record in records)
