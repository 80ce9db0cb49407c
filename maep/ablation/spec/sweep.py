"""A sweep as its file describes it: axes, scales, what is read from each point, and the paper's numbers.

table: Table 15                                  its number in the paper; left out in a sweep of one's own
title: Patch size and mask ratio
scales:
  paper: {base: cifar10, set: {finetune: {method: none}}}
  cpu:   {base: ablation/small, note: what a reader must know}  may also replace grid, zip, names, readings, halving;
                                                                 a key of theirs that is ~ there is left out
grid:                                            the product of lists of values, one axis a key
  model.patch_size: [2, 4, 8]
  pretrain.mask_ratio: [0, 0.25, 0.5, 0.75]
zip: {objective.name: [mae, maep], pretrain.mask_ratio: [0.75, 0.5]}   lists side by side: one more axis
names: {zip: [plain MAE, MAEP]}                  what tables call the values of an axis
seeds: [0, 1, 2]
readings: {MAEP: {purifier: pretrained}}         rows of each point's report: purifier, attack, eps, threat_model
values: [clean_accuracy, robust_accuracy]        what is read there
paper: {2: {0: [90.49, 86.80], …}, …}            by the names of the axes, then of the readings if there are several
errata: [a sentence]
halving: {keep: 0.5, at: [300, 600], by: robust_accuracy}   stops hopeless points (maep.ablation.spec.halving)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maep.ablation.spec.halving import Halving, read_halving
from maep.config.load import config_file, nearest
from maep.runtime.errors import fail

FIELDS = (
    "table",
    "title",
    "scales",
    "grid",
    "zip",
    "names",
    "seeds",
    "readings",
    "values",
    "paper",
    "errata",
    "halving",
)
SCALE_FIELDS = ("base", "set", "note", "grid", "zip", "names", "readings", "halving")
READING = {"purifier": "pretrained", "attack": "autoattack-standard", "eps": "8/255", "threat_model": "oblivious"}
ACCURACIES = ("clean_accuracy", "robust_accuracy")
DEFAULT_SCALE = "paper"
ZIP = "zip"


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep: `choices[i]` are the settings of its i-th value, `names[i]` what it is called."""

    title: str
    names: tuple[str, ...]
    choices: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep at one scale.

    name: of its file. base: a configuration; fixed: settings on top of it. readings: `{name: what selects a row
    of the report}`. paper: `{names along the axes and of the reading: one number a value}`, None where none is known.
    """

    name: str
    file: Path
    table: str
    title: str
    scale: str
    note: str
    base: str
    fixed: dict[str, Any]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    readings: dict[str, dict[str, Any]]
    values: tuple[str, ...]
    paper: dict[tuple[str, ...], tuple[float | None, ...]]
    errata: tuple[str, ...]
    halving: Halving | None = None

    @property
    def directory(self) -> Path:
        """Where its tables go if run.dir does not say."""
        return Path("runs/ablation") / f"{self.name}-{self.scale}"


def is_sweep(name: str) -> bool:
    """Whether `cfg=NAME` is a sweep, which a file below configs/ablation or with a `scales` key is."""
    return "scales" in _read(config_file(name))


def read_sweep(name: str, scale: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """Read `cfg=NAME` at one of its scales.

    scale: `paper` if unset, or the only one there is. overrides: `grid.KEY=[…]`, `zip.KEY=[…]` and `seeds=[…]`.
    Raises UserError, naming the file, for an unknown key, an empty list, zipped lists of different lengths, a
    scale that does not exist, or paper values that do not match the axes.
    """
    file = config_file(name)
    tree = _read(file)
    _check_keys(file, tree, FIELDS)
    chosen, part = _scale(file, tree, scale)
    readings = _readings(file, tree.get("readings") or {"": {}})
    values = tuple(_list(file, "values", tree.get("values", list(ACCURACIES))))
    paper = _paper(file, tree, _axes(file, tree), readings, values)
    if "readings" in part:
        _check_keys(f"{file}: scales.{chosen}.readings", part["readings"], list(readings))
        readings = {**readings, **_readings(file, part["readings"])}
    of_scale: dict[str, Any] = {
        key: {name: value for name, value in {**tree.get(key, {}), **part[key]}.items() if value is not None}
        for key in ("grid", "zip", "names")
        if key in part
    }
    tree = _overridden(file, {**tree, **of_scale}, overrides)
    return Sweep(
        name=file.stem, file=file, table=str(tree.get("table", "")), title=str(tree.get("title", file.stem)),
        scale=chosen, note=str(part.get("note", "")), base=str(part["base"]), fixed=part.get("set") or {},
        axes=_axes(file, tree), seeds=tuple(_list(file, "seeds", tree.get("seeds", [0]))), readings=readings,
        values=values, paper=paper, errata=tuple(tree.get("errata", ())),
        halving=read_halving(file, part.get("halving", tree.get("halving"))),
    )  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        fail(f"{file}: cannot be read as YAML: {error}")
    if not isinstance(tree, dict):
        fail(f"{file}: must hold keys")
    return tree


def _check_keys(where: object, tree: Any, known: Sequence[str]) -> None:
    if not isinstance(tree, dict):
        fail(f"{where}: must hold keys: {', '.join(known)}")
    for key in tree:
        if key not in known:
            fail(f"{where}: {key}: unknown key{nearest(str(key), known)}; choose among {', '.join(known)}")


def _list(file: Path, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        fail(f"{file}: {key}={value}: expected a list")
    if not value:
        fail(f"{file}: {key}: is an empty list; give at least one value")
    return value


def _scale(file: Path, tree: dict[str, Any], wanted: str | None) -> tuple[str, dict[str, Any]]:
    scales = tree.get("scales")
    if not isinstance(scales, dict) or not scales:
        fail(f"{file}: scales: name at least one, such as {{{DEFAULT_SCALE}: {{base: cifar10}}}}")
    chosen = wanted or (next(iter(scales)) if len(scales) == 1 else DEFAULT_SCALE)
    if chosen not in scales:
        fail(f"--scale {chosen}: {file} has {', '.join(scales)}")
    part = scales[chosen]
    _check_keys(f"{file}: scales.{chosen}", part, SCALE_FIELDS)
    if "base" not in part:
        fail(f"{file}: scales.{chosen}: name its base configuration, such as base: cifar10")
    for key in ("grid", "zip"):
        _check_keys(f"{file}: scales.{chosen}.{key}", part.get(key, {}), list(tree.get(key, {})))
    return chosen, part


def _overridden(file: Path, tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The axes after arguments such as `grid.model.patch_size=[2, 4]`."""
    changed = {**tree, "grid": dict(tree.get("grid", {})), "zip": dict(tree.get("zip", {}))}
    for argument in overrides:
        path, _, text = argument.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            fail(f"{path} (argument {argument!r}): the value is not YAML")
        if path == "seeds":
            changed["seeds"] = value
            continue
        kind, _, key = path.partition(".")
        if kind == "zip" and key not in changed["zip"]:
            fail(f"{path} (argument {argument!r}): {file} zips {', '.join(changed['zip']) or 'nothing'}")
        changed[kind][key] = value
        names = {axis: told for axis, told in tree.get("names", {}).items() if axis != (key if kind == "grid" else ZIP)}
        changed["names"] = names
    return changed


