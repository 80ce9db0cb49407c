"""Configuration: layers, typing, ranges, and errors that name key, source and valid choice."""

import subprocess
import sys
from pathlib import Path

import pytest

from maep.config.command_line import command_line, settings_help
from maep.config.load import config_names, leaves, load_settings, to_yaml
from maep.config.schema import Settings
from maep.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def refusal(*overrides: str, cfg: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(cfg, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_arguments_win_over_files_and_files_over_defaults() -> None:
    """The last layer wins, and a base file lies below the file that names it."""
    assert load_settings().classifier.arch != "wrn28_10"
    assert load_settings("cifar100").classifier.arch == "wrn28_10"
    assert load_settings("cifar100").data.name == "cifar100"
    assert load_settings("cifar100", ["data.name=mine"]).data.name == "mine"


def test_configuration_names_the_run() -> None:
    """runs/NAME is the default run directory."""
    assert load_settings("digits").run.dir == "runs/digits"
    assert load_settings("digits", ["run.name=mine"]).run.dir == "runs/mine"


def test_fractions_are_numbers() -> None:
    """8/255 may be written wherever a number is wanted, also inside a list."""
    settings = load_settings(None, ["attack.eps=4/255", "evaluation.eps=[2/255, 0.5]"])
    assert settings.attack.eps == 4 / 255
    assert settings.evaluation.eps == [2 / 255, 0.5]


@pytest.mark.parametrize("name", config_names())
def test_every_configuration_resolves_and_round_trips(name: str, tmp_path: Path) -> None:
    """Each YAML file is valid, and the resolved configuration is itself a configuration with the same meaning."""
    settings = load_settings(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(settings))
    assert load_settings(str(path)) == settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("configs/digits.yaml", "digits"), ("./configs/robust/digits.yaml", "robust/digits"), ("DIGITS", "digits"),
        ("cifar10.yaml", "cifar10"), ("Robust/Digits", "robust/digits"), ("mine", "mine.yaml"),
        ("sub/mine", "sub/mine.yaml"),
    ],
)  # fmt: skip
def test_a_configuration_as_people_name_its_file(
    name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folder and the ending of configs/, in another case, or their own without the ending."""
    (tmp_path / "sub").mkdir()
    for path in ("mine.yaml", "sub/mine.yaml"):
        (tmp_path / path).write_text("base: digits\n")
    monkeypatch.chdir(tmp_path)
    assert f"no such configuration; did you mean {meant}?" in refusal(cfg=name)


def test_a_base_without_its_ending_is_looked_for_beside_its_file(tmp_path: Path) -> None:
    """Not where the command runs."""
    (tmp_path / "child.yaml").write_text("base: parent\n")
    (tmp_path / "parent.yaml").write_text("base: digits\n")
    assert "base: parent: no such configuration; did you mean parent.yaml?" in refusal(cfg=str(tmp_path / "child.yaml"))


def test_a_key_without_its_section_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """All sections that have it are named; in any case of letters."""
    assert "did you mean attack.eps or evaluation.eps?" in refusal("eps=4/255")
    assert "did you mean run.seed?" in refusal("SEED=3")
    assert "did you mean attack.eps?" in refusal("ATTACK.EPS=3")


def test_of_a_key_that_is_given_twice_the_last_value_counts_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also of cfg; the same value again is worth no line."""
    words = ["cfg=cifar10", "cfg=digits", "run.seed=1", "attack.eps=8/255", "run.seed=1", "attack.eps=4/255"]
    namespace, settings = command_line("", words)
    assert (namespace.cfg, settings.attack.eps) == ("digits", 4 / 255)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "cfg is given 2 times: cfg=digits counts, not cfg=cifar10",
        "attack.eps is given 2 times: attack.eps=4/255 counts, not attack.eps=8/255",
    ]


def test_mistyped_key_names_key_source_and_nearest() -> None:
    """A typing error is answered with the key that was meant."""
    message = refusal("attack.epss=1")
    assert "attack.epss" in message
    assert "argument 'attack.epss=1'" in message
    assert "did you mean attack.eps?" in message


