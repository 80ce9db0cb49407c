"""Classifiers: given weights reach their published accuracy, what does not fit is named, attacks see [0, 1]."""

import csv
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maep.config.data_settings import ClassifierSettings
from maep.config.load import load_settings
from maep.models.classifiers import build_classifier, classifier_identity, load_classifier
from maep.models.classifiers.factory import check_image_size, warn_of_other_normalization
from maep.pipeline.preconditions import check_classifiers
from maep.runtime.errors import UserError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TESTED = 300


def pixels(file: io.BufferedIOBase, crop: int = 0) -> np.ndarray:
    with Image.open(file) as opened:
        image = opened.convert("RGB")
        left, top = ((side - crop) // 2 for side in image.size) if crop else (0, 0)
        return np.asarray(image.crop((left, top, left + crop, top + crop)) if crop else image)


def batch(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def sampled(archive_path: Path, count: int) -> tuple[Tensor, Tensor]:
    """About `count` test images of an archive of folders, as many of each class, and their labels."""
    with zipfile.ZipFile(archive_path) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("test/") and not n.endswith("/"))
        classes = sorted({name.split("/")[1] for name in names})
        sample = names[:: len(names) // count]
        images = batch([pixels(io.BytesIO(archive.read(name))) for name in sample])
    return images, torch.tensor([classes.index(name.split("/")[1]) for name in sample])


@pytest.fixture(scope="module")
def cifar(shared_data: Path) -> tuple[Tensor, Tensor]:
    """Every 33rd CIFAR-10 test image, 30 or 31 a class."""
    return sampled(shared_data / "cifar10.zip", TESTED)


def percent_right(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        answers = torch.cat([classifier(part).argmax(1) for part in images.split(50)])
    return 100 * float((answers == labels).float().mean())


@pytest.mark.parametrize(
    ("arch", "file", "mean_std", "published"),
    [
        ("cifar_resnet20", "cifar10-resnet20", IMAGENET, 91.73),
        ("wrn28_1", "cifar10-wrn28_1", {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}, 92.89),
    ],
)
def test_given_cifar10_weights_reach_their_accuracy(
    arch: str, file: str, mean_std: dict, published: float, shared_data: Path, cifar: tuple[Tensor, Tensor]
) -> None:
    """ResNet-20 and WRN-28-1 with the given weights are as accurate on real images as stated, to sampling error."""
    settings = ClassifierSettings(arch=arch, **mean_std)
    classifier = load_classifier(settings, 10, shared_data / "weights" / f"{file}.safetensors")
    assert abs(percent_right(classifier, *cifar) - published) < 4


def test_given_cifar100_weights_reach_their_accuracy(shared_data: Path) -> None:
    """So does the ResNet-32 of `cfg=cifar100_cpu`, 71.70 % on all 10,000, on 5 test images of each of 100 classes."""
    settings = load_settings("cifar100_cpu").classifier
    assert load_settings("cifar100_small").classifier == settings
    classifier = load_classifier(settings, 100, shared_data / "weights" / "cifar100-resnet32.safetensors")
    images, labels = sampled(shared_data / "cifar100.zip", 500)
    assert labels.bincount().tolist() == [5] * 100
    assert abs(percent_right(classifier, images, labels) - 71.70) < 4


def test_given_imagenet_weights_reach_their_accuracy(shared_data: Path) -> None:
    """A timm model with extra arguments and given weights is as accurate on ImageNet samples as stated (87.0 %)."""
    with tarfile.open(shared_data / "imagenet-sample.tar") as archive:
        members = {Path(member.name).name: member for member in archive.getmembers()}
        rows = list(csv.DictReader(io.TextIOWrapper(archive.extractfile(members["labels.csv"]))))[::20]
        images = batch([pixels(archive.extractfile(members[Path(r["file"]).name]), 224) for r in rows])
    settings = ClassifierSettings(arch="mobilenetv2_100", timm_args={"pad_type": "same"}, mean=[0.5] * 3, std=[0.5] * 3)
    classifier = load_classifier(settings, 1000, shared_data / "weights" / "imagenet-mobilenetv2_100.safetensors")
    assert percent_right(classifier, images, torch.tensor([int(row["index"]) for row in rows])) > 78


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("cifar_resnet20", 269_722),
        ("cifar_resnet32", 464_154),
        ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018),
        ("wrn28_10", 36_479_194),
        ("soap_resnet", 175_818),
    ],
)
def test_architectures_have_their_published_size(arch: str, parameters: int) -> None:
    """CIFAR ResNets, WRN-28-10 and SOAP's have as many parameters as in their papers or published files."""
    with torch.device("meta"):
        network = build_classifier(ClassifierSettings(arch=arch), 10).network
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_wrn28_10_has_robustbench_keys() -> None:
    """WRN-28-10 takes RobustBench's files: its key names, with a 1×1 shortcut in each stage's first block."""
    with torch.device("meta"):
        keys = set(build_classifier(ClassifierSettings(arch="wrn28_10"), 10).network.state_dict())
    for key in ("conv1.weight", "block1.layer.0.convShortcut.weight", "block3.layer.3.bn2.running_var", "fc.bias"):
        assert key in keys
    assert {key.split(".")[0] for key in keys} == {"conv1", "block1", "block2", "block3", "bn1", "fc"}
    assert not any("layer.1.convShortcut" in key for key in keys)


