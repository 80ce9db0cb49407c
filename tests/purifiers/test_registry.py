"""What every kind of purifier promises, checked for each kind in the registry; a new kind needs no line here."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maep import load_purifier
from maep.attacks.reseeding import is_random
from maep.attacks.threat_models import StraightThrough
from maep.config.evaluation_settings import PurifySettings
from maep.config.identity import decides
from maep.config.implementations import OBJECTIVES
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.models.denoiser import Denoiser
from maep.pipeline.stages import STAGES
from maep.purifiers import Purifier, save_purifier
from maep.purifiers.base import Filter
from maep.purifiers.denoising import DenoiserPurifier
from maep.purifiers.registry import KINDS, purifier_class, settings_class
from maep.purifiers.sections import use_entries
from maep.runtime.errors import UserError

# A network as small as it can be, for kinds that have one.
SMALL = [
    "data.image_size=16", "pretrain.mask_ratio=0", "model.image_size=16", "model.patch_size=4", "model.encoder_width=8",
    "model.encoder_depth=1", "model.encoder_heads=1", "model.decoder_width=8", "model.decoder_depth=1",
    "model.decoder_heads=1",
]  # fmt: skip


# What is left of the settings of a kind around a denoiser, which any of them has.
DENOISER = ("width=16", "unshuffle=2", "multipliers=[1]", "steps=2")
SMALLER = {
    "diffpure": DENOISER,
    "adbm": DENOISER,
    "gdmp": (*DENOISER, "rounds=2"),
    "freqpure": (*DENOISER, "rounds=[0.05]"),
    "adp": DENOISER,
    "flowpure": DENOISER,
    "ebm": ("width=8", "steps=2"),
    "pixeldefend": ("features=4", "layers=1", "components=2"),
    "frequency_prompts": ("clusters=1",),  # more are found by a training
    "comdefend": ("widths=[8]", "bits=4"),
    "scoreopt": DENOISER,
}


# In more than one go, of kinds that can.
DRAWING = PurifySettings(passes=2, shifts=2, overlap=4, noise=0.1, mask_ratio=0.5)


def words_of(kind: str) -> list[str]:
    """The settings of a kind, as small as it can be, with an objective that trains its network, if it has one."""
    network = getattr(purifier_class(kind), "network_kind", "images")
    name = next(name for name in ("maep", *OBJECTIVES) if OBJECTIVES[name].network == network)
    smaller = [f"{kind}.{word}" for word in SMALLER.get(kind, ())]
    size = ["data.image_size=32", "model.image_size=32"] if kind == "ebm" else []  # it is trained on no smaller images
    return [f"purifier.kind={kind}", *SMALL, *size, *smaller, f"objective.name={name}"]


def settings_of(kind: str) -> Settings:
    return load_settings(None, words_of(kind))


@pytest.fixture(params=sorted(KINDS))
def purifier(request: pytest.FixtureRequest) -> Purifier:
    """One of each kind, as its settings describe it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        instance = woken(purifier_class(request.param).from_settings(settings_of(request.param)))
    return ready(instance.eval().requires_grad_(False))


def woken(purifier: Purifier) -> Purifier:
    """With a network that predicts something: one around a denoiser starts at 0, and a kind may then move nothing."""
    if isinstance(purifier, DenoiserPurifier) and isinstance(purifier.model, Denoiser):
        nn.init.normal_(purifier.model.tail.weight, std=0.05)
    return purifier


def ready(purifier: Purifier, dtype: torch.dtype = torch.float32) -> Purifier:
    """Before a classifier of images of any size, if it asks one."""
    if purifier.needs_classifier:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        purifier.attach(nn.Sequential(*layers).requires_grad_(False).to(dtype))
    return purifier


def pictures(count: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def purified(purifier: Purifier, images: Tensor, key: int = 0) -> Tensor:
    purifier.reseed(key)
    return purifier(images)


def test_describes_itself(purifier: Purifier) -> None:
    """Its name is the registry's, its stages are the pipeline's and in order, its settings have its section."""
    assert purifier_class(purifier.kind) is type(purifier)
    assert list(purifier.stages) == [name for name in STAGES if name in purifier.stages]
    assert "evaluate" not in purifier.stages
    section = settings_class(purifier.kind)
    assert section is type(purifier).Settings
    if section is not None:
        assert isinstance(getattr(settings_of(purifier.kind), purifier.kind), section)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 40), (16, 1), (33, 16)])