def _axes(file: Path, tree: dict[str, Any]) -> tuple[Axis, ...]:
    grid, zipped, names = (tree.get(key) or {} for key in ("grid", "zip", "names"))
    for key, part in (("grid", grid), ("zip", zipped), ("names", names)):
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
        lists = [_list(file, f"zip.{key}", values) for key, values in zipped.items()]
        if len({len(values) for values in lists}) != 1:
            told = ", ".join(f"{key} has {len(values)}" for key, values in zipped.items())
            fail(f"{file}: zip: its lists must be equally long; {told}")
        choices = [dict(zip(zipped, row, strict=True)) for row in zip(*lists, strict=True)]
        axes.append(_axis(file, ZIP, choices, names.get(ZIP), ", ".join(zipped)))
    return tuple(axes)


def _axis(file: Path, key: str, choices: list[dict[str, Any]], names: Any, title: str = "") -> Axis:
    told = [", ".join(str(value) for value in choice.values()) for choice in choices]
    if names is not None:
        if len(_list(file, f"names.{key}", names)) != len(choices):
            fail(f"{file}: names.{key}: {len(names)} names for {len(choices)} values")
        told = [str(name) for name in names]
    for name in told:
        if told.count(name) > 1:
            fail(f"{file}: {key}: {name} is there twice")
    return Axis(title or key, tuple(told), tuple(choices))


def _readings(file: Path, tree: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(tree, dict):
        fail(f"{file}: readings: expected names, each with keys among {', '.join(READING)}")
    for name, reading in tree.items():
        _check_keys(f"{file}: readings.{name}", reading or {}, list(READING))
    return {str(name): {**READING, **(reading or {})} for name, reading in tree.items()}


def _paper(
    file: Path,
    tree: dict[str, Any],
    axes: Sequence[Axis],
    readings: dict[str, dict[str, Any]],
    values: Sequence[str],
) -> dict[tuple[str, ...], tuple[float | None, ...]]:
    """The published numbers by names; each must have its place along the axes."""
    levels = [axis.names for axis in axes] + ([tuple(readings)] if len(readings) > 1 else [])
    only = tuple(readings) if len(readings) == 1 else ()
    found: dict[tuple[str, ...], tuple[float | None, ...]] = {}

    def walk(part: Any, names: tuple[str, ...]) -> None:
        where = f"{file}: paper.{'.'.join(names)}" if names else f"{file}: paper"
        if len(names) == len(levels):
            numbers = part if isinstance(part, list) else [part]
            if len(numbers) != len(values) or not all(n is None or isinstance(n, int | float) for n in numbers):
                fail(
                    f"{where}: {part}: expected {len(values)} numbers ({', '.join(values)}); ~ where none is published"
                )
            found[(*names, *only)] = tuple(numbers)
            return
        level = levels[len(names)]
        if not isinstance(part, dict):
            fail(f"{where}: expected numbers under {', '.join(level)}")
        for name, below in part.items():
            if str(name) not in level:
                fail(f"{where}: {name}: not in the grid, which has {', '.join(level)}")
            walk(below, (*names, str(name)))

    if tree.get("paper") is not None:
        walk(tree["paper"], ())
    return found
