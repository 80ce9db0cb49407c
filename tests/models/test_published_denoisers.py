"""Published denoisers: names, sizes and outputs against networks written out from their tables; other files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from maep.models.noise_schedule import BETA_MAX, BETA_MIN, denoised
from maep.models.published_denoisers import BUILDERS, PUBLISHED, Sizes, build_published, read_published
from maep.models.published_schedules import cosine_steps, linear_steps
from maep.models.weights import load_weights
from maep.runtime.errors import UserError
from tests.models.published_files import (
    Shapes,
    as_diffusers,
    ddpm,
    ddpm_shapes,
    drawn,
    edm,
    edm_shapes,
    guided,
    guided_shapes,
    score_sde,
    score_sde_shapes,
)

SMALL = Sizes(32, [1, 2], 2, [1])
SHAPES: dict[str, Callable[..., Shapes]] = {
    "score_sde": score_sde_shapes,
    "ddpm": ddpm_shapes,
    "improved": lambda *sizes: guided_shapes(*sizes, resizes=False),
    "guided": lambda *sizes: guided_shapes(*sizes, resizes=True),
    "edm": edm_shapes,
}
FOUR = Sizes(32, [1, 2, 2, 2], 1, [1, 2])  # of the layout `improved`, whose files have four levels


def shapes_of(layout: str, sizes: Sizes) -> Shapes:
    return SHAPES[layout](sizes.width, sizes.multipliers, sizes.blocks, sizes.attention)


def times_at(steps: Tensor, *numbers: int) -> Tensor:
    """The times of [0, 1] at which ᾱ is that of these steps, float64."""
    grown = steps[list(numbers)]
    return ((BETA_MIN**2 + 2 * (BETA_MAX - BETA_MIN) * grown).sqrt() - BETA_MIN) / (BETA_MAX - BETA_MIN)


def noisy(side: int = 16) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network_of(layout: str, sizes: Sizes, tensors: dict[str, Tensor]) -> torch.nn.Module:
    network = build_published(layout, sizes, 1.0).double()
    load_weights(network, tensors, layout)
    return network


@pytest.mark.parametrize("layout", BUILDERS)
def test_the_published_sizes_have_the_names_of_their_files(layout: str) -> None:
    """Every name and shape of the published networks, as their tables have them."""
    with torch.device("meta"):
        state = build_published(layout, PUBLISHED[layout], 1.0).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes_of(layout, PUBLISHED[layout])


@pytest.mark.parametrize(
    ("layout", "multipliers", "blocks", "millions", "giga"),
    [
        ("score_sde", [1, 2, 2, 2], 8, 106.6, 37.2),
        ("score_sde", [1, 2, 2, 2], 4, 61.8, 21.7),
        ("ddpm", [1, 2, 2, 2], 2, 35.75, 12.5),
        ("edm", [2, 2, 2], 4, 55.7, 42.5),
    ],
)
def test_they_have_the_parameters_and_the_cost_that_were_counted(
    layout: str, multipliers: list[int], blocks: int, millions: float, giga: float
) -> None:
    """DDPM++ deep, DDPM++, DDPM and EDM's on an image of CIFAR-10; DDPM's file has four bytes a parameter."""
    with torch.device("meta"):
        network = build_published(layout, Sizes(128, multipliers, blocks, [1]), 1.0)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 32, 32), torch.empty(1))
    parameters = sum(each.numel() for each in network.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=1e-3)
    assert counter.get_total_flops() / 1e9 == pytest.approx(giga, rel=0.01)
    if layout == "ddpm":
        assert 0 < 143_046_049 - 4 * parameters < 1e5  # beside them, names and shapes


def test_score_sde_is_what_its_layers_say() -> None:
    """Written out from the table of `all_modules`; the deep network's list has its published length."""
    weights = drawn(score_sde_shapes(*vars(SMALL).values()))
    times = torch.tensor([0.01, 0.12], dtype=torch.float64)
    expected = score_sde(weights, 2, 2, noisy(), times)
    torch.testing.assert_close(network_of("score_sde", SMALL, weights)(noisy(), times), expected)
    names = shapes_of("score_sde", PUBLISHED["score_sde"])
    assert {int(name.split(".")[1]) for name in names} == set(range(91))
    assert [n for n in range(91) if f"all_modules.{n}.NIN_0.W" in names] == [*range(13, 28, 2), 47, 78]


def test_ddpm_is_what_its_layers_say() -> None:
    """At the steps of Ho et al. whose ᾱ the times have."""
    weights, steps = drawn(ddpm_shapes(*vars(SMALL).values())), (3, 140)
    expected = ddpm(weights, 2, 2, noisy(), torch.tensor(steps, dtype=torch.float64))
    found = network_of("ddpm", SMALL, weights)(noisy(), times_at(linear_steps(), *steps))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # frequencies are in fp32