def test_keeps_shape_range_and_type(purifier: Purifier, height: int, width: int) -> None:
    """Any size, float32 in [0, 1], black and white too; grey images are refused; at least one image goes at a time."""
    for images in (pictures(2, height, width), pictures(2, height, width).round()):
        result = purified(purifier, images)
        assert (result.shape, result.dtype, result.device) == (images.shape, images.dtype, images.device)
        assert 0 <= result.min() <= result.max() <= 1
    assert purifier.images_at_once(height, width) >= 1
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        purifier(images[:, :1])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_only_purifying_uses_is_no_part_of_a_training(kind: str) -> None:
    """Runs that differ in it share one network, and never a record."""
    settings = settings_of(kind)
    section = getattr(settings, kind, None)
    used = use_entries(section) if section is not None and purifier_class(kind).is_trained() else {}
    if used:
        assert purifier_class(kind).shared_network(settings) is not None
        assert set(purifier_class(kind).use_facts(settings)[kind]) <= set(used)  # type: ignore[call-overload]
        items = {item.name: item for item in fields(section)}
        for name in used:
            assert not decides(items[name], "pretrain")
            assert all(decides(items[name], artefact) for artefact in ("evaluate", "records", "certify", "point"))


def test_no_image_is_no_image(purifier: Purifier) -> None:
    """An empty batch comes back empty, in its shape and type, also where drawing takes several goes."""
    options = replace(PurifySettings(), **{name: getattr(DRAWING, name) for name in purifier.options})
    for each in (purifier, ready(purifier.with_options(options))):
        for height, width in ((16, 16), (7, 21)):
            result = each(pictures(0, height, width))
            assert (result.shape, result.dtype) == ((0, 3, height, width), torch.float32)


