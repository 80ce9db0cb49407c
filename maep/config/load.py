"""From `cfg=NAME` and `key=value` arguments to one validated `Settings` object.

Layers, later ones win: the defaults of `maep.config.schema`; `configs/NAME.yaml` (and the `base:` files it
names); arguments. Every value is checked alone, so that a mistake names the layer it came from.
"""

import argparse
import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maep.config.schema import Settings
from maep.runtime.errors import fail

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WHOLE_IMAGE_OBJECTIVES = ("purification", "reconstruction", "trades_pixel", "trades_latent")
# Short names of settings on the command line.
ALIASES = {"purifier": "evaluation.purifier"}
FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


Leaves = dict[str, tuple[Any, Any]]


def leaves(cls: type, prefix: str = "") -> Leaves:
    """`{dotted key: (field, type)}` of every setting below a dataclass."""
    hints = get_type_hints(cls)
    found: Leaves = {}
    for item in fields(cls):
        key = prefix + item.name
        if is_dataclass(hints[item.name]):
            found |= leaves(hints[item.name], key + ".")
        else:
            found[key] = (item, hints[item.name])
    return found


LEAVES = leaves(Settings)
SECTIONS = tuple(item.name for item in fields(Settings))


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in LEAVES:
            yield from _flatten(value, key + ".")
        else:
            yield key, value


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if "|" not in str(hint) and "[" not in str(hint) else str(hint)


def _fractions(value: Any, hint: Any) -> Any:
    """`8/255` becomes a number where a number is wanted."""
    if isinstance(value, list):
        return [_fractions(item, hint) for item in value]
    if isinstance(value, str) and "float" in str(hint) and (match := FRACTION.fullmatch(value)):
        top, bottom = map(float, match.groups())
        return top / bottom if bottom else value
    return value


def _check_range(key: str, value: Any, metadata: Any, source: str) -> None:
    for item in value if isinstance(value, list) else [value]:
        if metadata.get("choices") and item not in metadata["choices"]:
            fail(f"{key}={item} ({source}): choose one of {', '.join(map(str, metadata['choices']))}")
        if item is None or isinstance(item, (str, bool, dict)):
            continue
        if metadata.get("low") is not None and not item >= metadata["low"]:
            fail(f"{key}={item} ({source}): must be at least {metadata['low']}")
        if metadata.get("high") is not None and not item <= metadata["high"]:
            fail(f"{key}={item} ({source}): must be at most {metadata['high']}")
        if metadata.get("above") is not None and not item > metadata["above"]:
            fail(f"{key}={item} ({source}): must be above {metadata['above']}")


def nearest(word: str, choices: Sequence[str]) -> str:
    """`; did you mean …?` for the choice most like `word`, or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


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
        fail(f"{key}={value!r} ({source}): wrong type, expected {_type_name(hint)}")
    _check_range(key, typed, item.metadata, source)


def _apply(config: Any, key: str, value: Any, source: str) -> None:
    """`apply_setting` for the settings of the system, with a hint for a section's name."""
    if key in SECTIONS:
        first = next(leaf for leaf in LEAVES if leaf.startswith(key + "."))
        fail(f"{key} ({source}): is a section; set one of its keys, such as {first}")
    apply_setting(config, LEAVES, key, value, source)


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


def load_settings(
    cfg: str | None = None, overrides: Sequence[str] = (), layers: Sequence[tuple[str, dict[str, Any]]] = ()
) -> Settings:
    """Resolve and validate a configuration.

    cfg: a name below configs/, a path to a YAML file, or None for the defaults alone; it names the run.
    overrides: `section.key=value`, the value in YAML syntax; `8/255` may be written for a number.
    layers: (where they are from, settings) on top of the files, keys dotted or nested.
    Raises UserError for an unknown key, a wrong type, a value out of range, or values that do not fit together.
    """
    config = OmegaConf.structured(Settings)
    if cfg:
        config.run.name = Path(cfg).stem
    for source, tree in [*(_layers(cfg) if cfg else []), *layers]:
        for key, value in _flatten(tree):
            _apply(config, key, value, source)
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals:
            fail(f"{argument!r}: expected key=value, such as run.seed=1")
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            fail(f"{key} (argument {argument!r}): the value is not YAML")
        _apply(config, ALIASES.get(key, key), value, f"argument {argument!r}")
    settings: Settings = OmegaConf.to_object(config)  # type: ignore[assignment]
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    """Checks that need more than one setting."""
    model, data = settings.model, settings.data
    if model.image_size % model.patch_size:
        fail(f"model.patch_size={model.patch_size}: does not divide model.image_size={model.image_size}")
    if model.image_size > data.image_size:
        fail(f"model.image_size={model.image_size}: larger than data.image_size={data.image_size}")
    for part in ("encoder", "decoder"):
        width, heads = getattr(model, f"{part}_width"), getattr(model, f"{part}_heads")
        if width % heads or width % 4:
            fail(f"model.{part}_width={width}: must be a multiple of 4 and of model.{part}_heads={heads}")
    if model.image_size % model.refine_scale:
        fail(f"model.refine_scale={model.refine_scale}: does not divide model.image_size={model.image_size}")
    if bool(model.stem_width) != bool(model.stem_depth):
        fail("model.stem_width and model.stem_depth: set both or neither")
    if data.cache_bytes and data.cache_bytes < 2 * data.cache_block:
        fail(f"data.cache_bytes={data.cache_bytes}: must hold two blocks of {data.cache_block}, or be 0")
    if settings.purify.overlap >= model.image_size:
        fail(f"purify.overlap={settings.purify.overlap}: must be below model.image_size={model.image_size}")
    if len(settings.classifier.mean) != 3 or len(settings.classifier.std) != 3:
        fail("classifier.mean and classifier.std: three numbers each, one a channel")
    if bool(settings.finetune.clean_shards) != bool(settings.finetune.adversarial_shards):
        fail("finetune.clean_shards and finetune.adversarial_shards: set both or neither")
    if settings.finetune.clean_shards and settings.finetune.source:
        fail("finetune.source and finetune.clean_shards: both name other images; set one")
    _check_masks(settings)


