"""The points of a sweep: each a resolved configuration in a run directory named by its digest.

Points live in run.cache/points, shared by all sweeps: what one sweep has finished, another finds finished.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from maep.ablation.grid.row_selector import WORST_CASE, RowSelector
from maep.ablation.grid.sweep import ACCURACIES, Sweep
from maep.config.data_settings import DataSettings
from maep.config.identity import decisive_settings
from maep.config.load import Writing, leaves, load_settings, setting_value, writings
from maep.config.pair_source import source_facts
from maep.config.schema import Settings
from maep.evaluation.scoring.tasks import attacks_of, eps_text
from maep.purifiers.registry import stages_before
from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail

BASE = "base"
CONFIGURATIONS = (BASE, "pretrain.source", "finetune.source")
# What makes one training longer than another.
LENGTHS = tuple(f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("epochs", "steps", "batch_size"))


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep. names: one an axis; settings: with its own run directory."""

    names: tuple[str, ...]
    seed: int
    settings: Settings
    identity: str

    @property
    def directory(self) -> Path:
        """Its run directory."""
        return Path(self.settings.run.dir)

    @property
    def label(self) -> str:
        """What messages call it."""
        return " · ".join((*self.names, f"seed {self.seed}"))


def settings_identity(settings: Settings) -> str:
    """64 hex digits of all settings that results depend on, wherever files are and however work is shared."""
    return digest(decisive_settings(settings, "point"))


def as_point(settings: Settings) -> Settings:
    """The settings with the run directory and name of the point that they are."""
    identity = settings_identity(settings)
    # 16 hex digits keep paths short; that two of a million points share them has probability 3e-8.
    place = f"{settings.run.cache}/points/{identity[:16]}"
    return replace(settings, run=replace(settings.run, name=f"point-{identity[:8]}", dir=place))


def expand(sweep: Sweep, overrides: Sequence[str] = ()) -> list[Point]:
    """All points, seeds innermost, each resolved and validated.

    overrides: `section.key=value` for every point, or `BASE:section.key=value` for those on that configuration and
    for trainings that take their pairs from it. Raises UserError, naming the point, for bad settings, for two
    points with the same resolved settings, for configurations of different scales, for a data set that is not
    there, and for a reading that no point's evaluation has.
    """
    _check_overrides(sweep, overrides)
    _check_scale(sweep)
    points = [_point(sweep, *parts, overrides) for parts in _combinations(sweep)]
    by_identity: dict[str, Point] = {}
    for point in points:
        other = by_identity.setdefault(point.identity, point)
        if other is not point:
            fail(f"{sweep.file}: {point.label} and {other.label} resolve to the same settings; drop one")
        _check_rungs(sweep, point)
        for settings in (point.settings, *source_facts(point.settings).values()):
            _check_data(sweep, point, settings.data)
    _check_readings(sweep, points)
    return points


def _check_overrides(sweep: Sweep, overrides: Sequence[str]) -> None:
    """Raise UserError if an argument sets what an axis of the sweep varies."""
    for argument in overrides:
        key = argument.partition("=")[0]
        if key in _varied(sweep):
            fail(f"{key} (argument {argument!r}): {sweep.file} varies it; write grid.{key}=[…] or zip.{key}=[…]")


def _varied(sweep: Sweep) -> set[str]:
    """The keys that some axis sets."""
    return {key for axis in sweep.axes for choice in axis.choices for key in choice}


def _check_scale(sweep: Sweep) -> None:
    """Raise UserError if configurations of a sweep differ in size or training length, which none of its axes varies."""
    varied = _varied(sweep)
    choices = [choice for axis in sweep.axes for choice in axis.choices]
    bases = [str(choice[BASE]) for choice in choices if choice.get(BASE)] if BASE in varied else [sweep.base]
    others = (choice.get(key) for choice in choices for key in CONFIGURATIONS if key != BASE)
    fixed = [(str(sweep.file), sweep.fixed)]  # of what is judged; what pairs come from has settings of its own
    names = dict.fromkeys(bases, fixed) | {str(name): [] for name in others if name and name not in bases}
    first, *following = [load_settings(name, layers=layers) for name, layers in names.items()]
    keys = [key for key in leaves(Settings) if key.startswith("model.") or key in LENGTHS]
    for name, settings in zip(list(names)[1:], following, strict=True):
        for key in keys:
            value, other = setting_value(first, key), setting_value(settings, key)
            if value != other and key not in varied:
                fail(
                    f"{sweep.file}: scale {sweep.scale}: {next(iter(names))} has {key}={value} and {name} {other}; "
                    f"a table has one scale: choose configurations of the same, or vary {key}"
                )


def _combinations(sweep: Sweep) -> Iterator[tuple[tuple[str, ...], Mapping[str, object], int]]:
    """Names, settings and seed of every point."""
    indices = product(*(range(len(axis.names)) for axis in sweep.axes))
    for combination, seed in product(indices, sweep.seeds):
        values = list(zip(sweep.axes, combination, strict=True))
        settings = {key: value for axis, index in values for key, value in axis.choices[index].items()}
        yield tuple(axis.names[index] for axis, index in values), settings, seed


def words_for(base: str, overrides: Sequence[str]) -> list[str]:
    """Of `BASE:key=value` words those for this configuration, without its name."""
    return [word.removeprefix(f"{base}:") for word in overrides if word.startswith(f"{base}:")]