def made_up_weights(settings: ClassifierSettings, path: Path) -> nn.Module:
    """Save weights with batch norms that do something; returns the classifier, not folded."""
    torch.manual_seed(0)
    classifier = build_classifier(settings, 10)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    save_file(classifier.network.state_dict(), path)
    return classifier.eval()


@pytest.mark.parametrize("arch", ["cifar_resnet8", "cifar_resnet8w", "wrn10_2", "soap_resnet", "test_resnet"])
def test_folding_changes_no_logit(arch: str, tmp_path: Path) -> None:
    """A loaded classifier, batch norms folded and channels last, gives the logits of the plain one."""
    settings = ClassifierSettings(arch=arch)
    plain = made_up_weights(settings, tmp_path / "w.safetensors")
    loaded = load_classifier(settings, 10, tmp_path / "w.safetensors")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), plain(images), rtol=1e-4, atol=1e-4)
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_soaps_resnet_has_its_published_keys() -> None:
    """107 tensors with the names and shapes of SOAP's file: biases everywhere, 1×1 convolutions as shortcuts."""
    blocks = [(f"layer{layer}.{block}", layer, block) for layer in (1, 2, 3) for block in (0, 1)]
    convolutions = {"conv1": (16, 3, 3, 3)}
    for name, layer, block in blocks:
        width = 8 * 2**layer
        inputs = width // 2 if layer > 1 and block == 0 else width
        convolutions |= {f"{name}.conv1": (width, inputs, 3, 3), f"{name}.conv2": (width, width, 3, 3)}
        if inputs != width:
            convolutions[f"{name}.shortcut.0"] = (width, inputs, 1, 1)
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (10, 64), "linear.bias": (10,)}
    for name, shape in convolutions.items():
        norm = name.replace("conv", "bn").replace("shortcut.0", "shortcut.1")
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1], f"{norm}.num_batches_tracked": ()}
        shapes |= {f"{norm}.{key}": shape[:1] for key in ("weight", "bias", "running_mean", "running_var")}
    state = build_classifier(ClassifierSettings(arch="soap_resnet"), 10).network.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert len(shapes) == 107