def test_autocast_changes_no_type(purifier: Purifier) -> None:
    """In bf16 networks compute; images keep the type in which a step of an attack can be told from none."""
    images = pictures(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = purified(purifier, images)
    assert (result.shape, result.dtype) == (images.shape, images.dtype)
    assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize("kind", sorted(kind for kind in KINDS if issubclass(purifier_class(kind), Filter)))
def test_without_a_network_arithmetic_is_that_of_32_bits(kind: str) -> None:
    """Images of 16 bits are purified to the last bits of their type, whatever is computed on the way, and autocast
    changes no bit; of jpeg and bit_depth also what is no default. A network of that type has an arithmetic of its own.
    """
    others = {"jpeg": ["jpeg.codec=soft"], "bit_depth": ["bit_depth.rounding=nearest"]}
    smooth = nn.functional.interpolate(pictures(2, 5, 6), (16, 21), mode="bilinear")
    for words in ([], others.get(kind, [])):
        purifier = purifier_class(kind).from_settings(load_settings(None, [*words_of(kind), *words]))
        if purifier.needs_classifier:
            return
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast = purified(purifier, smooth)
        assert torch.equal(under_autocast, purified(purifier, smooth))
        for dtype in (torch.bfloat16, torch.float16):
            images = smooth.to(dtype)
            result, expected = purified(purifier, images), purified(purifier, images.float())
            assert result.dtype == dtype
            torch.testing.assert_close(result.float(), expected, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_same_key_same_bits(purifier: Purifier) -> None:
    """What it draws is a function of its key, and whether it draws is what it says."""
    images = pictures()
    assert torch.equal(purified(purifier, images, 5), purified(purifier, images, 5))
    assert is_random(purifier, images) == purifier.is_random
    if purifier.is_random:
        assert purified(purifier, images, 5).ne(purified(purifier, images, 6)).any()


def test_a_batch_of_one_is_purified_as_in_a_batch_of_many(purifier: Purifier) -> None:
    """Images do not see each other, and draw one after another whether they come together or not.

    In float64: where a gradient is near 0, Adam makes the rounding of fp32 a share of its step.
    """
    images = pictures().double()
    ready(purifier.double(), torch.float64)
    together = purified(purifier, images)
    purifier.reseed(0)
    singly = torch.cat([purifier(image) for image in images.split(1)])
    torch.testing.assert_close(together, singly, rtol=0, atol=1e-9)


def test_no_split_of_a_batch_changes_what_is_drawn(purifier: Purifier) -> None:
    """Of one key an image's draws are its own: over passes, shifted grids, noise, masks, and batches of tiles.

    In float64, as above.
    """
    purifier = purifier.double()
    options = replace(PurifySettings(), **{name: getattr(DRAWING, name) for name in purifier.options})
    drawing = ready(purifier.with_options(options), torch.float64)
    if not drawing.is_random:
        return
    images = pictures(3, 16, 21).double()
    together = purified(drawing, images)
    drawing = ready(drawing.with_options(replace(options, batch_tiles=2)), torch.float64)
    for split in ([1, 2], [2, 1], [1, 1, 1]):
        drawing.reseed(0)
        apart = torch.cat([drawing(part) for part in images.split(split)])
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-9)


def test_is_differentiable_as_it_says(purifier: Purifier) -> None:
    """Autograd gives each image a gradient, or none at all."""
    images = pictures().requires_grad_()
    result = purified(purifier, images)
    assert result.requires_grad == purifier.is_differentiable
    if purifier.is_differentiable:
        (gradient,) = torch.autograd.grad((result * pictures().flip(0)).sum(), images)
        assert gradient.isfinite().all()
        assert gradient.flatten(1).ne(0).any(1).all()


def test_is_saved_and_loaded(purifier: Purifier, tmp_path: Path) -> None:
    """From purifier/ and its run: the same bits, eval mode, frozen; config.json names kind and format."""
    save_purifier(purifier, tmp_path / "purifier")
    config = json.loads((tmp_path / "purifier/config.json").read_text())
    assert (config["kind"], config["format"]) == (purifier.kind, 1)
    assert (tmp_path / "purifier/model.safetensors").is_file() == bool(purifier.weights())
    for path in (tmp_path, tmp_path / "purifier"):
        again = ready(load_purifier(path))
        assert type(again) is type(purifier)
        assert torch.equal(purified(again, pictures()), purified(purifier, pictures()))
        assert not again.training
        assert not any(parameter.requires_grad for parameter in again.parameters())
        assert again.identity_facts() == purifier.identity_facts()


def test_other_options_leave_the_purifier_as_it_is(purifier: Purifier) -> None:
    """`with_options` gives a purifier of the same weights, and refuses what it would not heed, also in the settings."""
    before = purified(purifier, pictures())
    options = {"batch_tiles": 7, "passes": 2, "overlap": 4, "shifts": 2, "noise": 0.1, "mask_ratio": 0.5,
               "gradient_memory": 5}  # fmt: skip
    assert set(purifier.options) <= set(options)
    for name in options.keys() - set(purifier.options):
        with pytest.raises(UserError, match=rf"purify\.{name}=.*: {purifier.kind} has no such option"):
            purifier.with_options(PurifySettings(**{name: options[name]}))
        with pytest.raises(UserError, match=rf"purify\.{name}=.*: {purifier.kind} has no such option"):
            load_settings(None, [*words_of(purifier.kind), f"purify.{name}={options[name]}"])
    other = purifier.with_options(PurifySettings(**{name: options[name] for name in purifier.options[:2]}))
    assert type(other) is type(purifier)
    assert other.weights().keys() == purifier.weights().keys()
    assert torch.equal(purified(purifier, pictures()), before)


def test_an_exact_gradient_is_autograds_of_all_steps(purifier: Purifier) -> None:
    """Of a kind whose steps are computed again one by one, through three of them: that of the graph of all of them,
    which is what there is where weights are trained. BPDA's is another, but of an energy that is linear in pieces.
    """
    if not isinstance(purifier, DenoiserPurifier):
        return
    subject = type(purifier)(purifier.model.double(), replace(purifier.network, steps=3), purifier.settings)
    side = pictures(height=15, width=13).double()

    def gradient(model: nn.Module) -> Tensor:
        images = (0.3 + 0.4 * side).requires_grad_()
        subject.reseed(0)
        (found,) = torch.autograd.grad((model(images) * side.flip(0)).sum(), images)
        return found

    exact, straight = gradient(subject), gradient(StraightThrough(subject))
    subject.requires_grad_(True)
    torch.testing.assert_close(exact, gradient(subject), rtol=1e-9, atol=1e-12)
    is_linear = getattr(subject.network, "activation", "") == "leaky_relu"
    assert ((exact - straight).abs().max() > 1e-3) != is_linear


def test_graphs_that_are_kept_change_no_bit_of_a_gradient(purifier: Purifier) -> None:
    """Of a kind whose steps may be computed again: with room for none, for some and for all of their graphs."""
    if "gradient_memory" not in purifier.options:
        return
    found = []
    for room in (0, 3 * 10**5, 10**9):
        images, other = pictures().requires_grad_(), purifier.with_options(PurifySettings(gradient_memory=room))
        result = purified(other, images)
        found += [result, *torch.autograd.grad((result * pictures().flip(0)).sum(), images)]
    assert all(torch.equal(each, found[0]) for each in found[::2])
    assert all(torch.equal(each, found[1]) for each in found[1::2])
    assert found[1].any()


def test_adapters_are_taken_or_refused_by_name(purifier: Purifier, tmp_path: Path) -> None:
    """An adapter beside a purifier that takes none, or that is damaged, ends with one line."""
    save_purifier(purifier, tmp_path / "purifier")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter"):
        load_purifier(tmp_path)


def test_unknown_kinds_name_the_nearest() -> None:
    """As a setting and in code."""
    with pytest.raises(UserError, match=r"purifier\.kind=medain: no such purifier; did you mean median\?"):
        purifier_class("medain")
    with pytest.raises(UserError, match=r"purifier\.kind=medain.*: .*(choose one of maep|mean median)"):
        load_settings(None, ["purifier.kind=medain"])


def test_reading_the_registry_imports_no_torch() -> None:
    """A mistyped setting is answered at once: names, and the settings of the default kind, need no torch."""
    code = "import sys; from maep.purifiers.registry import KINDS, settings_class; settings_class('maep'); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False, timeout=120)
    assert done.returncode == 0
