"""From `cfg=NAME` and `key=value` arguments to one validated `Settings` object.

Layers, later ones win: the defaults of `maep.config.schema`; `configs/NAME.yaml` (and the `base:` files it
names); arguments. Every value is checked alone, so that a mistake names the layer it came from, and then all together
(`maep.config.consistency`).
"""

import os.path
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf

from maep.config.consistency import PIXELS, check_budget, check_consistency
from maep.config.implementations import implementation, names_of
from maep.config.norms import DEFAULT_NORM, norm_of, require_own_budgets
from maep.config.published_classifiers import PUBLISHED
from maep.config.schema import PurifierSettings, Settings
from maep.config.values import (
    Plain,
    Unfit,
    argument_value,
    as_text,
    expanded,
    holds_text,
    read_value,
    read_yaml,
    settled,
    unfit_text,
)
from maep.runtime.errors import fail, nearest

PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout configs/ stands beside the package; an installed wheel has it inside.
CONFIGS = next((path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir()), PACKAGE)
KIND = "purifier.kind"
KINDS = "maep.purifiers.registry:KINDS"
# Short names of settings on the command line.
ALIASES = {"purifier": "evaluation.purifier"}
# Of one setting in the text of another. Nothing else between such brackets has a meaning: a file that is read must not
# bring the environment's variables into names that are shared.
REFERENCE = re.compile(r"\$\{([^{}]*)\}")

SECTIONS = tuple(item.name for item in fields(Settings))

Leaves = dict[str, tuple[Field[Any], Any]]


def _leaves(cls: type, prefix: str = "") -> Leaves:
    """`{dotted key: (field, type)}` of every setting below a dataclass."""
    hints = get_type_hints(cls)
    settings: Leaves = {}
    for item in fields(cls):
        key = prefix + item.name
        if is_dataclass(hints[item.name]):
            settings |= _leaves(hints[item.name], key + ".")
        else:
            settings[key] = (item, hints[item.name])
    return settings


leaves: Callable[[type], Leaves] = cache(_leaves)


def _section_classes(cls: type) -> dict[str, type[Any]]:
    """`{name: dataclass}` of the sections."""
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


section_classes: Callable[[type], dict[str, type[Any]]] = cache(_section_classes)


def leaves_of(settings: Settings) -> Leaves:
    """As `leaves`, with those of the purifier's kind."""
    return leaves(type(settings))


@cache
def settings_class(kind: str) -> type[Settings]:
    """`Settings` with a section named like the purifier's kind, if that has settings of its own.

    Raises UserError for an unknown kind.
    """
    section = implementation("maep.purifiers.registry:settings_class")(kind)
    if section is None:
        return Settings
    return make_dataclass("Settings", [(kind, section, field(default_factory=section))], bases=(Settings,))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in leaves(Settings):
            yield from _flatten(value, key + ".")
        elif isinstance(value, Plain) and value.value is None and key in SECTIONS:
            continue  # a section with nothing but comments in it
        else:
            yield key, value


def settled_settings(tree: Any, texts: Sequence[str] = (), path: str = "") -> Any:
    """A tree of `maep.config.values.parse_yaml` in which settings stand below other keys, in the types of Python.

    The letters of a plain scalar count for settings of text, and below the keys of `texts`. path: dotted, of the tree
    in its document. Raises UserError for what YAML takes for something else than people do.
    """
    if isinstance(tree, Mapping):
        return {key: settled_settings(value, texts, f"{path}.{key}") for key, value in tree.items()}
    parts = path.split(".")
    keys = [".".join(parts[first:]) for first in range(len(parts))]
    hints = [leaves(Settings)[key][1] for key in keys if key in leaves(Settings)]
    if any(map(holds_text, hints)) or any(part in texts for part in parts):
        return as_text(tree)
    try:
        return settled(tree)
    except Unfit as problem:
        fail(f"{path.strip('.')}: {problem}")


def type_name(hint: Any) -> str:
    """A setting's type as messages and help show it."""
    return getattr(hint, "__name__", str(hint)) if "|" not in str(hint) and "[" not in str(hint) else str(hint)


