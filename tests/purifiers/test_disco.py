"""DISCO: published files, cascades, memory, refusals; trained by the pipeline, on two processes, killed and resumed."""

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maep import load_purifier
from maep.cli.checkpoint import main as checkpoint_command
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.evaluation.stage import purifiers_of
from maep.pipeline.execution import run_pipeline
from maep.purifiers.disco import DiscoPurifier, DiscoSettings
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json, sha256_file
from tests.tiny import Problem

SMALL = ["purifier.kind=disco", "disco.blocks=1", "disco.features=8", "disco.hidden=[16]"]
TRAINED = [*SMALL, "pretrain.mask_ratio=0", "objective.name=purification", "pretrain.lr=0.01"]
SHORT = ["pretrain.steps=12", "pretrain.save_every=4"]


def purifier(**options: int) -> DiscoPurifier:
    torch.manual_seed(0)
    settings = load_settings(None, [*TRAINED, *(f"purify.{name}={value}" for name, value in options.items())])
    return DiscoPurifier.from_settings(settings)


def published(blocks: int = 16, features: int = 64, hidden: tuple[int, ...] = (256,) * 4) -> dict[str, Tensor]:
    """The tensors of a published file by the specification's table, random."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("sub_mean", "add_mean"):
        shapes |= {f"encoder.{part}.weight": (3, 3, 1, 1), f"encoder.{part}.bias": (3,)}
    convolutions = {"encoder.head.0": 3, f"encoder.body.{blocks}": features}
    convolutions |= {f"encoder.body.{i}.body.{j}": features for i in range(blocks) for j in (0, 2)}
    for name, channels in convolutions.items():
        shapes |= {f"{name}.weight": (features, channels, 3, 3), f"{name}.bias": (features,)}
    widths = (9 * features + 4, *hidden, 3)
    for number, (before, after) in enumerate(pairwise(widths)):
        shapes |= {f"imnet.layers.{2 * number}.weight": (after, before), f"imnet.layers.{2 * number}.bias": (after,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(path: Path, tensors: dict[str, Tensor], prefix: str = "") -> Path:
    """As the authors save them: model, optimizer and epoch in one file."""
    state = {prefix + name: tensor for name, tensor in tensors.items()}
    moments = {number: {"exp_avg": tensor} for number, tensor in enumerate(tensors.values())}
    model = {"name": "liif", "args": {"encoder_spec": {"name": "edsr-baseline"}}, "sd": state}
    optimizer = {"name": "adam", "args": {"lr": 1e-4}, "sd": {"state": moments, "param_groups": []}}
    torch.save({"model": model, "optimizer": optimizer, "epoch": 40}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_files_load_key_for_key(tmp_path: Path, prefix: str) -> None:
    """All 82 tensors, the unused shifts of colour among them, also from several GPUs; as a purifier/ they ship."""
    tensors = published()
    assert len(tensors) == 82
    path = write(tmp_path / "epoch-best.pth", tensors, prefix)
    words = ["import", str(path), "--kind", "disco", "--to", str(tmp_path / "purifier")]
    assert checkpoint_command(words) == 0
    purifier = load_purifier(tmp_path / "purifier")
    assert isinstance(purifier, DiscoPurifier)
    assert purifier.network == DiscoSettings()
    state = purifier.weights()
    assert {name for name in tensors if "_mean." not in name} == set(state)
    assert all(torch.equal(state[name], tensors[name]) for name in state)
    images = torch.rand(1, 3, 10, 9)
    assert torch.equal(purifier(images), DiscoPurifier.from_published(path)(images))


def test_a_file_of_another_width_is_that_network(tmp_path: Path) -> None:
    """Depth and widths are read off the tensors."""
    path = write(tmp_path / "small.pth", published(2, 8, (16, 12)))
    assert DiscoPurifier.from_published(path).network == DiscoSettings(2, 8, [16, 12])


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A name or a shape that differs, another member's weights, a kind without published files: one line each."""
    tensors = published(2, 8, (16,))
    renamed = {name.replace("body.1.body.2", "body.1.body.3"): tensor for name, tensor in tensors.items()}
    with pytest.raises(UserError, match=r"a\.pth: weights do not fit: encoder\.body\.1\.body\.2\.weight \(missing\)"):
        DiscoPurifier.from_published(write(tmp_path / "a.pth", renamed))
    reshaped = {**tensors, "encoder.body.0.body.0.weight": torch.zeros(8, 8, 1, 1)}
    with pytest.raises(UserError, match=r"body\.0\.weight \(is \(8, 8, 1, 1\), expected \(8, 8, 3, 3\)\)"):
        DiscoPurifier.from_published(write(tmp_path / "b.pth", reshaped))
    with pytest.raises(UserError, match=r"weights do not fit: .*\(missing\), .*\(missing\), .*\(missing\) and "):
        DiscoPurifier.from_published(write(tmp_path / "c.pth", {"conv1.weight": torch.zeros(4, 3, 3, 3)}))
    words = ["import", str(tmp_path / "a.pth"), "--to", str(tmp_path / "out"), "--kind"]
    with pytest.raises(UserError, match=r"a\.pth: there are no published weights of a purifier of kind median"):
        checkpoint_command([*words, "median"])
    with pytest.raises(UserError, match="--kind=dsico: no such purifier; did you mean disco"):
        checkpoint_command([*words, "dsico"])
    with pytest.raises(UserError, match="give --kind KIND and --to PATH"):
        checkpoint_command(["import", str(tmp_path / "a.pth")])
    assert not (tmp_path / "out").exists()