def test_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    """The source of a wrong value in YAML is the file's path."""
    path = tmp_path / "mine.yaml"
    path.write_text("pretrain:\n  epochs: many\n")
    message = refusal(cfg=str(path))
    assert str(path) in message
    assert "pretrain.epochs" in message
    assert "float" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("attack.eps=-1", ("attack.eps=-1", "at least 0")),
        ("model.patch_size=3", ("choose one of 1, 2, 4, 8, 16",)),
        ("model.image_size=30", ("larger", "30")),
        ("pretrain.lr=0", ("above 0",)),
        ("run.seed=1.5", ("wrong type", "int")),
        ("pretrain.mask_ratio=true", ("wrong type",)),
        ("data=1", ("section",)),
        ("run.seed", ("key=value",)),
        (
            "evaluation.threat_models=[oblivius]",
            ("oblivious, twin, bpda, bpda-intermediate, auxiliary-aware, surrogate, adaptive, adaptive-eot, blackbox",),
        ),
        ("model.encoder_width=190", ("multiple",)),
        ("evaluation.eps=[8/255, 0.0313725]", ("evaluation.eps", "0.0313725 are one number", "leave one out")),
        ("certify.sigma=[0.25, 0.25000001]", ("certify.sigma", "one number to six digits")),
        ("certify.sigma=[64]", ("certify.sigma=64", "did you mean 64/255?")),
    ],
)
def test_values_out_of_range_are_refused(override: str, words: tuple[str, ...]) -> None:
    """Each wrong value is named with its valid choice."""
    extra = ["model.patch_size=4"] if override == "model.image_size=30" else []
    if extra:
        message = refusal(override, *extra)
        assert "does not divide" in message
        return
    message = refusal(override)
    for word in words:
        assert word in message


def test_something_is_left_to_be_attacked() -> None:
    """No images for who knows the purifier is refused where there is nobody else; the same number twice is once."""
    message = refusal("evaluation.adaptive_images=0", "evaluation.threat_models=[adaptive, blackbox]")
    assert "evaluation.adaptive_images=0: leaves nothing" in message
    load_settings(None, ["evaluation.adaptive_images=0"])
    load_settings(None, ["evaluation.eps=[8/255, 8/255]", "certify.sigma=[0.25, 0.25]"])
    load_settings(None, ["certify.sigma=[1]", "certify.attack_radii=[1.5, 2]"])  # of L2: no difference of one pixel


def test_unknown_configuration_lists_the_known_ones() -> None:
    """cfg=digit is answered with digits."""
    message = refusal(cfg="digit")
    assert "did you mean digits?" in message


def test_help_lists_every_setting_with_help() -> None:
    """No setting without a line of help."""
    text = settings_help()
    for key, (item, _) in leaves(Settings).items():
        assert f"  {key}=" in text
        assert item.metadata["help"]


def test_command_line_ends_with_code_2_and_one_line() -> None:
    """A mistyped key, and a mistyped option, end a real command with exit code 2 and one line."""
    for word in ("attack.epss=1", "--nprocs"):
        command = [sys.executable, "launch/local.py", "cfg=digits", word]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert "did you mean" in done.stderr


def test_a_purifiers_kind_brings_its_section() -> None:
    """Its settings are read, checked by the kind, written to YAML, and refused by name without the kind."""
    settings = load_settings("digits", ["purifier.kind=median", "median.window=5"])
    assert settings.median.window == 5  # type: ignore[attr-defined]
    assert "median:\n  window: 5" in to_yaml(settings)
    assert "purifier.kind=median" in refusal("median.window=5")
    assert "odd" in refusal("purifier.kind=median", "median.window=4")
    assert "choose one of maep, median" in refusal("purifier.kind=medain")


