"""DeepMind's networks and RobustBench's files: names, sizes, logits by a literal reference, wrappers, normalisation."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maep.config.data_settings import ClassifierSettings
from maep.config.load import load_settings
from maep.models.classifiers import load_classifier
from maep.models.classifiers.deepmind import DeepMindPreActResNet18, DeepMindWideResNet
from maep.models.classifiers.wide_resnet import WideResNet
from maep.runtime.errors import UserError

SMALL = ClassifierSettings(arch="dm_wrn10_1", mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.25])
NORM = {"weight": (), "bias": (), "running_mean": (), "running_var": (), "num_batches_tracked": None}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (channels,) if shape is not None else () for part, shape in NORM.items()}


def wide_shapes(depth: int, width: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a wide network by the specification's table."""
    widths, shapes = (16, 16 * width, 32 * width, 64 * width), {"init_conv.weight": (16, 3, 3, 3)}
    for group, (before, after) in enumerate(pairwise(widths)):
        for block in range((depth - 4) // 6):
            name, inputs = f"layer.{group}.block.{block}", after if block else before
            shapes |= norm(f"{name}.batchnorm_0", inputs) | norm(f"{name}.batchnorm_1", after)
            shapes |= {f"{name}.conv_0.weight": (after, inputs, 3, 3), f"{name}.conv_1.weight": (after, after, 3, 3)}
            if inputs != after:
                shapes[f"{name}.shortcut.weight"] = (after, inputs, 1, 1)
    shapes |= norm("batchnorm", widths[-1])
    return shapes | {"logits.weight": (classes, widths[-1]), "logits.bias": (classes,)}


def preact_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of PreAct-18 by the specification's table."""
    shapes: dict[str, tuple[int, ...]] = {"conv_2d.weight": (64, 3, 3, 3)}
    for group, (before, after) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512))):
        for block in range(2):
            name, inputs = f"layer_{group}.{block}", after if block else before
            shapes |= norm(f"{name}.batchnorm_0", inputs) | norm(f"{name}.batchnorm_1", after)
            shapes |= {f"{name}.conv_2d_{i}.weight": (after, i_in, 3, 3) for i, i_in in ((1, inputs), (2, after))}
            if inputs != after:
                shapes[f"{name}.shortcut.weight"] = (after, inputs, 3, 3)
    return shapes | norm("batchnorm", 512) | {"logits.weight": (classes, 512), "logits.bias": (classes,)}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random tensors, variances positive, weights small enough that activations stay of order one."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        scale = (value[0].numel() if value.ndim > 1 else 4) ** -0.5
        tensors[name] = value.abs() + 0.5 if name.endswith(("running_var", "batchnorm.weight")) else scale * value
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(5)
    return tensors


def reference(tensors: dict[str, Tensor], x: Tensor, *, preact: bool) -> Tensor:
    """Both networks read off the names, with padding written out by concatenating zeros."""

    def activated(name: str, x: Tensor) -> Tensor:
        mean, variance = (tensors[f"{name}.running_{part}"][:, None, None] for part in ("mean", "var"))
        y = (x - mean) / (variance + 1e-5).sqrt()
        y = y * tensors[f"{name}.weight"][:, None, None] + tensors[f"{name}.bias"][:, None, None]
        return y * torch.sigmoid(y)

    def convolved(name: str, x: Tensor, stride: int) -> Tensor:
        weight = tensors[f"{name}.weight"]
        if weight.shape[-1] == 3:
            x = torch.cat([x, torch.zeros_like(x[..., :1])], 3)
            x = torch.cat([x, torch.zeros_like(x[:, :, :1])], 2)
            if stride == 1:
                x = torch.cat([torch.zeros_like(x[..., :1]), x], 3)
                x = torch.cat([torch.zeros_like(x[:, :, :1]), x], 2)
        return F.conv2d(x, weight, stride=stride)

    stem, first, second = ("conv_2d", "conv_2d_1", "conv_2d_2") if preact else ("init_conv", "conv_0", "conv_1")
    pattern = re.compile(r"(layer_(\d)\.(\d)|layer\.(\d)\.block\.(\d+))\.batchnorm_0\.weight")
    blocks = sorted({match[1] for name in tensors if (match := pattern.fullmatch(name))}, key=numbers)
    x = convolved(stem, x, 1)
    for name in blocks:
        group, block = numbers(name)
        stride = 2 if group > 0 and block == 0 else 1
        y = activated(f"{name}.batchnorm_0", x)
        out = convolved(f"{name}.{first}", y, stride)
        out = convolved(f"{name}.{second}", activated(f"{name}.batchnorm_1", out), 1)
        has_shortcut = f"{name}.shortcut.weight" in tensors
        x = out + (convolved(f"{name}.shortcut", x if preact else y, stride) if has_shortcut else x)
    pooled = activated("batchnorm", x).mean((2, 3))
    return pooled @ tensors["logits.weight"].T + tensors["logits.bias"]


def numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("arch", "depth", "width"), [("dm_wrn10_1", 10, 1), ("dm_wrn16_2", 16, 2)])
def test_wide_logits_are_the_references(arch: str, depth: int, width: int, tmp_path: Path) -> None:
    """SiLU and the one-sided padding, from a file to logits; symmetric padding would be far off."""
    tensors = filled(wide_shapes(depth, width, 10))
    settings = replace(SMALL, arch=arch)
    classifier = load_classifier(settings, 10, saved(tmp_path / "a.pt", tensors))
    images = torch.rand(3, 3, 32, 32)
    normal = (images - torch.tensor(SMALL.mean)[:, None, None]) / torch.tensor(SMALL.std)[:, None, None]
    torch.testing.assert_close(classifier(images), reference(tensors, normal, preact=False), rtol=1e-3, atol=1e-3)


def test_preact_logits_are_the_references(tmp_path: Path) -> None:
    """Its shortcuts see the input before activation, and are padded alike."""
    tensors = filled(preact_shapes(7))
    settings = replace(SMALL, arch="dm_preact18", mean=[0.0] * 3, std=[1.0] * 3)
    classifier = load_classifier(settings, 7, saved(tmp_path / "a.pt", tensors))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(classifier(images), reference(tensors, images, preact=True), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("network", "shapes", "tensors", "parameters", "multiplications"),
    [
        (lambda: DeepMindWideResNet(28, 10, 10), wide_shapes(28, 10, 10), 155, 36_479_194, 5.24e9),
        (lambda: DeepMindPreActResNet18(10), preact_shapes(10), 107, 12_548_426, 0.61e9),
        (lambda: WideResNet(28, 10, 10), None, 155, 36_479_194, 5.24e9),
        (lambda: WideResNet(34, 10, 10), None, 191, 46_160_474, None),
        (lambda: DeepMindWideResNet(70, 16, 10), wide_shapes(70, 16, 10), 407, 266_796_506, None),
    ],
)
def test_sizes_are_the_published_ones(
    network: type[nn.Module],
    shapes: dict[str, tuple[int, ...]] | None,
    tensors: int,
    parameters: int,
    multiplications: float | None,
) -> None:
    """Tensors, parameters, and within 1 % the multiplications of a 32 x 32 image."""
    with torch.device("meta"):
        model = network()
        state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(1, 3, 32, 32))
    assert len(state) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters
    if shapes is not None:
        assert state == shapes
    if multiplications:
        assert counter.get_total_flops() / 2 == pytest.approx(multiplications, rel=0.01)


