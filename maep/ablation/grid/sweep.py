"""A sweep as its file describes it: axes, scales, what is read from each point, and the paper's numbers.

table: Table 15                                  its number in the paper; left out in a sweep of one's own
title: Patch size and mask ratio
scales:
  paper: {base: cifar10, set: {finetune: {method: none}}}
  cpu:   {base: ablation/small, note: what a reader must know}  may also replace grid, zip, names, readings, halving,
                                                                 and add claims; a key of an axis, or a reading, that
                                                                 is ~ there is left out
grid:                                            the product of lists of values, one axis a key
  model.patch_size: [2, 4, 8]
  pretrain.mask_ratio: [0, 0.25, 0.5, 0.75]
zip: {objective.name: [mae, maep], pretrain.mask_ratio: [0.75, 0.5]}   lists side by side: one more axis
names: {zip: [plain MAE, MAEP]}                  what tables call the values of an axis
seeds: [0, 1, 2]
readings: {MAEP: {purifier: pretrained}}         rows of each point's report: purifier, attack, eps, threat_model
values: [clean_accuracy, robust_accuracy]        what is read there; a dash where a report has no such number
paper: {2: {0: [90.49, 86.80], …}, …}            by the names of the axes, then of the readings if there are several
costs: [parameters, seconds_per_image]           of each point's first row; in a table of their own
claims: {2: {0: {claimed: 85.5, found: 1.0, by: who}, …}, …}   robust accuracies of elsewhere, by the names of the axes
others: [[DiffPure, how it was attacked, 88.15, 87.29], …]   other defenses as published, no points of this sweep
errata: [a sentence]
halving: {keep: 0.5, at: [300, 600], by: robust_accuracy}   stops hopeless points (maep.ablation.grid.halving)
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from maep.ablation.grid.halving import Halving, read_halving
from maep.ablation.grid.row_selector import RowSelector, read_row_selector
from maep.config.load import config_file, settled_settings
from maep.config.values import parse_yaml, read_yaml
from maep.runtime.errors import UserError, fail, nearest
from maep.storage.documents import read_fields

ZIP = "zip"
AXIS_FIELDS = ("grid", ZIP, "names")
FIELDS = (
    "table", "title", "scales", *AXIS_FIELDS, "seeds", "readings", "values", "paper", "costs", "claims", "others",
    "errata", "halving",
)  # fmt: skip
SCALE_FIELDS = ("base", "set", "note", *AXIS_FIELDS, "readings", "halving", "claims")
TEXTS = ("table", "title", "note", "names", "errata", "by")  # keys below which everything is text
ACCURACIES = ("clean_accuracy", "robust_accuracy")
DEFAULT_SCALE = "paper"

# `{names along the axes and of the row selector: one number a value}`, None where none is published.
PaperNumbers = Mapping[tuple[str, ...], tuple[float | None, ...]]


@dataclass(frozen=True)
class Claim:
    """Robust accuracies of a system elsewhere, in percent. claimed: by its authors; found: by whom `by` names, and how.

    Either is None where there is no number.
    """

    by: str
    claimed: float | None = None
    found: float | None = None


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep: `choices[i]` are the settings of its i-th value, `names[i]` what it is called."""

    title: str
    names: tuple[str, ...]
    choices: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class OtherDefense:
    """What was published of a defense that is no point of the sweep. attack: how it was judged; numbers: one a value of
    the sweep, None where none is published.
    """

    defense: str
    attack: str
    numbers: tuple[float | None, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep at one scale.

    name: of its file. base: a configuration; fixed: settings on top of it. row_selectors: what its file calls
    `readings`, by name. values: what is read from those rows. paper: what was published of them. costs: what is read
    of the first row for a table of its own. claims: by the names along the axes.
    """

    name: str
    file: Path
    table: str
    title: str
    scale: str
    note: str
    base: str
    fixed: Mapping[str, Any]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    row_selectors: Mapping[str, RowSelector]
    values: tuple[str, ...]
    paper: PaperNumbers
    errata: tuple[str, ...]
    others: tuple[OtherDefense, ...] = ()
    halving: Halving | None = None
    costs: tuple[str, ...] = ()
    claims: Mapping[tuple[str, ...], Claim] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where its tables go if run.dir does not say."""
        return Path("runs/ablation") / f"{self.name}-{self.scale}"

    @property
    def first_selector(self) -> RowSelector:
        """The row that figures show and that points compete by."""
        return next(iter(self.row_selectors.values()))


def is_sweep(name: str) -> bool:
    """Whether `cfg=NAME` is a sweep, which a file below configs/ablation or with a `scales` key is."""
    return "scales" in _read(config_file(name))


def read_sweep(name: str, scale: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """Read `cfg=NAME` at one of its scales.

    scale: if unset `paper`, or where there is none the first. overrides: `grid.KEY=[…]`, `zip.KEY=[…]` and `seeds=[…]`.
    Raises UserError, naming the file, for an unknown key, an empty list, zipped lists of different lengths, a
    scale that does not exist, or paper values that do not match the axes.
    """
    file = config_file(name)
    tree = _read(file)
    _check_keys(file, tree, FIELDS)
    scale, part = _scale(file, tree, scale)
    values = tuple(_list(file, "values", tree.get("values", list(ACCURACIES))))
    selectors = _row_selectors(file, tree.get("readings") or {"": {}})
    paper = _paper(file, tree.get("paper"), _axes(file, tree), selectors, values)
    claims = _claims(file, tree.get("claims"), _axes(file, tree))
    if "readings" in part:
        _check_keys(f"{file}: scales.{scale}.readings", part["readings"], list(selectors))
        own = part["readings"]
        selectors = {**selectors, **_row_selectors(file, own)}
        selectors = {name: each for name, each in selectors.items() if own.get(name, {}) is not None}
        if not selectors:
            fail(f"{file}: scales.{scale}.readings: leaves out all of them; keep one at least")
    at_scale = _at_scale(tree, part)
    claims |= _claims(file, part.get("claims"), _axes(file, at_scale))
    tree = _overridden(file, at_scale, overrides)
    return Sweep(
        name=file.stem, file=file, table=str(tree.get("table", "")), title=str(tree.get("title", file.stem)),
        scale=scale, note=str(part.get("note", "")), base=str(part["base"]), fixed=part.get("set") or {},
        axes=_axes(file, tree), seeds=tuple(_list(file, "seeds", tree.get("seeds", [0]))), row_selectors=selectors,
        values=values, paper=paper, errata=tuple(tree.get("errata", ())),
        others=_others(file, tree.get("others", []), values),
        halving=read_halving(file, part.get("halving", tree.get("halving"))),
        costs=tuple(_list(file, "costs", tree["costs"])) if "costs" in tree else (), claims=claims,
    )  # fmt: skip


def _read(file: Path) -> Mapping[str, Any]:
    try:
        tree: Mapping[str, Any] = settled_settings(read_yaml(file), TEXTS)
    except UserError as error:
        fail(f"{file}: {str(error).removeprefix(f'{file}: ')}")
    return tree


def _check_keys(source: object, tree: Any, keys: Sequence[str]) -> None:
    if not isinstance(tree, dict):
        fail(f"{source}: must hold keys: {', '.join(keys)}")
    for key in tree:
        if key not in keys:
            fail(f"{source}: {key}: unknown key{nearest(str(key), keys)}; choose among {', '.join(keys)}")


def _list(file: Path, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        fail(f"{file}: {key}={value}: expected a list")
    if not value:
        fail(f"{file}: {key}: is an empty list; give at least one value")
    return value


def _scale(file: Path, tree: Mapping[str, Any], name: str | None) -> tuple[str, Mapping[str, Any]]:
    """The name of the scale that is asked for, or the default one, and its part of the file."""
    scales = tree.get("scales")
    if not isinstance(scales, dict) or not scales:
        fail(f"{file}: scales: name at least one, such as {{{DEFAULT_SCALE}: {{base: cifar10}}}}")
    name = name or (DEFAULT_SCALE if DEFAULT_SCALE in scales else next(iter(scales)))
    if name not in scales:
        fail(f"--scale {name}: {file} has {', '.join(scales)}")
    part = scales[name]
    _check_keys(f"{file}: scales.{name}", part, SCALE_FIELDS)
    if "base" not in part:
        fail(f"{file}: scales.{name}: name its base configuration, such as base: cifar10")
    for key in ("grid", "zip"):
        _check_keys(f"{file}: scales.{name}.{key}", part.get(key) or {}, list(tree.get(key) or {}))
    return name, part


def _at_scale(tree: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The file with a scale's own axes and names; those that are ~ there are left out."""
    replaced = {
        key: {
            name: value for name, value in {**(tree.get(key) or {}), **(part[key] or {})}.items() if value is not None
        }
        for key in AXIS_FIELDS
        if key in part
    }
    return {**tree, **replaced}


def _overridden(file: Path, tree: Mapping[str, Any], overrides: Sequence[str]) -> Mapping[str, Any]:
    """The axes after arguments such as `grid.model.patch_size=[2, 4]`."""
    changed = {**tree, "grid": dict(tree.get("grid") or {}), "zip": dict(tree.get("zip") or {})}
    for argument in overrides:
        path, _, text = argument.partition("=")
        try:
            value = settled_settings(parse_yaml(text), path=path)
        except yaml.YAMLError:
            fail(f"{path} (argument {argument!r}): the value is not YAML")
        if path == "seeds":
            changed["seeds"] = value
            continue
        kind, _, key = path.partition(".")
        if kind == ZIP and key not in changed[ZIP]:
            fail(f"{path} (argument {argument!r}): {file} zips {', '.join(changed[ZIP]) or 'nothing'}")
        changed[kind][key] = value
        # Names belong to the values that were there before.
        axis = key if kind == "grid" else ZIP
        changed["names"] = {name: names for name, names in (tree.get("names") or {}).items() if name != axis}
    return changed


def _axes(file: Path, tree: Mapping[str, Any]) -> tuple[Axis, ...]:
    grid, zipped, names = (tree.get(key) or {} for key in AXIS_FIELDS)
    for key, part in zip(AXIS_FIELDS, (grid, zipped, names), strict=True):
        if not isinstance(part, dict):
            fail(f"{file}: {key}: expected keys and lists")
    for key in names:
        if key not in (*grid, ZIP):
            fail(f"{file}: names.{key}: no such axis; choose among {', '.join((*grid, ZIP))}")
    axes = [
        _axis(file, key, [{key: value} for value in _list(file, f"grid.{key}", values)], names.get(key))
        for key, values in grid.items()
    ]
    if zipped:
        title = _title_of_lists(list(zipped), named=names.get(ZIP) is not None)
        axes.append(_axis(file, ZIP, _zipped(file, zipped), names.get(ZIP), title))
    return tuple(axes)


def _title_of_lists(keys: Sequence[str], *, named: bool) -> str:
    """Of settings that are side by side: all of them, but for those of named rows that would fill a page's width."""
    if named and len(keys) > 3:
        return f"{keys[0]}, {keys[1]} and {len(keys) - 2} more settings"
    return ", ".join(keys)


def _zipped(file: Path, part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of each row of lists that are side by side."""
    lists = [_list(file, f"{ZIP}.{key}", values) for key, values in part.items()]
    if len({len(values) for values in lists}) != 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in part.items())
        fail(f"{file}: {ZIP}: its lists must be equally long; {lengths}")
    return [dict(zip(part, row, strict=True)) for row in zip(*lists, strict=True)]


def _axis(file: Path, key: str, choices: Sequence[Mapping[str, Any]], names: Any, title: str = "") -> Axis:
    """names: of the values, as the file has them; None: the values themselves."""
    if names is not None and len(_list(file, f"names.{key}", names)) != len(choices):
        fail(f"{file}: names.{key}: {len(names)} names for {len(choices)} values")
    labels = [", ".join(map(str, choice.values())) for choice in choices] if names is None else list(map(str, names))
    for label, count in Counter(labels).items():
        if count > 1:
            fail(f"{file}: {key}: {label} is there twice")
    return Axis(title or key, tuple(labels), tuple(choices))


def _row_selectors(file: Path, tree: Any) -> dict[str, RowSelector]:
    keys = [item.name for item in fields(RowSelector)]
    if not isinstance(tree, dict):
        fail(f"{file}: readings: expected names, each with keys among {', '.join(keys)}")
    selectors = {}
    for name, entries in tree.items():
        source = f"{file}: readings.{name}"
        _check_keys(source, entries or {}, keys)
        selectors[str(name)] = read_row_selector(entries or {}, source)
    return selectors


def _paper(
    file: Path, tree: Any, axes: Sequence[Axis], selectors: Mapping[str, RowSelector], values: Sequence[str]
) -> PaperNumbers:
    """The published numbers; each must be of a value that is on the axes."""
    if tree is None:
        return {}
    several = len(selectors) > 1
    levels = [axis.names for axis in axes] + ([tuple(selectors)] if several else [])
    return {
        names if several else (*names, *selectors): _numbers(_key(file, "paper", names), part, values)
        for names, part in _leaves(file, tree, levels)
    }


def _claims(file: Path, tree: Any, axes: Sequence[Axis]) -> dict[tuple[str, ...], Claim]:
    """What was claimed and found of systems elsewhere; each must be on the axes."""
    levels = [axis.names for axis in axes]
    parts = {} if tree is None else dict(_leaves(file, tree, levels, key="claims"))
    return {names: read_fields(Claim, part, _key(file, "claims", names)) for names, part in parts.items()}


def _others(file: Path, tree: Any, values: Sequence[str]) -> tuple[OtherDefense, ...]:
    """Other defenses; each entry names one and its attack, then a number for each value."""
    others = []
    for entry in _list(file, "others", tree) if tree else ():
        if not isinstance(entry, list) or len(entry) < 3 or not all(isinstance(word, str) for word in entry[:2]):
            fail(f"{file}: others: {entry}: expected [defense, attack, {', '.join(values)}]")
        others.append(OtherDefense(entry[0], entry[1], _numbers(f"{file}: others: {entry[0]}", entry[2:], values)))
    return tuple(others)


def _leaves(
    file: Path, tree: Any, levels: Sequence[Sequence[str]], names: tuple[str, ...] = (), key: str = "paper"
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What is below a name of each level, with those names. key: of the tree in the file."""
    if not levels:
        yield names, tree
        return
    if not isinstance(tree, dict):
        fail(f"{_key(file, key, names)}: expected numbers under {', '.join(levels[0])}")
    for name, part in tree.items():
        if str(name) not in levels[0]:
            fail(f"{_key(file, key, names)}: {name}: not in the grid, which has {', '.join(levels[0])}")
        yield from _leaves(file, part, levels[1:], (*names, str(name)), key)


def _key(file: Path, key: str, names: Sequence[str]) -> str:
    return f"{file}: {'.'.join((key, *names))}"


def _numbers(source: str, part: Any, values: Sequence[str]) -> tuple[float | None, ...]:
    numbers = part if isinstance(part, list) else [part]
    if len(numbers) != len(values) or not all(n is None or isinstance(n, int | float) for n in numbers):
        fail(f"{source}: {part}: expected {len(values)} numbers ({', '.join(values)}); ~ where none is published")
    return tuple(numbers)