@pytest.mark.parametrize("arch", ["soap_resnet", "soap_resnet_rotation"])
def test_soaps_resnet_is_the_network_of_its_file(arch: str, tmp_path: Path) -> None:
    """From the file's names, convolution after convolution: a block ends rectified, its shortcut is a convolution of
    what the block is given, the last map is averaged; a prefix is dropped where the head for turns is.
    """
    settings = ClassifierSettings(arch=arch)
    made_up_weights(settings, tmp_path / "w.safetensors")
    tensors = {name.removeprefix("resnet."): each for name, each in load_file(tmp_path / "w.safetensors").items()}

    def convolved(name: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = tensors[f"{name}.weight"]
        x = nn.functional.conv2d(x, weight, tensors[f"{name}.bias"], stride, weight.shape[-1] // 2)
        mean, variance, scale, shift = (
            tensors[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    x = convolved("conv1", "bn1", (images - mean) / std).relu()
    for layer, block in ((layer, block) for layer in (1, 2, 3) for block in (0, 1)):
        name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
        inner = convolved(f"{name}.conv1", f"{name}.bn1", x, stride).relu()
        inner = convolved(f"{name}.conv2", f"{name}.bn2", inner)
        x = (inner + (convolved(f"{name}.shortcut.0", f"{name}.shortcut.1", x, 2) if stride == 2 else x)).relu()
    assert x.shape == (2, 64, 8, 8)
    expected = x.mean((2, 3)) @ tensors["linear.weight"].T + tensors["linear.bias"]
    with torch.no_grad():
        logits = load_classifier(settings, 10, tmp_path / "w.safetensors")(images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_mean_and_deviation_are_inside(tmp_path: Path) -> None:
    """Images go in as [0, 1]: mean and deviation of the settings are applied inside, exactly once."""
    settings = ClassifierSettings(arch="cifar_resnet8", **IMAGENET)
    plain = made_up_weights(settings, tmp_path / "w.safetensors")
    loaded = load_classifier(settings, 10, tmp_path / "w.safetensors")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    normalised = (images - torch.tensor(IMAGENET["mean"]).view(3, 1, 1)) / torch.tensor(IMAGENET["std"]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), plain.network(normalised), rtol=1e-4, atol=1e-4)


def test_torch_file_with_wrapper_loads(tmp_path: Path) -> None:
    """A torch file with `state_dict` and `module.` names gives the same classifier as the safetensors file."""
    settings = ClassifierSettings(arch="wrn10_1")
    made_up_weights(settings, tmp_path / "w.safetensors")
    state = {f"module.{name}": value for name, value in load_file(tmp_path / "w.safetensors").items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    images = torch.rand(2, 3, 32, 32)
    first, second = (load_classifier(settings, 10, tmp_path / name) for name in ("w.safetensors", "w.pt"))
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


def test_weights_that_do_not_fit_name_three_keys(tmp_path: Path) -> None:
    """Weights of another architecture, or another number of classes, are refused with the keys that differ."""
    made_up_weights(ClassifierSettings(arch="cifar_resnet14"), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"layer1\.1\.bn1\.bias.*layer1\.1.*layer1\.1.*and \d+ more"):
        load_classifier(ClassifierSettings(arch="cifar_resnet8"), 10, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"linear\.weight \(is \(10, 64\), expected \(7, 64\)\)"):
        load_classifier(ClassifierSettings(arch="cifar_resnet14"), 7, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ClassifierSettings(arch="resnet20"), "classifier.arch=resnet20: unknown.*did you mean"),
        (ClassifierSettings(arch="cifar_resnet21"), r"classifier.arch=cifar_resnet21: depth must be 6n \+ 2"),
        (ClassifierSettings(arch="wrn29_10"), r"classifier.arch=wrn29_10: depth must be 6n \+ 4"),
        (ClassifierSettings(arch="wrn28_1", timm_args={"a": 1}), "classifier.timm_args.*only for timm models"),
        (ClassifierSettings(arch="test_resnet", timm_args={"nonsense": 1}), "classifier.timm_args.*nonsense"),
    ],
)
def test_bad_architecture_is_one_line(settings: ClassifierSettings, message: str) -> None:
    """An architecture or argument that does not exist is named with the valid choice."""
    with pytest.raises(UserError, match=message):
        build_classifier(settings, 10)


def test_identity_names_the_function(tmp_path: Path) -> None:
    """The identity changes with weights, mean, deviation, architecture, arguments, and with nothing else."""
    settings = ClassifierSettings(arch="cifar_resnet8")
    made_up_weights(settings, tmp_path / "a.safetensors")
    made_up_weights(ClassifierSettings(arch="wrn10_1"), tmp_path / "b.safetensors")
    identity = classifier_identity(settings, tmp_path / "a.safetensors")
    others = [
        classifier_identity(settings, tmp_path / "b.safetensors"),
        classifier_identity(ClassifierSettings(arch="cifar_resnet14"), tmp_path / "a.safetensors"),
        classifier_identity(ClassifierSettings(arch="cifar_resnet8", mean=[0.5] * 3), tmp_path / "a.safetensors"),
        classifier_identity(ClassifierSettings(arch="cifar_resnet8", std=[0.5] * 3), tmp_path / "a.safetensors"),
        classifier_identity(ClassifierSettings(arch="cifar_resnet8", timm_args={"a": 1}), tmp_path / "a.safetensors"),
    ]
    assert len({identity, *others}) == 6
    (tmp_path / "a.safetensors").rename(tmp_path / "c.safetensors")
    same = ClassifierSettings(arch="cifar_resnet8", epochs=3, lr=0.5, weights="elsewhere")
    assert classifier_identity(same, tmp_path / "c.safetensors") == identity
    with pytest.raises(UserError, match="no such classifier weights"):
        classifier_identity(settings, tmp_path / "a.safetensors")


@pytest.mark.parametrize("names", [("0.mean", "0.std", "1."), ("normalizer.new_mean", "normalizer.new_std", "model.")])
@pytest.mark.parametrize("levels", [1, 255])
def test_a_normalisation_beside_the_network_is_compared(
    tmp_path: Path, names: tuple[str, str, str], levels: int
) -> None:
    """Of nn.Sequential(Normalize, network), say, whose prefix is taken off the network's names alone."""
    settings = ClassifierSettings(arch="cifar_resnet8", **IMAGENET)
    network = made_up_weights(settings, tmp_path / "w.safetensors").network
    mean, std, prefix = names
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    state |= {
        mean: levels * torch.tensor(IMAGENET["mean"]).view(1, 3, 1, 1),
        std: levels * torch.tensor(IMAGENET["std"]),
    }
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    load_classifier(settings, 10, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt: {mean}: was trained with \[0\.485, .*set classifier\.mean"):
        load_classifier(ClassifierSettings(arch="cifar_resnet8"), 10, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt: {std}: was trained with \[0\.229, .*set classifier\.std"):
        load_classifier(ClassifierSettings(arch="cifar_resnet8", mean=IMAGENET["mean"]), 10, tmp_path / "w.pt")


def test_another_normalisation_than_timms_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Its files do not say it; once, and not where it is timm's."""
    cifar = ClassifierSettings()
    for _ in range(2):
        warn_of_other_normalization("resnet50", tuple(cifar.mean), tuple(cifar.std))
    assert capsys.readouterr().out.count("timm's own weights of resnet50 were trained with [0.485, 0.456, 0.406]") == 1
    warn_of_other_normalization("resnet50", tuple(IMAGENET["mean"]), tuple(IMAGENET["std"]))
    warn_of_other_normalization("vit_base_patch16_384", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arch", "said", "stds"), [
        ("soap_resnet_rotation", "SOAP", ([0.2023, 0.1994, 0.201], [0.2675, 0.2565, 0.2761])),
        ("dm_wrn10_1", "RobustBench", ([0.2471, 0.2435, 0.2616], [0.2673, 0.2564, 0.2762])),
        ("dm_preact18", "RobustBench", ([0.2471, 0.2435, 0.2616], [0.2673, 0.2564, 0.2762])),
    ]
)  # fmt: skip
def test_another_normalisation_than_the_authors_is_said(
    arch: str, said: str, stds: tuple[list[float], ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of networks for CIFAR whose files do not say it, for its 10 and its 100 classes; before a run starts."""
    save_file({"bias": torch.zeros(10)}, tmp_path / "w.safetensors")
    words = [f"classifier.weights={tmp_path / 'w.safetensors'}"]
    check_classifiers(load_settings(None, [*words, f"classifier.arch={arch}", "classifier.std=[0.3,0.3,0.3]"]))
    out = " ".join(capsys.readouterr().out.split())
    assert f"{said}'s own weights of {arch} were trained with [0.4914, 0.4822, 0.4465] and {stds[0]}, or [0.5071" in out
    assert f"and {stds[1]}; set that if classifier.weights are {said}'s" in out
    for mean, std in zip(([0.4914, 0.4822, 0.4465], [0.5071, 0.4866, 0.4409]), stds, strict=True):
        right = [f"classifier.mean={mean}", f"classifier.std={std}"]
        check_classifiers(load_settings(None, [*words, f"classifier.arch={arch}", *right]))
    check_classifiers(load_settings(None, [*words, "classifier.arch=cifar_resnet8", "classifier.std=[0.3,0.3,0.3]"]))
    assert capsys.readouterr().out == ""


def test_a_model_of_one_image_size_is_asked_before_it_has_images() -> None:
    """A vision transformer of 224 pixels; with img_size it is made for others, and convolutions take any."""
    vit = ClassifierSettings(arch="vit_tiny_patch16_224")
    with pytest.raises(UserError, match=r"arch=vit_tiny_patch16_224: takes no images of data\.image_size=32 \(.*224"):
        check_image_size(vit, 32)
    check_image_size(vit, 224)
    check_image_size(ClassifierSettings(arch="vit_tiny_patch16_224", timm_args={"img_size": 32}), 32)
    check_image_size(ClassifierSettings(arch="test_resnet"), 33)