def valid_choices(item: Field[Any]) -> tuple[Any, ...]:
    """The values that a setting may take; () for any in its range."""
    choices = item.metadata.get("choices", ())
    return names_of(choices) if isinstance(choices, str) else choices


def default_of(item: Field[Any]) -> Any:
    """The default value of a setting."""
    return item.default_factory() if callable(item.default_factory) else item.default


def _check_range(key: str, value: Any, item: Field[Any], source: str) -> None:
    choices, low, high, above = valid_choices(item), *(item.metadata.get(name) for name in ("low", "high", "above"))
    for entry in value if isinstance(value, list) else [value]:
        if choices and entry not in choices:
            fail(f"{key}={entry} ({source}): choose one of {', '.join(map(str, choices))}")
        if entry is None or isinstance(entry, (str, bool, dict)):
            continue
        if low is not None and not entry >= low:
            fail(f"{key}={entry} ({source}): must be at least {low}")
        if high is not None and not entry <= high:
            fail(f"{key}={entry} ({source}): must be at most {high}")
        if above is not None and not entry > above:
            fail(f"{key}={entry} ({source}): must be above {above}")


def typed_setting(known: Leaves, key: str, value: Any, source: str) -> Any:
    """The value of one key as its type, checked. Raises UserError naming key, source and the valid choice.

    known: the leaves of its dataclass. value: of `maep.config.values.parse_yaml`, or of Python. source: where it was
    written, for the message.
    """
    if key not in known:
        fail(f"{key} ({source}): unknown key{nearest(key, list(known))}")
    item, hint = known[key]
    try:
        typed = read_value(value, hint)
    except Unfit as problem:
        fail(f"{key}={_shown(value)} ({source}): {str(problem) or f'wrong type, expected {type_name(hint)}'}")
    _check_texts(key, typed, source)
    _check_range(key, typed, item, source)
    return typed


def apply_setting(config: Any, known: Leaves, key: str, value: Any, source: str) -> None:
    """Set one key of a structured OmegaConf; as `typed_setting`."""
    OmegaConf.update(config, key, typed_setting(known, key, value, source), merge=False)


def _shown(value: Any) -> str:
    """A value in a message, as it was written."""
    return str(as_text(value))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a setting's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)


def _check_texts(key: str, value: Any, source: str) -> None:
    for text in _texts(value):
        if problem := unfit_text(text):
            fail(f"{key}={text} ({source}): {problem}")


def _typed(cls: type[Settings], key: str, value: Any, source: str) -> Any:
    """`typed_setting` for the settings of the system, with a hint for a section's name."""
    section = key.partition(".")[0]
    sections = section_classes(cls)
    if key in sections:
        first = next(leaf for leaf in leaves(cls) if leaf.startswith(key + "."))
        fail(f"{key} ({source}): is a section; set one of its keys, such as {first}")
    if key not in leaves(cls) and section not in sections and section in names_of(KINDS):
        fail(f"{key} ({source}): is a setting of another defense; set {KIND}={section} with it")
    typed = typed_setting(leaves(cls), key, value, source)
    if typed == "":
        fail(f"{key}= ({source}): is empty; write {key}=VALUE, or leave it out")
    return _as_path(key, typed, source) if is_path(leaves(cls)[key][0]) and typed is not None else typed


def is_path(item: Field[Any]) -> bool:
    """Whether a setting is a path, or an address in a path's place."""
    return str(item.metadata.get("unit", "")).startswith("path")


def _as_path(key: str, value: str, source: str) -> str:
    """With `~` as the home directory."""
    try:
        return expanded(value)
    except Unfit as problem:
        fail(f"{key}={value} ({source}): {problem}")


def config_names() -> list[str]:
    """Names that `cfg=` takes; configs/cluster is the launcher's, configs/ablation holds sweeps."""
    names = (p.relative_to(CONFIGS).with_suffix("") for p in CONFIGS.rglob("*.yaml"))
    return sorted(str(name) for name in names if name.parts[0] not in ("cluster", "ablation"))


def sweep_names() -> list[str]:
    """Names of the sweeps that `cfg=` takes."""
    return sorted(f"ablation/{path.stem}" for path in (CONFIGS / "ablation").glob("*.yaml"))


