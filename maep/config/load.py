"""From `cfg=NAME` and `key=value` arguments to one validated `Settings` object.

Layers, later ones win: the defaults of `maep.config.schema`; `configs/NAME.yaml` (and the `base:` files it
names); arguments. Every value is checked alone, so that a mistake names the layer it came from, and then all together
(`maep.config.consistency`).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, asdict, field, fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maep.config.consistency import check_consistency
from maep.config.implementations import implementation, names_of
from maep.config.schema import PurifierSettings, Settings
from maep.runtime.errors import fail, nearest

PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout configs/ stands beside the package; an installed wheel has it inside.
CONFIGS = next((path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir()), PACKAGE)
KIND = "purifier.kind"
KINDS = "maep.purifiers.registry:KINDS"
# Short names of settings on the command line.
ALIASES = {"purifier": "evaluation.purifier"}
FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")

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
        else:
            yield key, value


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


def _fractions(value: Any, hint: Any) -> Any:
    """`8/255` becomes a number where a number is expected."""
    if isinstance(value, list):
        return [_fractions(item, hint) for item in value]
    if isinstance(value, str) and "float" in str(hint) and (match := FRACTION.fullmatch(value)):
        top, bottom = map(float, match.groups())
        return top / bottom if bottom else value
    return value


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


def apply_setting(config: Any, known: Leaves, key: str, value: Any, source: str) -> None:
    """Set one key of a structured OmegaConf, checked. Raises UserError naming key, source and the valid choice.

    known: the leaves of its dataclass. source: where the value was written, for the message.
    """
    if key not in known:
        fail(f"{key} ({source}): unknown key{nearest(key, list(known))}")
    item, hint = known[key]
    value = _fractions(value, hint)
    try:
        OmegaConf.update(config, key, value, merge=False)
        typed = OmegaConf.select(config, key, throw_on_missing=True)
        typed = OmegaConf.to_container(typed) if OmegaConf.is_config(typed) else typed
    except OmegaConfBaseException:
        fail(f"{key}={value!r} ({source}): wrong type, expected {type_name(hint)}")
    _check_range(key, typed, item, source)


def _apply(config: Any, cls: type[Settings], key: str, value: Any, source: str) -> None:
    """`apply_setting` for the settings of the system, with a hint for a section's name."""
    section = key.partition(".")[0]
    if key in [item.name for item in fields(cls)]:
        first = next(leaf for leaf in leaves(cls) if leaf.startswith(key + "."))
        fail(f"{key} ({source}): is a section; set one of its keys, such as {first}")
    if key not in leaves(cls) and section not in [item.name for item in fields(cls)] and section in names_of(KINDS):
        fail(f"{key} ({source}): is a setting of another defense; set {KIND}={section} with it")
    apply_setting(config, leaves(cls), key, value, source)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        fail(f"{path}: cannot be read as YAML: {error}")
    if not isinstance(tree, dict):
        fail(f"{path}: must hold sections and keys")
    return tree


def config_names() -> list[str]:
    """Names that `cfg=` takes; configs/cluster is the launcher's, configs/ablation holds sweeps."""
    names = (p.relative_to(CONFIGS).with_suffix("") for p in CONFIGS.rglob("*.yaml"))
    return sorted(str(name) for name in names if name.parts[0] not in ("cluster", "ablation"))


def sweep_names() -> list[str]:
    """Names of the sweeps that `cfg=` takes."""
    return sorted(f"ablation/{path.stem}" for path in (CONFIGS / "ablation").glob("*.yaml"))


def config_file(name: str) -> Path:
    """The YAML of `cfg=NAME`: a name below configs/, or a path. Raises UserError with the valid names."""
    for path in (CONFIGS / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    names = [*config_names(), *sweep_names()]
    fail(f"cfg={name}: no such configuration{nearest(name, names)} (there are: {', '.join(names)})")


def _layers(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The YAML files of a configuration, the base first."""
    layers: list[tuple[str, dict[str, Any]]] = []
    following: str | None = name
    while following:
        path = config_file(following)
        tree = _read_yaml(path)
        if any(source == str(path) for source, _ in layers):
            fail(f"{path}: is its own base")
        following = tree.pop("base", None)
        layers.insert(0, (str(path), tree))
    return layers


def _parse_argument(argument: str) -> tuple[str, Any, str]:
    """`key=value` as (key, value, where it is from)."""
    key, equals, text = argument.partition("=")
    if not equals:
        fail(f"{argument!r}: expected key=value, such as run.seed=1")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        fail(f"{key} (argument {argument!r}): the value is not YAML")
    return ALIASES.get(key, key), value, f"argument {argument!r}"


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
    trees = [*(_layers(cfg) if cfg else []), *layers]
    entries = [(key, value, source) for source, tree in trees for key, value in _flatten(tree)]
    entries += map(_parse_argument, overrides)
    cls = settings_class(_kind(entries))
    config = OmegaConf.structured(cls)
    if cfg:
        config.run.name = Path(cfg).stem
    for entry in entries:
        _apply(config, cls, *entry)
    settings: Settings = OmegaConf.to_object(config)  # type: ignore[assignment]
    check_consistency(settings)
    if hasattr(settings, settings.purifier.kind):
        purifier = implementation("maep.purifiers.registry:purifier_class")(settings.purifier.kind)
        purifier.check(getattr(settings, settings.purifier.kind))
    return settings


def _kind(entries: Sequence[tuple[str, Any, str]]) -> str:
    """The purifier's kind that the layers ask for; the last one counts."""
    kind = PurifierSettings().kind
    for key, value, source in entries:
        if key == KIND:
            if value not in names_of(KINDS):
                fail(f"{key}={value} ({source}): choose one of {', '.join(names_of(KINDS))}")
            kind = str(value)
    return kind


def setting_value(settings: Settings, key: str) -> Any:
    """The value of a dotted key, one of `leaves_of(settings)`."""
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def to_yaml(settings: Settings) -> str:
    """The resolved configuration as YAML that `cfg=PATH` takes back."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(settings)))