@pytest.mark.parametrize("layout", ["improved", "guided"])
def test_guided_diffusion_is_what_its_layers_say(layout: str) -> None:
    """Four heads and the cosine schedule, told as a quarter of its steps; heads of 64 and Ho et al.'s."""
    sizes = Sizes(64, [1, 2], 2, [1])
    weights, steps = drawn(shapes_of(layout, sizes)), (30, 400)
    told, table, heads = (1.0, linear_steps(), lambda channels: channels // 64) if layout == "guided" else (
        0.25, cosine_steps(), lambda channels: 4
    )  # fmt: skip
    expected = guided(weights, heads, noisy(), told * torch.tensor(steps, dtype=torch.float64))
    found = network_of(layout, sizes, weights)(noisy(), times_at(table, *steps))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # frequencies are in fp32


def test_edm_is_what_its_layers_say() -> None:
    """D(v, σ) written out from its layers and its preconditioning, where D is read off the noise, up to EDM's 80."""
    weights, sigma = drawn(edm_shapes(*vars(SMALL).values())), torch.tensor([0.02, 80.0], dtype=torch.float64)
    found = denoised(network_of("edm", SMALL, weights), noisy(), sigma)
    torch.testing.assert_close(found, edm(weights, 2, 2, noisy(), sigma), rtol=1e-5, atol=1e-5)