def config_file(name: str, beside: Path | None = None) -> Path:
    """The YAML of `cfg=NAME`: a name below configs/, or a path. Raises UserError with the valid names.

    beside: the file that names it as its base; a relative path is first looked for there, then where the command runs.
    """
    given = Path(os.path.expanduser(name))
    for path in (CONFIGS / f"{name}.yaml", *([beside.parent / given] if beside else []), given):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # longer than a name may be, or with a NUL
            break
    names = [*config_names(), *sweep_names()]
    where = f"{beside}: base: " if beside else "cfg="
    fail(f"{where}{name}: no such configuration{_meant(name, beside, names)} (there are: {', '.join(names)})")


def _meant(name: str, beside: Path | None, names: Sequence[str]) -> str:
    """`; did you mean …?` for a file without its ending, one of configs/ with it, or the name most like this one."""
    file = Path(f"{name}.yaml")
    if any(os.path.isfile(folder / file) for folder in (*([beside.parent] if beside else []), Path())):
        return f"; did you mean {file}?"
    return nearest(name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml"), names)


def layers_of(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The YAML files of a configuration, the base first."""
    layers: list[tuple[str, dict[str, Any]]] = []
    following: str | None = name
    path: Path | None = None
    while following:
        path = config_file(following, path)
        tree = read_yaml(path)
        if any(source == str(path) for source, _ in layers):
            fail(f"{path}: is its own base")
        following = _base_of(path, tree)
        layers.insert(0, (str(path), tree))
    return layers


def _base_of(path: Path, tree: dict[str, Any]) -> str | None:
    """The configuration that a file builds on, which is taken out of its tree."""
    try:
        base: str | None = read_value(tree.pop("base", None), str | None)
    except Unfit:
        fail(f"{path}: base: expected the name of a configuration, or its path")
    return base


def _parse_argument(argument: str, known: Leaves) -> tuple[str, Any, str]:
    """`key=value` as (key, value, where it is from). known: the settings' leaves."""
    key, equals, text = argument.partition("=")
    if not equals:
        fail(f"{argument!r}: expected key=value, such as run.seed=1")
    key, source = ALIASES.get(key, key), f"argument {argument!r}"
    try:
        value = argument_value(text, known[key][1] if key in known else Any)
    except yaml.YAMLError:
        fail(f"{key} ({source}): the value is not YAML; put text with brackets, colons or # into quotes")
    return key, value, source


def load_settings(
    cfg: str | None = None, overrides: Sequence[str] = (), layers: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> Settings:
    """Resolve and validate a configuration.

    cfg: a name below configs/, a path to a YAML file, or None for the defaults alone; it names the run.
    overrides: `section.key=value`, the value in YAML syntax; `8/255` may be written for a number.
    layers: (where they are from, settings) on top of the files, keys dotted or nested.
    Returns `Settings`, with the section of the purifier's kind if that has one.
    Raises UserError for an unknown key, a wrong type, a value out of range, or values that do not fit together.
    """
    trees = [*(layers_of(cfg) if cfg else []), *layers]
    written = [[(key, value, source) for key, value in _flatten(tree)] for source, tree in trees]
    kinds = [_parse_argument(word, leaves(Settings)) for word in overrides if word.startswith(KIND)]
    cls = settings_class(_kind([*chain(*written), *kinds]))
    written.append([_parse_argument(word, leaves(cls)) for word in overrides])
    values: dict[str, Any] = {key: default_of(item) for key, (item, _) in leaves(cls).items()}
    if cfg:
        values["run.name"] = _name_of(cfg)
    typed: list[dict[str, tuple[Any, str]]] = [{} for _ in written]
    for layer, into in zip(written, typed, strict=True):
        for key, value, source in layer:
            values[key] = _typed(cls, key, value, source)
            into[key] = values[key], source
            if key == "classifier.robustbench" and values[key]:
                values |= PUBLISHED[values[key]].settings
    settings = _built(cls, {key: _resolved(key, value, values) for key, value in values.items()})
    check_consistency(settings)
    require_own_budgets(typed, values)
    for key, (item, _) in leaves(cls).items():
        if item.metadata.get("unit") == PIXELS:
            _check_pixels(key, settings)
    if settings.purifier.kind != PurifierSettings().kind:  # that one's are checked above, without importing torch
        implementation("maep.purifiers.registry:purifier_class")(settings.purifier.kind).check_settings(settings)
    return settings


@dataclass(frozen=True)
class Writing:
    """Who wrote a setting last. layer: counted from the lowest; is_users: not one of the files that come with maep."""

    layer: int
    is_users: bool


def writings(
    cfg: str, overrides: Sequence[str] = (), layers: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> dict[str, Writing]:
    """`{key: its last writing}` of the settings that a configuration writes; arguments as of `load_settings`.

    A file that holds every setting was written by a run, whatever of it people once gave.
    """
    written: dict[str, Writing] = {}
    for number, (source, tree) in enumerate([*layers_of(cfg), *layers]):
        keys = {key for key, _ in _flatten(tree)}
        is_users = CONFIGS.resolve() not in Path(source).resolve().parents and not keys >= leaves(Settings).keys()
        written |= dict.fromkeys(keys, Writing(number, is_users))
    names = [word.partition("=")[0] for word in overrides]
    return written | {ALIASES.get(name, name): Writing(sys.maxsize, is_users=True) for name in names}


@cache
def _name_of(cfg: str) -> str:
    """What a configuration calls its runs: `disco-cifar10` of cfg=disco/cifar10, since cfg=cifar10 is another; of a
    path, the name of the file.
    """
    return "-".join(Path(cfg).parts) if cfg in config_names() else Path(cfg).stem


def _built(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The dataclasses of the sections, from the values of dotted keys."""
    return cls(
        **{
            name: section(**{part.name: values[f"{name}.{part.name}"] for part in fields(section)})
            for name, section in section_classes(cls).items()
        }
    )


def _resolved(key: str, value: Any, values: Mapping[str, Any], within: tuple[str, ...] = ()) -> Any:
    """A setting's value with the references in it replaced. within: the settings that are being replaced."""
    if isinstance(value, list):
        return [_resolved(key, entry, values, within) for entry in value]
    if isinstance(value, dict):
        return {name: _resolved(key, entry, values, within) for name, entry in value.items()}
    if not isinstance(value, str) or "${" not in value:
        return value
    if "${" in REFERENCE.sub("", value):
        fail(f"{key}={value}: a reference is written ${{section.key}}, such as ${{run.name}}")
    return REFERENCE.sub(lambda match: _referred(key, match[1], values, (*within, key)), value)


def _check_pixels(key: str, settings: Settings) -> None:
    """Raise UserError for a value beyond the range of pixels, unless it is a budget of another norm than Linf."""
    section, _, name = norm_of(key).partition(".")
    value, norm = setting_value(settings, key), getattr(getattr(settings, section), name, DEFAULT_NORM)
    if value is None:
        return
    for entry in value if isinstance(value, list) else [value]:
        check_budget(entry, norm, key)


def _referred(key: str, name: str, values: Mapping[str, Any], within: tuple[str, ...]) -> str:
    """The text of the setting that a reference in `key` names."""
    if name in within:
        fail(f"{key}: refers to itself by ${{{name}}}")
    if name not in values:
        fail(f"{key}: ${{{name}}}: only settings are put in, such as ${{run.name}}{nearest(name, list(values))}")
    return str(_resolved(name, values[name], values, within))


def _kind(entries: Sequence[tuple[str, Any, str]]) -> str:
    """The purifier's kind that the layers ask for; the last one counts."""
    kind = PurifierSettings().kind
    for key, value, source in entries:
        if key == KIND:
            kind = str(typed_setting(leaves(Settings), key, value, source))
    return kind


def setting_value(settings: Settings, key: str) -> Any:
    """The value of a dotted key, one of `leaves_of(settings)`."""
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def to_yaml(settings: Settings) -> str:
    """The resolved configuration as YAML that `cfg=PATH` takes back.

    Raises UserError for texts that no file could have brought in, such as an address with a password: it is written
    down where others read.
    """
    for key in leaves_of(settings):
        _check_texts(key, setting_value(settings, key), "settings")
    return OmegaConf.to_yaml(OmegaConf.create(asdict(settings)))
