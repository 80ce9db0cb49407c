"""Purifiers on published denoisers: imported by a command, saved, used by every kind of them, attacked; refusals."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maep import load_purifier
from maep.attacks.threat_models import StraightThrough
from maep.cli.checkpoint import main as checkpoint_command
from maep.config.load import load_settings
from maep.models.published_denoisers import Sizes
from maep.purifiers.diffpure import DiffPurePurifier
from maep.purifiers.gdmp import GdmpPurifier
from maep.purifiers.scoreopt import ScoreOptPurifier
from maep.runtime.errors import UserError
from tests.models.published_files import as_diffusers, drawn
from tests.models.test_published_denoisers import FOUR, SMALL, score_sde_file, shapes_of

TRAINED = ["purifier.kind=diffpure", "objective.name=denoise", "pretrain.mask_ratio=0"]
PUBLISHED = ["diffpure.layout=ddpm", "diffpure.width=32", "diffpure.multipliers=[1,2]", "diffpure.attention=[1]"]


def weights(layout: str, sizes: Sizes = SMALL) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in drawn(shapes_of(layout, sizes)).items()}


def pictures(count: int = 2, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def imported(path: Path, kind: str = "diffpure") -> Path:
    target = path.parent / f"{path.stem}-{kind}"
    assert checkpoint_command(["import", str(path), "--kind", kind, "--to", str(target)]) == 0
    return target


@pytest.mark.parametrize("layout", ["score_sde", "ddpm", "improved", "guided", "edm"])
def test_a_published_file_becomes_a_purifier(tmp_path: Path, layout: str) -> None:
    """By one command, with every tensor as it was, of images of any size; saved, it says what its network is."""
    sizes = FOUR if layout == "improved" else SMALL
    given = weights(layout, sizes)
    path = tmp_path / "file.pth"
    if layout == "score_sde":
        score_sde_file(path, {name: 2 * tensor for name, tensor in given.items()}, list(given.values()))
    else:
        torch.save(given, path)
    purifier = load_purifier(imported(path))
    assert isinstance(purifier, DiffPurePurifier)
    assert (purifier.network.layout, purifier.network.latest) == (layout, 1.0)
    assert all(torch.equal(purifier.weights()[name], tensor) for name, tensor in given.items())
    assert len(purifier.weights()) == len(given)
    assert "layout" in str(purifier.identity_facts())
    few = purifier.used_as(load_settings(None, [*TRAINED, "diffpure.steps=2", "diffpure.sampler=ddim"]))
    few.reseed(0)
    purified = few(pictures(1, 17))
    assert purified.shape == (1, 3, 17, 17)
    assert (purified - pictures(1, 17)).abs().max() > 0.01


def test_one_network_serves_every_kind(tmp_path: Path) -> None:
    """A denoiser that was imported as one kind is used as another is set; its exact gradient is not BPDA's."""
    torch.save(weights("ddpm"), tmp_path / "ema.ckpt")
    purifier = load_purifier(imported(tmp_path / "ema.ckpt"))
    words = ["objective.name=denoise", "pretrain.mask_ratio=0"]
    gdmp = purifier.used_as(load_settings(None, ["purifier.kind=gdmp", *words, "gdmp.steps=1", "gdmp.rounds=2"]))
    assert isinstance(gdmp, GdmpPurifier)
    assert gdmp.model is purifier.model  # type: ignore[attr-defined]
    words += ["purifier.kind=scoreopt", "scoreopt.steps=2", "scoreopt.sigma=2", "scoreopt.lr=0.1"]
    scoreopt = purifier.used_as(load_settings(None, [*words, "scoreopt.latest=1"]))
    assert isinstance(scoreopt, ScoreOptPurifier)  # second order, through its attentions

    def gradient(model: torch.nn.Module, subject: GdmpPurifier | ScoreOptPurifier) -> Tensor:
        images = pictures().requires_grad_()
        subject.reseed(0)
        (found,) = torch.autograd.grad((model(images) * pictures().flip(0)).sum(), images)
        return found

    for subject in (gdmp, scoreopt):
        exact, straight = gradient(subject, subject), gradient(StraightThrough(subject), subject)
        assert exact.isfinite().all()
        assert (exact - straight).abs().max() > 1e-3


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Keys that are missing or renamed, and other shapes, the first three by name; a kind that has no such files."""
    given = weights("ddpm")
    renamed = {name.replace("mid.attn_1.q", "mid.attn_1.query"): tensor for name, tensor in given.items()}
    torch.save(renamed, tmp_path / "a.pt")
    expected = (
        r"a\.pt: weights do not fit: mid\.attn_1\.q\.weight \(missing\), mid\.attn_1\.q\.bias \(missing\), .* and 1"
    )
    with pytest.raises(UserError, match=expected):
        DiffPurePurifier.from_published(tmp_path / "a.pt")
    torch.save({**given, "conv_out.weight": torch.zeros(6, 32, 3, 3)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"conv_out\.weight \(is \(6, 32, 3, 3\), expected \(3, 32, 3, 3\)\)"):
        GdmpPurifier.from_published(tmp_path / "b.pt")
    torch.save({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(1)}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt: .* of no layout .*its first names are conv1\.weight, fc\.bias"):
        checkpoint_command(["import", str(tmp_path / "c.pt"), "--kind", "diffpure", "--to", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"there are no published weights of a purifier of kind flowpure"):
        checkpoint_command(["import", str(tmp_path / "b.pt"), "--kind", "flowpure", "--to", str(tmp_path / "out")])


@pytest.mark.parametrize("layout", ["score_sde", "ddpm", "improved", "guided", "edm", "diffusers"])
def test_a_key_that_is_missing_or_renamed_is_named(tmp_path: Path, layout: str) -> None:
    """Of every layout, wherever in the network it lies, and the others are not; by the name that the layout has."""
    sizes = FOUR if layout == "improved" else SMALL
    given = weights("ddpm" if layout == "diffusers" else layout, sizes)
    marks = {
        "all_modules.0.weight",
        "temb.dense.0.weight",
        "time_embed.0.weight",
        "map_layer0.weight",
    }  # by which a layout is known
    names = [name for name in given if name not in marks]
    for lost in names[:: len(names) // 3]:
        others = {name: tensor for name, tensor in given.items() if name != lost}
        for found in (others, {**others, f"{lost}_": given[lost]}):
            with pytest.raises(UserError, match=rf"weights do not fit: {re.escape(lost)} \(missing\)(?!.*missing)"):
                DiffPurePurifier.from_published(written(tmp_path, layout, found))


def written(folder: Path, layout: str, tensors: dict[str, Tensor]) -> Path:
    """A file, or of diffusers a folder."""
    if layout == "score_sde":
        return score_sde_file(folder / "file.pth", tensors, list(tensors.values()))
    if layout == "diffusers":
        torch.save(as_diffusers(tensors, 2), folder / "diffusion_pytorch_model.bin")
        return folder
    torch.save(tensors, folder / "file.pt")
    return folder / "file.pt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diffpure.width=48"], r"diffpure\.width=48: must be a multiple of 32 with layout=ddpm"),
        (["diffpure.unshuffle=2"], r"diffpure\.unshuffle=2: is of layout=own"),
        (["diffpure.attention=[2]"], r"diffpure\.attention=\[2\]: there are 2 levels"),
        (["diffpure.layout=edm", "diffpure.multipliers=[1,1,1,1,1,1,1]"], r"multipliers=.*: at most 6 levels"),
        (["diffpure.layout=own"], r"diffpure\.attention=\[1\]: is of published layouts"),
        (["diffpure.layout=edn"], r"diffpure\.layout=edn .*choose one of own, score_sde, ddpm, improved, guided, edm"),
        (
            ["data.image_size=33", "model.image_size=33", "model.patch_size=1"],
            r"model\.image_size=33: .* a multiple of 2",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: list[str], message: str) -> None:
    """On the command line, before anything is made; an odd size of images among them."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*TRAINED, *PUBLISHED, *words])


def test_the_projects_own_network_is_saved_as_before() -> None:
    """What was trained before there were layouts keeps its identity, and a checkpoint of it goes on."""
    own = DiffPurePurifier.from_settings(
        load_settings(None, [*TRAINED, "diffpure.width=16", "diffpure.multipliers=[1]"])
    )
    entries = {"width": 16, "multipliers": [1], "blocks": 1, "unshuffle": 1, "latest": 0.2}
    assert own.config()["model"] == entries
    settings = load_settings(None, [*TRAINED, *PUBLISHED])
    assert DiffPurePurifier.shared_network(settings)["layout"] == "ddpm"
    assert "layout" not in DiffPurePurifier.shared_network(load_settings(None, TRAINED))