def test_a_cascade_purifies_what_it_purified() -> None:
    """Two passes are P(P(x)), clipped between them; gradients go through both."""
    images = torch.rand(2, 3, 12, 12, requires_grad=True)
    once, twice = purifier(), purifier(passes=2)
    assert torch.equal(twice(images), once(once(images)))
    assert torch.equal(once.with_options(PurifySettings(passes=2))(images), twice(images))
    (gradient,) = torch.autograd.grad(twice(images).sum(), images)
    assert gradient.flatten(1).ne(0).any(1).all()


def test_few_images_at_a_time_are_the_same() -> None:
    """`batch_tiles` bounds pixels; values and gradients do not depend on it."""
    images, whole, parts = torch.rand(5, 3, 32, 32, requires_grad=True), purifier(), purifier(batch_tiles=2)
    assert parts.images_at_once(32, 32) == 2
    assert parts.images_at_once(224, 224) == 1
    torch.testing.assert_close(parts(images), whole(images), rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(each(images).square().sum(), images)[0] for each in (parts, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("disco.hidden=[]", r"disco\.hidden=\[\]: expected at least one width"),
        (
            "objective.name=maep pretrain.mask_ratio=0.5",
            r"pretrain\.mask_ratio=0\.5: disco sees whole images; set it to 0",
        ),
        ("objective.name=trades_latent", "compares latents, which disco has not; choose trades_pixel"),
        ("purify.overlap=4", r"purify\.overlap=4: disco has no such option; it has purify\.batch_tiles and purify\.p"),
    ],
)
def test_settings_that_do_not_fit_are_refused(word: str, message: str) -> None:
    """On the command line, before anything is made."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*TRAINED, *word.split()])


def launch(problem: Problem, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return problem.run("pretrain", run, *TRAINED, *SHORT, *more, nproc=2)


def test_it_is_trained_as_any_other(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """On two processes, paused and gone on with: the same bits as in one go; the loss falls; stages and files are its.

    It is then judged under its kind; finetuning it is refused by name.
    """
    whole = Path(shutil.copytree(problem.prepared, tmp_path / "whole"))
    for run, words in ((whole, []), (run_dir, ["pretrain.pause_at=5"]), (run_dir, [])):
        done = launch(problem, run, *words)
        assert done.returncode == (4 if words else 0), done.stdout + done.stderr
    first, second = (sha256_file(run / "purifier/model.safetensors") for run in (whole, run_dir))
    assert first == second
    losses = [line["loss"] for line in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())]
    assert losses[-1] < 0.7 * losses[0]
    assert read_json(whole / "purifier/config.json")["kind"] == "disco"
    trained = load_purifier(whole)
    assert isinstance(trained, DiscoPurifier)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_purifier(sorted((whole / "checkpoints").iterdir())[-1])(images), trained(images))
    settings = load_settings("digits", problem.arguments(whole, *TRAINED, *SHORT)[1:])
    assert purifiers_of(settings) == {"pretrained": whole / "purifier"}
    with pytest.raises(UserError, match=r"stage=finetune: purifier\.kind=disco needs none"):
        run_pipeline(settings, "finetune", lambda name, _: pytest.fail(f"{name} was launched"))
    judged = ["evaluation.images=6", "evaluation.adaptive_images=6", "evaluation.attacks=[pgd-2]"]
    settings = load_settings("digits", problem.arguments(whole, *TRAINED, *SHORT, *judged)[1:])
    run_pipeline(settings, "all", lambda name, _: pytest.fail(f"{name} was launched"))
    assert {row["purifier"] for row in read_json(whole / "report.json")["results"]} == {"disco"}
