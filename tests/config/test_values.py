"""Values: the type of a key decides how its letters are read, in arguments, in files and in sweeps."""

from pathlib import Path

import pytest
import yaml

from maep.ablation.grid.sweep import read_sweep
from maep.config.command_line import at_home
from maep.config.consistency import check_budget
from maep.config.load import load_settings, setting_value, to_yaml
from maep.config.values import parse_yaml
from maep.runtime.errors import UserError

# What YAML takes for a number, a truth value, nothing, a date or a comment, and a person for a name.
NAMES = (
    "2024_11_05", "null", "yes", "no", "on", "1e3", "0x10", "010", "12:30", "1_000", "2024-11-05", "~", "run #1",
    ".5", "true", "Null", "1.0", "-3", "=", "@home", "a: b", "[a]", "{a}", "%TAG", "*x", "&y", "!z", "'", "ä ö",
)  # fmt: skip


def refusal(*words: str, cfg: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(str(cfg) if cfg else None, words)
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    return message


def round_trip(words: list[str], path: Path) -> None:
    """What a run writes down is read back as the same settings."""
    settings = load_settings(None, words)
    path.write_text(to_yaml(settings))
    assert load_settings(str(path)) == settings


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["run.name", "data.name", "classifier.arch"])
def test_a_name_is_its_letters(key: str, name: str, tmp_path: Path) -> None:
    """As an argument, and from there through config.yaml and back."""
    assert setting_value(load_settings(None, [f"{key}={name}"]), key) == name
    round_trip([f"{key}={name}"], tmp_path / "config.yaml")


@pytest.mark.parametrize("path", ["runs/run #1", "2024/05", "0x10", "a,b", "x: y", "100%", "runs/[1]"])
def test_a_path_is_its_letters(path: str, tmp_path: Path) -> None:
    """Also where nothing is a value of its own, as for data.root."""
    settings = load_settings(None, [f"run.dir={path}", f"data.root={path}"])
    assert (settings.run.dir, settings.data.root) == (path, path)
    round_trip([f"run.dir={path}", f"data.root={path}"], tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["2024_11_05", "yes", "1e3", "0x10", "010", "12:30", "2024-11-05", "null", "off"])
def test_a_file_is_read_like_an_argument(name: str, tmp_path: Path) -> None:
    """YAML has parsed these already as something else; their letters count."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"run:\n  name: {name}\npretrain: {{source_set: [fgsm, {name}]}}\nclassifier: {{arch: {name}}}\n")
    settings = load_settings(str(path))
    assert settings.run.name == name
    assert settings.pretrain.source_set == ["fgsm", name]
    assert settings.classifier.arch == name


def test_lists_hold_letters_too() -> None:
    """Words of another configuration among them."""
    settings = load_settings(None, ["pretrain.source_set=[run.name=2024_11_05, 1e3]", "finetune.source_set=[no, 010]"])
    assert settings.pretrain.source_set == ["run.name=2024_11_05", "1e3"]
    assert settings.finetune.source_set == ["no", "010"]


def test_quotes_say_what_would_be_nothing(tmp_path: Path) -> None:
    """A path called null, and none at all."""
    assert load_settings(None, ['data.root="null"']).data.root == "null"
    for nothing in ("data.root=null", "data.root=", "data.root=~"):
        assert load_settings(None, [nothing]).data.root is None
    round_trip(['data.root="null"'], tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run.seed=1_000", 1000), ("run.seed=0x10", 16), ("attack.eps=1e-3", 0.001), ("attack.eps=.5", 0.5),
        ("attack.eps= 8 / 255 ", 8 / 255), ("classifier.flip=no", False), ("classifier.flip=on", True),
        ("classifier.timm_args={a: 1e-3, b: x, c: 3, d: false}", {"a": 0.001, "b": "x", "c": 3, "d": False}),
    ],
)  # fmt: skip
def test_a_number_is_what_people_mean(word: str, value: object) -> None:
    """Without the rest of YAML's numbers."""
    assert setting_value(load_settings(None, [word]), word.partition("=")[0]) == value