def test_configurations_of_a_folder_name_their_runs_by_it(tmp_path: Path) -> None:
    """cfg=jpeg/digits and cfg=digits are two runs; a path is named by its file, and a name that is set counts."""
    settings = load_settings("jpeg/digits")
    assert (settings.purifier.kind, settings.run.dir, settings.data.name) == ("jpeg", "runs/jpeg-digits", "digits")
    (tmp_path / "mine.yaml").write_text("base: jpeg/digits\n")
    assert load_settings(str(tmp_path / "mine.yaml")).run.name == "mine"
    assert load_settings("jpeg/digits", ["run.name=a"]).run.dir == "runs/a"


def test_settings_survive_their_yaml(tmp_path: Path) -> None:
    """What a run writes down is read back as the same settings, a kind's section included."""
    settings = load_settings("digits", ["purifier.kind=median", "median.window=5", "attack.eps=8/255"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(settings))
    assert load_settings(str(path)) == settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("classifier.arch=cifar_resnet21", "classifier.arch=cifar_resnet21: depth must be 6n + 2, such as"),
        ("classifier.arch=wrn10_1_rotation", "only cifar_resnetN and soap_resnet can have what _rotation adds"),
        ("evaluation.attacks=[fgsm, pgd]", "evaluation.attacks: pgd: unknown attack; choose from fgsm, bim-K"),
        ("evaluation.attacks=[autoattack-custom:square+sqare]", "autoattack-custom:square+sqare: unknown attack"),
        ("evaluation.attacks=[autoattack-custom:square+square]", "unknown attack"),
        ("evaluation.attacks=[standard]", "standard: unknown attack"),
        ("evaluation.blackbox_attacks=[pgd-20]", "evaluation.blackbox_attacks: pgd-20: needs gradients"),
        ("certify.attack=aa", "certify.attack: aa: unknown attack"),
    ],
)
def test_names_are_refused_before_anything_is_done(override: str, words: str) -> None:
    """Also those that no stage would ask about for hours."""
    assert words in refusal(override)


WHOLE = ["attack.online=true", "pretrain.attacked=whole"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pretrain.attacked=whole"], "set attack.online=true"),
        (["finetune.attacked=whole"], "finetune.attacked=whole"),
        (["attack.method=nfgsm"], "attack.online"),
        (["attack.method=ssp", "attack.norm=L2"], "attack.method=ssp: moves features, within Linf"),
        (["attack.method=ssp", "attack.targeted=true"], "attack.targeted=false"),
        ([*WHOLE, "attack.method=ssp"], "set pretrain.attacked=classifier"),
        ([*WHOLE, "attack.norm=L2", "evaluation.norm=L2"], "set attack.norm=Linf"),
        ([*WHOLE, "attack.targeted=true"], "attack.targeted=false"),
        ([*WHOLE, "compute.zero_stage=3"], "set compute.zero_stage up to 2"),
        ([*WHOLE, "model.image_size=16"], "model.image_size=16, data.image_size=32 equal"),
        (["pretrain.attacked=purifier"], "choose one of classifier, whole"),
        (["robust.classifiers=[cifar_resnet14]"], "set pretrain.attacked=whole"),
        ([*WHOLE, "robust.classifiers=[=weights.pt]"], "'=weights.pt' names none"),
        ([*WHOLE, "robust.classifiers=[cifar_resnet14, cifar_resnet14]"], "cifar_resnet14: is there twice"),
        ([*WHOLE, "robust.classifiers=[cifar_resnet8]", "classifier.arch=cifar_resnet8"], "or is the run's own"),
        ([*WHOLE, "robust.classifiers=[cifar_resnet14=a/../w.pt, cifar_resnet14=w.pt]"], "=w.pt: is there twice"),
        (
            [*WHOLE, "robust.classifiers=[wrn16_1=w.pt]", "classifier.arch=wrn16_1", "classifier.weights=./w.pt"],
            "wrn16_1=w.pt: is there twice, or is the run's own",
        ),
        ([*WHOLE, "robust.clean_until=0.5", "robust.eps_ramp=0.6"], "robust.eps_ramp=0.6: the training ends before"),
        ([*WHOLE, "robust.classifiers=[cifar_resnet14=]"], "give an architecture, or ARCH=PATH"),
        (
            [*WHOLE, "robust.classifiers=[cifar_resnet14]", "classifier.initial=w.pt"],
            "weights of one network; give those",
        ),
        ([*WHOLE, "robust.classifiers=[cifar_resnet15]"], "robust.classifiers=cifar_resnet15: depth must be 6n + 2"),
        ([*WHOLE, "robust.classifiers=[wrn29_1=w.pt]"], "robust.classifiers=wrn29_1: depth must be 6n + 4"),
    ],
)
def test_an_attack_on_the_whole_must_be_possible(overrides: list[str], words: str) -> None:
    """What is attacked must be there at every step, and as it will be used; in the end within the whole budget."""
    assert words in refusal(*overrides)