def _check_masks(settings: Settings) -> None:
    """Masking ratios must fit the objective: some are defined on hidden patches, some on whole images."""
    name, trainings = settings.objective.name, {"pretrain": settings.pretrain}
    if settings.finetune.method != "none":
        trainings["finetune"] = settings.finetune
    for section, train in trainings.items():
        hides = train.mask_ratio > 0 and train.mask_until > 0
        if name in WHOLE_IMAGE_OBJECTIVES and hides:
            fail(f"objective.name={name}: is defined on whole images; set {section}.mask_ratio=0")
        if name == "mae" and not (hides and train.mask_until == 1):
            also = " (or finetune.method=none)" if section == "finetune" else ""
            told = f"set {section}.mask_ratio above 0 and {section}.mask_until=1{also}"
            fail(f"objective.name=mae: learns from hidden patches alone; {told}")
    if name == "mlm" and not (settings.pretrain.mask_ratio > 0 and 0 < settings.pretrain.mask_until < 1):
        fail(
            "objective.name=mlm: has two stages; set pretrain.mask_ratio above 0 and pretrain.mask_until within (0, 1)"
        )


def setting_value(settings: Settings, key: str) -> Any:
    """The value of a dotted key, one of LEAVES."""
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def to_yaml(settings: Settings) -> str:
    """The resolved configuration as YAML that `cfg=PATH` takes back."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(settings)))


def settings_help() -> str:
    """Every setting with type, unit, default and help, for `--help`."""
    defaults = OmegaConf.to_container(OmegaConf.structured(Settings))
    lines = []
    for key, (item, hint) in LEAVES.items():
        value: Any = defaults
        for name in key.split("."):
            value = value[name]
        unit = f" [{item.metadata['unit']}]" if item.metadata.get("unit") else ""
        choices = f" ({', '.join(map(str, item.metadata['choices']))})" if item.metadata.get("choices") else ""
        lines.append(f"  {key}={value}  <{_type_name(hint)}>")
        lines.append(textwrap.indent(f"{item.metadata['help']}{choices}{unit}", "      "))
    return "settings (key=default <type>):\n" + "\n".join(lines)


def split_arguments(
    description: str,
    arguments: Sequence[str],
    *,
    options: argparse.ArgumentParser | None = None,
    default_cfg: str = "",
) -> tuple[argparse.Namespace, list[str]]:
    """Parse `cfg=NAME key=value … --option`, without resolving the settings.

    options: a parser made with `add_help=False` that holds the launcher's own `--` options and positionals.
    Returns its namespace (with `cfg`) and the `key=value` words. Raises UserError for an unknown option.
    """
    parser = argparse.ArgumentParser(
        description=description,
        parents=[options] if options else [],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"cfg=NAME: one of {', '.join([*config_names(), *sweep_names()])}\n\n{settings_help()}",
        exit_on_error=False,
    )
    pairs = [word for word in arguments if "=" in word and not word.startswith("-")]
    words = [word for word in arguments if word not in pairs]
    try:
        namespace, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        fail(str(error))
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        fail(f"{unknown[0]}: unknown argument{nearest(unknown[0], known)} (settings are written key=value)")
    chosen = [word.partition("=")[2] for word in pairs if word.startswith("cfg=")]
    namespace.cfg = chosen[-1] if chosen else default_cfg
    return namespace, [word for word in pairs if not word.startswith("cfg=")]


def command_line(
    description: str,
    arguments: Sequence[str],
    *,
    options: argparse.ArgumentParser | None = None,
    default_cfg: str = "",
) -> tuple[argparse.Namespace, Settings]:
    """Parse `cfg=NAME key=value … --option` as `split_arguments`, and resolve the settings.

    Raises UserError on bad input.
    """
    namespace, overrides = split_arguments(description, arguments, options=options, default_cfg=default_cfg)
    return namespace, load_settings(namespace.cfg or None, overrides)