@pytest.mark.parametrize(
    "word",
    [
        "run.seed=010", "run.seed=12:30", "run.seed=1e3", "run.seed=٣", "run.seed=9223372036854775808",
        "pretrain.lr=1:30", "attack.eps=8/0", "attack.eps=٨/255", "classifier.flip=2",
        "run.seed=" + "9" * 5000, "classifier.timm_args={a: yes}", "classifier.timm_args={a: 010}",
        "classifier.timm_args={a: 1_0}", "classifier.timm_args={a: 12:30}", "model.patch_size=4.0",
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_refused(word: str) -> None:
    """The key is named."""
    assert word.partition("=")[0] in refusal(word)


@pytest.mark.parametrize("key", ["attack.eps", "pretrain.lr", "compute.grace", "pretrain.epochs", "purify.noise"])
@pytest.mark.parametrize("number", [".inf", "-.inf", "inf", "nan", ".NaN", "1e999", "Infinity"])
def test_no_number_is_endless(key: str, number: str) -> None:
    """Nor is it no number."""
    assert "must be finite" in refusal(f"{key}={number}")


@pytest.mark.parametrize(
    "text",
    [
        "run:\n  name: a\n  name: b\n", "a: &a [*a]\n", "run: {name: !!python/name:os.system x}\n", "7\n", "[1]\n",
        "? [a]\n: 1\n", "run: {seed: 010}\n", "a: &a {b: 1}\n" + "".join(f"k{i}: *a\n" for i in range(40)),
        "run: {name: [a]}\n", "run: {dir: '${oc.env:HOME}'}\n", "run: {dir: '${run.dir}'}\n", "base: [a]\n",
        "run: {dir: '${run.name'}\n", "data: {name: '${oc.decode:${oc.env:HOME}}'}\n", "a: " + "[" * 3000,
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_refused(text: str, tmp_path: Path) -> None:
    """Keys that are there twice, loops, other types' tags, aliases without end, and resolvers."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    refusal(cfg=path)


def test_a_file_of_other_bytes_is_named(tmp_path: Path) -> None:
    """Latin-1 is no YAML; a byte order mark is."""
    path = tmp_path / "mine.yaml"
    path.write_bytes("run: {name: ä}".encode("latin-1"))
    assert "mine.yaml" in refusal(cfg=path)
    path.write_bytes(b"\xef\xbb\xbfrun: {name: x}")
    assert load_settings(str(path)).run.name == "x"


def test_the_environment_stays_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stranger's file cannot put a variable into names that are shared."""
    monkeypatch.setenv("SECRET", "hunter2")
    path = tmp_path / "mine.yaml"
    for text in ("${oc.env:SECRET}", "x-${oc.env:SECRET,none}", "${env:SECRET}", "${SECRET}"):
        path.write_text(f"run: {{name: '{text}'}}\n")
        message = refusal(cfg=path)
        assert "hunter2" not in message
        assert "only settings are put in" in message


def test_references_to_settings_are_put_in() -> None:
    """Also one in another."""
    settings = load_settings(None, ["run.name=mine", "run.cache=/c/${run.name}", "data.cache_dir=${run.cache}/b"])
    assert settings.data.cache_dir == "/c/mine/b"


@pytest.mark.parametrize("key", ["run.dir", "run.cache", "data.root", "classifier.weights", "evaluation.purifier"])
def test_the_home_directory_is_meant(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In arguments and in files; `purifier=` too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert setting_value(load_settings(None, [f"{key}=~/a/b"]), key) == f"{tmp_path}/a/b"
    section, _, name = key.partition(".")
    (tmp_path / "mine.yaml").write_text(f"{section}: {{{name}: ~/a}}\n")
    assert setting_value(load_settings("~/mine.yaml"), key) == f"{tmp_path}/a"
    assert "no user" in refusal(f"{key}=~nobody-of-this-name/x")


def test_options_of_verbs_know_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out=~/x` is left as it is by the shell; settings have their own reader."""
    monkeypatch.setenv("HOME", "/home/me")
    words = ["~/a", "--out=~/b", "--out", "~", "run.name=~/x", "b~", "-x=1"]
    assert at_home(words) == ["/home/me/a", "--out=/home/me/b", "--out", "/home/me", "run.name=~/x", "b~", "-x=1"]
    with pytest.raises(UserError, match="no user"):
        at_home(["--out=~nobody-of-this-name/x"])


@pytest.mark.parametrize("key", ["run.name", "data.name", "classifier.arch"])
@pytest.mark.parametrize("name", ["../x", "/etc", "..", ".", "a/../b", "a\nb", "a\0b", "", " ", "x" * 300, "ä" * 120])
def test_a_name_stays_in_its_folder(key: str, name: str, tmp_path: Path) -> None:
    """Names become folders of runs/ and of the cache; from files, too."""
    assert key in refusal(f"{key}={name}")
    path = tmp_path / "mine.yaml"
    section, _, part = key.partition(".")
    path.write_text(yaml.safe_dump({section: {part: name}}))
    assert key in refusal(cfg=path)


def test_timm_names_with_slashes_stay_valid() -> None:
    """Models elsewhere."""
    for name in ("hf-hub:timm/resnet18.a1_in1k", "local-dir:/models/mine"):
        assert load_settings(None, [f"classifier.arch={name}"]).classifier.arch == name


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("attack.eps=8", "8/255"), ("attack.step=2", "2/255"), ("evaluation.eps=[8/255, 4]", "4/255"),
        ("model.residual_scale=8", "8/255"), ("objective.smoothing=3", "3/255"), ("attack.eps=1.01", "1.01/255"),
        ("classifier.mean=[125.3, 123, 113.9]", "125.3/255"), ("purify.noise=5", "5/255"),
    ],
)  # fmt: skip
def test_pixels_end_at_one(word: str, meant: str) -> None:
    """Wherever they are the unit."""
    assert f"did you mean {meant}?" in refusal(word)


def test_budgets_of_l2_may_be_larger() -> None:
    """An image has many pixels."""
    settings = load_settings(
        None, ["attack.norm=L2", "attack.eps=3", "attack.step=1", "evaluation.norm=L2", "evaluation.eps=[2, 5]"]
    )
    assert (settings.attack.eps, settings.evaluation.eps) == (3.0, [2.0, 5.0])
    check_budget(3, "L2", "eps")


@pytest.mark.parametrize("value", [8, -1, float("nan"), float("inf"), "8/255", True, None])
def test_the_library_asks_the_same(value: object) -> None:
    """`check_budget` is what `evaluate(eps=…)` calls."""
    with pytest.raises(UserError, match="eps="):
        check_budget(value, "Linf", "eps")  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["data.shards", "attack.shards", "finetune.clean_shards", "data.root", "run.dir"])
@pytest.mark.parametrize("address", ["https://u:hunter2@h/x", "https://h/x?sig=hunter2", "s3://hunter2:b@h/x"])
def test_secrets_in_addresses_are_refused_unseen(key: str, address: str) -> None:
    """They would stand in config.yaml; the refusal does not repeat them."""
    message = refusal(f"{key}={address}")
    assert "hunter2" not in message
    assert "fsspec" in message


def test_sweeps_read_letters_too(tmp_path: Path) -> None:
    """Values of settings of text, and names; numbers stay numbers."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: 2024_11_05\nscales: {paper: {base: digits, set: {run: {name: 010}}}}\n"
        "grid: {data.name: [1e3, no], pretrain.lr: [1e-3, 0.5]}\nnames: {pretrain.lr: [1e3, yes]}\n"
    )
    sweep = read_sweep(str(path))
    assert sweep.title == "2024_11_05"
    assert sweep.fixed == {"run": {"name": "010"}}
    assert [choice["data.name"] for choice in sweep.axes[0].choices] == ["1e3", "no"]
    assert [choice["pretrain.lr"] for choice in sweep.axes[1].choices] == [0.001, 0.5]
    assert sweep.axes[1].names == ("1e3", "yes")
    sweep = read_sweep(str(path), overrides=["grid.data.name=[2024_11_05]"])
    assert sweep.axes[0].choices[0]["data.name"] == "2024_11_05"


def test_a_key_twice_is_an_error() -> None:
    """YAML itself takes the last one in silence."""
    with pytest.raises(yaml.YAMLError, match="twice"):
        parse_yaml("{a: 1, a: 2}")


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("evaluation.attacks=pgd-20", "[pgd-20]"),
        ("evaluation.eps=8/255,4/255", "[8/255,4/255]"),
        ("evaluation.threat_models=adaptive", "[adaptive]"),
    ],
)
def test_a_list_without_its_brackets_is_shown_with_them(word: str, written: str) -> None:
    """Its type alone does not say how a list is written."""
    assert f"expected a list: write {written}" in refusal(word)


@pytest.mark.parametrize("nothing", ["null", "~", "None", "none", ""])
def test_nothing_is_written_as_help_has_it(nothing: str) -> None:
    """Help and reference write None; a key of text takes those letters as a text."""
    settings = load_settings("digits", ["data.train_limit=7", f"data.train_limit={nothing}", "run.name=None"])
    assert settings.data.train_limit is None
    assert settings.run.name == "None"
    assert "wrong type" in refusal(f"attack.eps={nothing}"), "of a key that must have a value it is none"


@pytest.mark.parametrize("path", ["$HOME/x", "$SCRATCH", "/scratch/$USER/runs", "a/$b"])
def test_a_variable_in_a_path_is_no_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put in its place, in arguments or in files; a file that is there may have such a name."""
    monkeypatch.chdir(tmp_path)
    variable = next(part for part in path.split("/") if part.startswith("$"))
    (tmp_path / "mine.yaml").write_text(f"run: {{dir: {path}}}\n")
    for message in (refusal(f"run.dir={path}"), refusal(f"data.root={path}"), refusal(cfg=tmp_path / "mine.yaml")):
        assert f"{variable} is the name of a folder here, no variable; write the path" in message
    with pytest.raises(UserError, match="no variable"):
        at_home([f"--out={path}"])
    for name in ("a$b", "$", "price$/x", "$(x)"):
        assert load_settings(None, [f"run.dir={name}"]).run.dir == name
    (tmp_path / "$SCRATCH").touch()
    assert load_settings(None, ["data.root=$SCRATCH"]).data.root == "$SCRATCH"