@pytest.mark.parametrize(("clean", "ramp"), [(0.7, 0.3), (1, 0.5), (0, 1)])
def test_a_training_that_ends_under_the_whole_budget(clean: float, ramp: float) -> None:
    """Shares that add up to 1, and a training that attacks nothing, are taken; so are two
    classifiers of one architecture that differ in their weights.
    """
    several = "robust.classifiers=[cifar_resnet8, cifar_resnet8=b.pt]"
    words = [f"robust.clean_until={clean}", f"robust.eps_ramp={ramp}", several, "classifier.weights=a.pt"]
    assert load_settings("digits", [*WHOLE, *words]).robust.eps_ramp == ramp


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["compute.compile=false"], "set compute.compile=true"),
        (["compute.compile=true", "compute.zero_stage=1"], "unset compute.zero_stage=1"),
        (["compute.compile=true", "finetune.accumulation=2"], "finetune.accumulation=2: must be 1"),
    ],
)
def test_cuda_graphs_are_refused_where_they_cannot_be(overrides: list[str], words: str) -> None:
    """They are made of a compiled step, of one process, whose losses are read before the next."""
    assert words in refusal("compute.cuda_graphs=true", *overrides)


@pytest.mark.parametrize("name", ["pretrain.beta1", "pretrain.beta2", "finetune.beta1", "finetune.beta2"])
def test_a_decay_of_one_is_refused_before_the_optimizer_does(name: str) -> None:
    """AdamW would raise it as a ValueError, after the classifier was trained."""
    assert f"{name}=1: must be below 1" in refusal(f"{name}=1")


def test_patches_are_asked_for_where_there_are_some() -> None:
    """A network of convolutions has none to divide its images into; DRAM's is a masked autoencoder."""
    sizes = ["model.image_size=27", "data.image_size=27"]
    assert load_settings(None, ["purifier.kind=residual_cnn", "objective.name=reconstruction",
                                "pretrain.mask_ratio=0", *sizes]).model.image_size == 27  # fmt: skip
    for kind in ("maep", "dram"):
        words = [f"purifier.kind={kind}", "objective.name=mae", "finetune.method=none", *sizes]
        assert "model.patch_size=2: does not divide model.image_size=27" in refusal(*words)


def test_a_base_lies_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs; else where it runs, as before."""
    for folder, seed in (("mine", 3), ("here", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "common.yaml").write_text(f"run: {{seed: {seed}}}\n")
    (tmp_path / "mine" / "a.yaml").write_text("base: common.yaml\n")
    monkeypatch.chdir(tmp_path / "here")
    assert load_settings(str(tmp_path / "mine" / "a.yaml")).run.seed == 3
    (tmp_path / "mine" / "common.yaml").unlink()
    assert load_settings("../mine/a.yaml").run.seed == 4
    (tmp_path / "here" / "common.yaml").unlink()
    assert "a.yaml: base: common.yaml: no such configuration" in refusal(cfg=str(tmp_path / "mine" / "a.yaml"))