def _is_for_all(word: str) -> bool:
    return ":" not in word.partition("=")[0]


def _point(
    sweep: Sweep, names: tuple[str, ...], varied: Mapping[str, Any], seed: int, overrides: Sequence[str]
) -> Point:
    """The point of these names. varied: the settings that the axes give it, its configuration among them."""
    base, words, layers = _parts(sweep, {**varied, "run.seed": seed}, overrides)
    try:
        settings = load_settings(base, words, layers)
        identity = settings_identity(settings)
    except UserError as error:
        fail(f"{sweep.file}: {', '.join(names) or 'every point'}: {error}")
    return Point(names, seed, as_point(settings), identity)


def _parts(
    sweep: Sweep, varied: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[str, list[str], list[tuple[str, Mapping[str, Any]]]]:
    """What a point is loaded from, as `load_settings` takes it: its configuration, words and layers."""
    base = varied.get(BASE, sweep.base)
    settings_of_axes = _with_source_words({key: value for key, value in varied.items() if key != BASE}, overrides)
    layers = [(str(sweep.file), sweep.fixed), (str(sweep.file), settings_of_axes)]
    return base, [*filter(_is_for_all, overrides), *words_for(base, overrides)], layers


def writings_of_points(sweep: Sweep, overrides: Sequence[str], axes: Collection[str]) -> list[dict[str, Writing]]:
    """Who wrote the settings of each point, in order. axes: keys that the command's words vary, in place of the file.

    The seed is each point's own, and nobody's.
    """
    of_points = []
    for _, varied, _ in _combinations(sweep):
        written = writings(*_parts(sweep, varied, overrides))
        theirs = {key: replace(written[key], is_users=True) for key in axes if key in written}
        of_points.append(written | theirs)
    return of_points


def _with_source_words(settings: Mapping[str, Any], overrides: Sequence[str]) -> Mapping[str, Any]:
    """The settings, with the `BASE:key=value` words for configurations that trainings take their pairs from."""
    changed = dict(settings)
    for section in ("pretrain", "finetune"):
        source = changed.get(f"{section}.source")
        if source:
            words = words_for(source, overrides)
            changed[f"{section}.source_set"] = [*changed.get(f"{section}.source_set", []), *words]
    return changed


def _check_readings(sweep: Sweep, points: Sequence[Point]) -> None:
    """Raise UserError if a column of the table would stay empty after all points have been run."""
    for name, selector in sweep.row_selectors.items():
        if not any(_is_made(selector, point.settings) for point in points):
            fail(
                f"{sweep.file}: readings{f'.{name}' if name else ''}: purifier={selector.purifier}: no point judges "
                "such a one, by its purifier.kind, finetune.method and evaluation.purifiers"
            )
        if not any(is_judged(selector, point.settings) for point in points):
            evaluation = points[0].settings.evaluation
            threats = {threat: attacks_of(evaluation, threat) for threat in evaluation.threat_models}
            there = "; ".join(f"{threat}: {', '.join(attacks)}" for threat, attacks in threats.items())
            fail(
                f"{sweep.file}: readings{f'.{name}' if name else ''}: no point is attacked by {selector.attack} at "
                f"{selector.eps} as {selector.threat_model}; {points[0].label} is by: {there}; at "
                f"{', '.join(eps_text(eps) for eps in evaluation.eps)}"
            )


def _is_made(selector: RowSelector, settings: Settings) -> bool:
    """Whether a point judges a purifier that is finetuned, or one that is not, as the selector asks."""
    if selector.purifier == "final" or settings.evaluation.purifier:
        return True
    if selector.purifier == "pretrained":
        return settings.evaluation.purifiers != "finetuned"
    is_finetuned = "finetune" in stages_before(settings.purifier.kind) and settings.finetune.method != "none"
    return is_finetuned and settings.evaluation.purifiers != "pretrained"


def is_judged(selector: RowSelector, settings: Settings) -> bool:
    """Whether the report of a point has rows of this purifier, attacker, attack and budget."""
    evaluation = settings.evaluation
    if not any(map(selector.is_at, evaluation.eps)) or not _is_made(selector, settings):
        return False
    threat = selector.threat_model
    return threat == WORST_CASE or (
        threat in evaluation.threat_models and selector.attack in attacks_of(evaluation, threat)
    )


def _check_rungs(sweep: Sweep, point: Point) -> None:
    """Raise UserError if a rung of the halving lies beyond the point's pretraining, or if the first reading lacks what
    decides there.
    """
    steps = point.settings.pretrain.steps
    if sweep.halving and sweep.first_selector.threat_model == WORST_CASE and sweep.halving.by not in ACCURACIES:
        fail(f"{sweep.file}: halving.by: {sweep.halving.by}: a reading of {WORST_CASE} has {' and '.join(ACCURACIES)}")
    if sweep.halving and steps and sweep.halving.at[-1] >= steps:
        fail(f"{sweep.file}: halving.at: {sweep.halving.at[-1]}: {point.label} has pretrain.steps={steps}; stay below")


def _check_data(sweep: Sweep, point: Point, data: DataSettings) -> None:
    if data.shards or (data.format == "digits" and not data.root):
        return
    if data.root is None:
        fail(f"{sweep.file}: {point.label}: no images of {data.name}; give data.root=PATH, or BASE:data.root=PATH")
    if "://" not in data.root and not Path(data.root).exists():
        fail(f"data.root={data.root} ({point.label}): no such file or directory")