def test_wrappers_and_prefixes(tmp_path: Path) -> None:
    """As Wang publishes them (`module.0.` in one of two branches), and under `model.`: the averaged branch counts."""
    tensors = filled(wide_shapes(10, 1, 10))
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    images = torch.rand(2, 3, 32, 32)
    expected = load_classifier(SMALL, 10, saved(tmp_path / "bare.pt", tensors))(images)
    wang = {
        "model_state_dict": {f"module.0.{name}": tensor for name, tensor in tensors.items()},
        "unaveraged_model_state_dict": {f"module.0.{name}": tensor for name, tensor in other.items()},
    }
    contents = [wang, {"state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()}}, {"last": tensors}]
    for number, content in enumerate(contents):
        classifier = load_classifier(SMALL, 10, saved(tmp_path / f"{number}.pt", content))
        assert torch.equal(classifier(images), expected)


def test_a_stage_that_is_never_called_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`sub_block1.*` of TRADES' files, whose networks take pixels as they are, which is said where they would not get
    these; another unknown name is not left out."""
    settings = replace(SMALL, arch="wrn10_1")
    torch.manual_seed(0)
    tensors = WideResNet(10, 1, 10).state_dict()
    images = torch.rand(2, 3, 32, 32)
    expected = load_classifier(settings, 10, saved(tmp_path / "a.pt", tensors))(images)
    unused = {f"sub_block1.{name}": tensor for name, tensor in tensors.items() if name.startswith("block1")}
    path = saved(tmp_path / "b.pt", {"state_dict": {f"module.{n}": t for n, t in {**tensors, **unused}.items()}})
    assert "sub_block1" not in capsys.readouterr().out
    assert torch.equal(load_classifier(settings, 10, path)(images), expected)
    said = " ".join(capsys.readouterr().out.split())
    assert "is of TRADES' code, whose networks take pixels as they are; set classifier.mean=[0.0, 0.0, 0.0] and" in said
    load_classifier(replace(settings, mean=[0.0] * 3, std=[1.0] * 3), 10, path)
    assert "pixels as they are" not in capsys.readouterr().out
    path = saved(tmp_path / "c.pt", {**tensors, "sub_block2.layer.0.bn1.bias": torch.zeros(3)})
    with pytest.raises(UserError, match=r"sub_block2\.layer\.0\.bn1\.bias \(unexpected\)"):
        load_classifier(settings, 10, path)


def test_normalisation_in_a_file_must_be_the_settings(tmp_path: Path) -> None:
    """`mean` and `std`, or `mu` and `sigma`, of any shape; others than configured are named."""
    tensors = filled(wide_shapes(10, 1, 10))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SMALL.mean, SMALL.std))
    for number, names in enumerate((("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std"))):
        content = {**tensors, names[0]: mean, names[1]: std}
        load_classifier(SMALL, 10, saved(tmp_path / f"{number}.pt", content))
        path = saved(tmp_path / f"bad{number}.pt", {**content, names[1]: std + 0.1})
        with pytest.raises(UserError, match=rf"{names[1]}: was trained with \[0\.3, .*; set classifier\.std to that"):
            load_classifier(SMALL, 10, path)


def test_an_identifier_sets_what_the_file_needs(tmp_path: Path) -> None:
    """Over a configuration's own; other values beside it, an unknown one, and no file are refused in one line."""
    name = "cifar10/Rebuffi2021Fixing_R18_ddpm"
    words = [f"classifier.robustbench={name}", "classifier.weights=a.pt"]
    settings = load_settings("digits", words).classifier
    assert (settings.arch, settings.mean, settings.std) == (
        "dm_preact18", [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616],
    )  # fmt: skip
    standard = load_settings("cifar10", ["classifier.robustbench=cifar10/Standard", "classifier.weights=a.pt"])
    assert (standard.classifier.arch, standard.classifier.mean, standard.classifier.std) == (
        "wrn28_10",
        [0.0] * 3,
        [1.0] * 3,
    )
    with pytest.raises(UserError, match=r"classifier\.arch=wrn28_10: classifier\.robustbench=.* has dm_preact18"):
        load_settings("digits", [*words, "classifier.arch=wrn28_10"])
    with pytest.raises(UserError, match=r"set classifier\.weights to its file"):
        load_settings("digits", words[:1])
    with pytest.raises(UserError, match=r"classifier\.robustbench=Standard .*choose one of .*cifar10/Standard"):
        load_settings("digits", ["classifier.robustbench=Standard"])


def test_a_web_page_is_no_file_of_weights(tmp_path: Path) -> None:
    """What Google Drive answers instead of a large file."""
    path = tmp_path / "natural.pt"
    path.write_text("\n<!DOCTYPE html><html>Virus scan warning</html>")
    with pytest.raises(UserError, match=r"natural\.pt: is a web page, not weights"):
        load_classifier(SMALL, 10, path)