def test_other_files_of_edm(tmp_path: Path) -> None:
    """Below the name of the preconditioning, with levels of other images and an augmentation's layer: the same; a
    network that resizes by another filter is none of these.
    """
    weights = drawn(edm_shapes(*vars(SMALL).values()))
    larger = {f"model.{name.replace('16x16', 'x').replace('32x32', '64x64').replace('.x_', '.32x32_')}": tensor
              for name, tensor in weights.items()}  # fmt: skip
    torch.save({**larger, "model.map_augment.weight": torch.zeros(32, 9)}, tmp_path / "a.pt")
    found = read_published(tmp_path / "a.pt")
    assert (found.layout, found.sizes) == ("edm", SMALL)
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in weights.items())
    name = "enc.16x16_down.conv0.resample_filter"
    torch.save({**weights, name: torch.ones(1, 1, 4, 4)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=rf"b\.pt: {name}: is no mean of four pixels"):
        read_published(tmp_path / "b.pt")


def test_the_schedules_are_those_of_their_papers() -> None:
    """Products of 1 - β: of Ho et al.'s β from 1e-4 to 0.02; cos² of Nichol and Dhariwal, up to its last steps."""
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    torch.testing.assert_close(torch.exp(-linear_steps()), (1 - betas).cumprod(0))
    share = torch.arange(1, 3991, dtype=torch.float64) / 4000
    left = ((share + 0.008) / 1.008 * torch.pi / 2).cos().square() / torch.tensor(
        0.008 / 1.008 * torch.pi / 2
    ).cos() ** 2
    torch.testing.assert_close(torch.exp(-cosine_steps())[:3990], left.double(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("layout", "sizes"), [(each, FOUR if each == "improved" else SMALL) for each in BUILDERS])
def test_a_file_tells_its_layout_and_sizes(tmp_path: Path, layout: str, sizes: Sizes) -> None:
    """Of networks smaller than the published ones, too; the tensors are all there."""
    weights = {name: tensor.half() for name, tensor in drawn(shapes_of(layout, sizes)).items()}
    torch.save(weights, tmp_path / "denoiser.pt")
    found = read_published(tmp_path / "denoiser.pt")
    assert (found.layout, found.sizes) == (layout, sizes)
    assert set(found.tensors) == set(weights)


def score_sde_file(path: Path, weights: dict[str, Tensor], shadows: list[Tensor], sigmas: int = 1000) -> Path:
    """As score_sde saves them: names in `model` alone, the averaged weights a list."""
    model = {f"module.{name}": tensor for name, tensor in weights.items()}
    model = {"module.sigmas": torch.logspace(1, -2, sigmas), **model}
    average = {"decay": 0.9999, "num_updates": 3, "shadow_params": shadows}
    torch.save({"optimizer": {"state": {}, "param_groups": []}, "model": model, "ema": average, "step": 3}, path)
    return path


def test_the_averaged_weights_of_score_sde_get_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are taken, not the model's; the buffer is no weight; a list that does not fit is refused by name."""
    weights = drawn(score_sde_shapes(*vars(SMALL).values()))
    shadows = [2 * tensor for tensor in weights.values()]
    found = read_published(score_sde_file(tmp_path / "a.pth", weights, shadows))
    assert (found.layout, found.sizes) == ("score_sde", SMALL)
    assert set(found.tensors) == set(weights)
    assert all(torch.equal(found.tensors[name], 2 * tensor) for name, tensor in weights.items())
    assert "the weights of ema are taken" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"b\.pth: weights do not fit: ema has \d+ tensors, model \d+"):
        read_published(score_sde_file(tmp_path / "b.pth", weights, shadows[:-1]))
    with pytest.raises(
        UserError, match=r"c\.pth: .*all_modules\.0\.weight \(is \(128,\) in ema, \(128, 32\) in model\)"
    ):
        read_published(score_sde_file(tmp_path / "c.pth", weights, [shadows[1], *shadows[1:]]))
    with pytest.raises(UserError, match=r"d\.pth: sigmas: its schedule has 232 steps; networks of 1000 are read"):
        read_published(score_sde_file(tmp_path / "d.pth", weights, shadows, sigmas=232))


CONFIG = {
    "_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": None, "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "norm_num_groups": 32,
}  # fmt: skip
SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def diffusers_folder(path: Path, weights: dict[str, Tensor], old: bool = False, **changes: Any) -> Path:
    """A pipeline's folder."""
    (path / "unet").mkdir(parents=True)
    (path / "scheduler").mkdir()
    config = {key: changes.get(key, value) for key, value in CONFIG.items()}
    scheduler = {**SCHEDULER, **{key: value for key, value in changes.items() if key not in CONFIG}}
    (path / "unet/config.json").write_text(json.dumps(config))
    (path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    torch.save(as_diffusers(weights, 2, old), path / "unet/diffusion_pytorch_model.bin")
    return path


@pytest.mark.parametrize("old", [False, True])
def test_diffusers_names_are_ddpms(tmp_path: Path, old: bool) -> None:
    """Of a pipeline or its unet/, with the names of attentions of either time: the same tensors."""
    weights = drawn(ddpm_shapes(*vars(SMALL).values()))
    folder = diffusers_folder(tmp_path / "pipeline", weights, old)
    for path in (folder, folder / "unet"):
        found = read_published(path)
        assert (found.layout, found.sizes) == ("ddpm", SMALL)
        assert found.tensors.keys() == weights.keys()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"beta_schedule": "squaredcos_cap_v2"},
            r"scheduler_config\.json: beta_schedule=squaredcos_cap_v2: does not fit",
        ),
        ({"beta_end": 0.01}, r"beta_end=0\.01: does not fit; networks of beta_end=0\.02"),
        ({"num_train_timesteps": 4000}, r"num_train_timesteps=4000"),
        ({"prediction_type": "v_prediction"}, r"prediction_type=v_prediction"),
        ({"flip_sin_to_cos": True}, r"config\.json: flip_sin_to_cos=True"),
        ({"attention_head_dim": 8}, r"attention_head_dim=8"),
    ],
)
def test_another_schedule_or_network_of_diffusers_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """By the name of the entry, where its files say so."""
    weights = drawn(ddpm_shapes(*vars(SMALL).values()))
    with pytest.raises(UserError, match=message):
        read_published(diffusers_folder(tmp_path / "pipeline", weights, **changes))


def test_a_folder_without_its_schedule_says_what_is_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights alone cannot tell."""
    folder = diffusers_folder(tmp_path / "pipeline", drawn(ddpm_shapes(*vars(SMALL).values())))
    shutil.rmtree(folder / "scheduler")
    read_published(folder)
    assert "beta_schedule=linear" in capsys.readouterr().out


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Another network's, with its first names; an improved one of other levels, whose schedule is another."""
    torch.save({f"layer{i}.weight": torch.zeros(2) for i in range(5)}, tmp_path / "a.pt")
    with pytest.raises(
        UserError, match=r"a\.pt: .*its first names are layer0\.weight, layer1\.weight, layer2\.weight$"
    ):
        read_published(tmp_path / "a.pt")
    torch.save(drawn(shapes_of("improved", Sizes(32, [1, 2, 2], 1, [1]))), tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b\.pt: has 3 levels; of this layout those with 4 are read"):
        read_published(tmp_path / "b.pt")
    # A web page of diffusion is no network, and one whose names are gone is held to the published sizes.
    torch.save({"time_embed.0.weight": torch.zeros(2, 2), "x.op.weight": torch.zeros(1)}, tmp_path / "c.pt")
    assert read_published(tmp_path / "c.pt").sizes == PUBLISHED["improved"]
