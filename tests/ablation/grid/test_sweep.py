"""Bad sweeps are answered with one line that names file, place and choice, before anything runs."""

import re
from pathlib import Path
from typing import Any

import pytest

from maep.ablation.grid.halving import Halving
from maep.ablation.grid.points import expand, settings_identity
from maep.ablation.grid.sweep import read_sweep
from maep.ablation.running.point_runs import parse_only
from maep.ablation.running.reuse import pretraining_key, reuse_between
from maep.ablation.study import prepare
from maep.config.load import load_settings
from maep.config.pair_source import _source, source_facts
from maep.config.values import _parsed, parse_yaml, settled
from maep.runtime.errors import UserError
from tests.ablation.sweeps import nested, write

READ = {"": {"attack": "pgd-20", "eps": "32/255"}}  # one of cfg=digits's attackers


def refusal(path: Path, *words: str, scale: str | None = None, **changes: Any) -> str:
    """What is said of a sweep file with these changes."""
    with pytest.raises(UserError) as caught:
        prepare(str(write(path / "sweep.yaml", **changes)), scale, words)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grid": {"objective.distanse": ["l1", "mse"]}, "paper": None}, "did you mean objective.distance?"),
        ({"grid": {"objective.distance": []}}, "grid.objective.distance: is an empty list"),
        ({"grid": {"objective.distance": "l1"}}, "expected a list"),
        ({"grid": {"objective.distance": ["l1", "l1"]}}, "l1 is there twice"),
        ({"grid": {"objective.distance": ["l1", "l3"]}, "paper": None}, "choose one of l1, mse, smooth_l1"),
        ({"grid": {}, "zip": {"run.seed": [0, 1], "pretrain.lr": [0.1]}, "paper": None}, "run.seed has 2, pretrain.lr"),
        ({"names": {"objective.distance": ["L1"]}}, "1 names for 2 values"),
        ({"names": {"objective.name": ["L1"]}}, "no such axis"),
        ({"paper": {"l2": [1, 2]}}, "paper: l2: not in the grid, which has l1, mse"),
        ({"paper": {"l1": [1]}}, "expected 2 numbers"),
        ({"paper": [1, 2]}, "expected numbers under l1, mse"),
        ({"seeds": []}, "seeds: is an empty list"),
        ({"scales": {}}, "name at least one"),
        ({"scales": {"cpu": {"bases": "digits"}}}, "did you mean base?"),
        ({"scales": {"cpu": {"base": "digit"}}}, "did you mean digits?"),
        ({"readings": {"a": {"attak": "pgd-2"}}}, "did you mean attack?"),
        ({"readings": {"a": {"threat_model": "adaptve"}}}, "readings.a: threat_model=adaptve: no such; did you mean"),
        ({"readings": {"a": {"attack": "pgd"}}}, "readings.a: attack: pgd: unknown attack; choose from fgsm"),
        ({"readings": {"a": {"eps": "8/0"}}}, "readings.a: eps=8/0: expected a budget"),
        ({"values": ["robust_acuracy"], "paper": None}, "values: robust_acuracy: no number of a report; did you mean"),
        ({"values": ["purifier"], "paper": None}, "values: purifier: no number of a report"),
        ({"costs": ["parametres"]}, "costs: parametres: no number of a report; did you mean parameters?"),
        (
            {"halving": {"at": [2], "by": "psnr_clean"}, "readings": {"": {"threat_model": "worst-case"}}},
            "halving.by: psnr_clean: a reading of worst-case has clean_accuracy and robust_accuracy",
        ),
        ({"grids": {}}, "did you mean grid?"),
        ({"halving": {"at": [2], "kep": 1}}, "did you mean keep?"),
        ({"halving": {"at": [2], "keep": 1}}, "halving.keep: 1: expected a share above 0 and below 1"),
        ({"halving": {}}, "halving.at: None: expected steps"),
        ({"halving": {"at": [3, 2]}}, "expected rising steps"),
        ({"halving": {"at": [2], "by": "loss"}}, "halving.by: loss: choose one of robust_accuracy"),
        ({"halving": {"at": [2, 4]}}, "halving.at: 4: l1 · seed 0 has pretrain.steps=4; stay below"),
    ],
)
def test_bad_files(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Unknown keys, empty lists, lengths and paper values that do not match."""
    assert told in refusal(tmp_path, **changes)


def test_points_with_the_same_settings(tmp_path: Path) -> None:
    """Two names for one configuration: 0.5 is what the base has already."""
    axes = {"pretrain.mask_ratio": [0.5, 0.5]}
    told = refusal(tmp_path, grid={}, zip=axes, names={"zip": ["a", "b"]}, paper=None)
    assert "a · seed 0" in told
    assert "resolve to the same settings" in told


def test_missing_data(tmp_path: Path) -> None:
    """No root, and a root that is not there."""
    scales = {"cpu": {"base": "cifar10_small"}}
    assert "give data.root=PATH" in refusal(tmp_path, scales=scales)
    assert "no such file or directory" in refusal(tmp_path, f"data.root={tmp_path}/none", scales=scales)


def test_mixed_scales(tmp_path: Path) -> None:
    """Another data set's configuration, as the tested one or as the source of pairs, must be of the same scale."""
    for key in ("base", "pretrain.source"):
        axes = {key: ["digits_small", "cifar10"], "run.seed": [0, 1]}
        told = refusal(tmp_path, grid={}, zip=axes, paper=None, scales={"cpu": {"base": "digits_small"}})
        assert "digits_small has model.patch_size=4 and cifar10 2; a table has one scale" in told


def test_a_scale_is_what_is_set(tmp_path: Path) -> None:
    """Of configurations that differ, `set` makes one scale; not of one that pairs come from."""
    settings = {"model.encoder_depth": 3, "model": {"patch_size": 8}, "pretrain.steps": 10}
    scales = {"cpu": {"base": "digits", "set": settings}}
    axes = {"base": ["digits", "nim_mae/digits"], "run.seed": [0, 1]}
    file = write(tmp_path / "sweep.yaml", grid={}, zip=axes, paper=None, readings=READ, scales=scales)
    points = expand(read_sweep(str(file), "cpu", ()), ())
    assert [point.settings.pretrain.steps for point in points] == [10, 10]
    axes = {"pretrain.source": [None, "nim_mae/digits"], "run.seed": [0, 1]}
    told = refusal(tmp_path, grid={}, zip=axes, paper=None, scales=scales)
    assert "digits has pretrain.steps=10 and nim_mae/digits 400" in told


def test_a_scale_may_leave_out_a_reading(tmp_path: Path) -> None:
    """One that is ~ there, where it would take too long; not all of them."""
    readings = {name: {**READ[""], "threat_model": name} for name in ("oblivious", "adaptive")}
    scales = {"cpu": {"base": "digits", "readings": {"adaptive": None}}, "whole": {"base": "digits"}}
    path = write(tmp_path / "sweep.yaml", scales=scales, readings=readings, paper=None)
    names = {scale: list(read_sweep(str(path), scale).row_selectors) for scale in scales}
    assert names == {"cpu": ["oblivious"], "whole": ["oblivious", "adaptive"]}
    scales["cpu"]["readings"] = dict.fromkeys(readings)
    told = refusal(tmp_path, scale="cpu", scales=scales, readings=readings, paper=None)
    assert "scales.cpu.readings: leaves out all of them" in told


def test_arguments(tmp_path: Path) -> None:
    """A key of the grid is set as grid.KEY; an unknown scale names those there are."""
    assert "write grid.objective.distance=" in refusal(tmp_path, "objective.distance=mse")
    assert "has cpu" in refusal(tmp_path, scale="paper")
    with pytest.raises(UserError, match="expected points such as"):
        parse_only("3-9", 4)
    with pytest.raises(UserError, match="compares its points"):
        parse_only("3", 4, Halving(0.5, (2,)))


def test_values_from_the_command_line(tmp_path: Path) -> None:
    """More values, fewer values, more seeds; the paper's numbers stay with the values they belong to."""
    study = prepare(str(write(tmp_path / "s.yaml")), None, ["grid.objective.distance=[mse, smooth_l1]", "seeds=[0, 3]"])
    labels = [(point.names, point.seed) for point in study.points]
    assert labels == [(("mse",), 0), (("mse",), 3), (("smooth_l1",), 0), (("smooth_l1",), 3)]
    assert study.sweep.paper["mse", ""] == (93.59, 69.72)


def test_products_and_zips(tmp_path: Path) -> None:
    """Every value of the grid with every row of the zip."""
    axes = {"pretrain.lr": [0.1, 0.2], "pretrain.warmup": [0.0, 0.5]}
    points = expand(read_sweep(str(write(tmp_path / "s.yaml", zip=axes, paper=None))))
    found = [(p.settings.objective.distance, p.settings.pretrain.lr, p.settings.pretrain.warmup) for p in points]
    assert found == [("l1", 0.1, 0.0), ("l1", 0.2, 0.5), ("mse", 0.1, 0.0), ("mse", 0.2, 0.5)]
    assert len({point.directory for point in points}) == 4


def test_identity_is_of_results_alone() -> None:
    """Where things are and how work is shared does not count; everything else does."""
    plain = settings_identity(load_settings("digits"))
    for word in ("run.dir=elsewhere", "run.cache=there", "run.name=x", "data.workers=7", "pretrain.save_every=9"):
        assert settings_identity(load_settings("digits", [word])) == plain
    for word in ("run.seed=1", "pretrain.lr=0.5", "evaluation.images=7", "objective.smoothing=0.5"):
        assert settings_identity(load_settings("digits", [word])) != plain


def test_the_scale_of_a_sweep_that_names_none(tmp_path: Path) -> None:
    """`paper`, wherever it stands in the file; without one the first."""
    for names, chosen in ((("cpu", "paper"), "paper"), (("cpu", "other"), "cpu"), (("other",), "other")):
        scales = {name: {"base": "digits"} for name in names}
        assert (
            read_sweep(str(write(tmp_path / f"{len(names)}{chosen}.yaml", scales=scales, paper=None))).scale == chosen
        )


def test_a_scale_replaces_values(tmp_path: Path) -> None:
    """A scale's own grid, of the same keys; other keys are refused."""
    own = {"cpu": {"base": "digits", "grid": {"objective.distance": ["mse"]}}}
    assert read_sweep(str(write(tmp_path / "s.yaml", scales=own, paper=None))).axes[0].names == ("mse",)
    none = {"cpu": {"base": "digits", "grid": {"objective.distance": None}}}
    assert read_sweep(str(write(tmp_path / "s.yaml", scales=none, paper=None))).axes == ()
    other = {"cpu": {"base": "digits", "grid": {"pretrain.lr": [1]}}}
    assert "pretrain.lr: unknown key" in refusal(tmp_path, scales=other)


def test_nested_and_dotted_settings_mean_the_same(tmp_path: Path) -> None:
    """`set` takes either form."""
    forms = (nested(["pretrain.lr=0.5"]), {"pretrain": {"lr": 0.5}})
    files = [
        write(tmp_path / f"{n}.yaml", scales={"cpu": {"base": "digits", "set": form}}, readings=READ)
        for n, form in enumerate(forms)
    ]
    first, second = (expand(read_sweep(str(file))) for file in files)
    assert [point.identity for point in first] == [point.identity for point in second]


@pytest.mark.parametrize(
    ("reading", "told"),
    [
        ({"attack": "pgd-7"}, "pgd-7 at 32/255 as oblivious"),
        ({"eps": "8/255"}, "pgd-20 at 8/255 as oblivious"),
        ({"threat_model": "bpda"}, "pgd-20 at 32/255 as bpda"),
        ({"threat_model": "blackbox"}, "pgd-20 at 32/255 as blackbox"),  # which has attacks of its own
    ],
)
def test_a_column_that_would_stay_empty_is_refused(reading: dict[str, str], told: str, tmp_path: Path) -> None:
    """Before an hour is spent on points whose reports lack it; what one of the points has is enough."""
    path = write(tmp_path / "sweep.yaml", scales={"cpu": {"base": "digits"}}, readings={"a": {**READ[""], **reading}})
    with pytest.raises(UserError, match=re.escape(f"readings.a: no point is attacked by {told}; ")):
        expand(read_sweep(str(path)))
    attacks = {"evaluation.attacks": [["pgd-7"], ["pgd-20"]]}
    assert len(expand(read_sweep(str(write(path, grid=attacks, readings=READ, paper=None))))) == 2


def test_points_share_what_is_read(tmp_path: Path) -> None:
    """A file is parsed and a source resolved once, however many points there are; no point can change another's."""
    sources = {"pretrain.source": ["digits"], "pretrain.source_set": [["data.train_limit=60"]]}
    parsed = []
    for rates in ([1e-3], [1e-3, 2e-3, 3e-3, 4e-3]):
        _parsed.cache_clear()
        _source.cache_clear()
        path = write(tmp_path / "sweep.yaml", grid={"pretrain.lr": rates, **sources}, paper=None)
        points = prepare(str(path), None, []).points
        parsed.append(_parsed.cache_info().misses)
    assert parsed[0] == parsed[1]
    assert _source.cache_info().misses == 1
    first, second = (source_facts(point.settings)["pretrain"] for point in points[:2])
    first.data.train_limit = 1
    assert second.data.train_limit == source_facts(points[0].settings)["pretrain"].data.train_limit == 60


def test_what_is_parsed_is_the_callers_own() -> None:
    """A tree that was read before is not the one that somebody has changed since."""
    parse_yaml("a: {b: [1]}")["a"]["b"].append(2)
    assert settled(parse_yaml("a: {b: [1]}")) == {"a": {"b": [1]}}


def test_defenses_without_training_ask_for_none() -> None:
    """Of a trained defense and three others, one pretraining and one set of attacked training images are counted."""
    bases = "zip.base=[digits, jpeg/digits, median/digits, anti_adversary/digits]"
    sweep = read_sweep("ablation/zoo", "cpu", [bases])
    work = {reuse.kind: (reuse.requests, reuse.distinct) for reuse in reuse_between(expand(sweep))}
    assert work["pretrainings"] == work["training images attacked"] == (1, 1)
    assert work["classifiers trained"] == (4, 1)


def test_defenses_side_by_side_are_trained_for_a_number_of_steps() -> None:
    """Those of their configurations; `~` in a list would unset them, and a row be trained for epochs, far longer."""
    points = expand(read_sweep("ablation/zoo", "cpu"))
    assert {point.settings.pretrain.steps for point in points} == {400}


def test_defenses_on_one_denoiser_train_it_once() -> None:
    """DiffPure, GDMP and ScoreOpt ask the same network; another width, reach or objective is another training."""
    kinds = [load_settings(f"{name}/digits") for name in ("diffpure", "gdmp", "scoreopt")]
    assert len({pretraining_key(settings) for settings in kinds}) == 1
    others = [
        load_settings("flowpure/digits"),
        *(load_settings("gdmp/digits", [word]) for word in ("gdmp.width=16", "gdmp.latest=0.3", "pretrain.steps=9")),
    ]
    assert len({pretraining_key(settings) for settings in (kinds[0], *others)}) == 5
    for kind, use, other in (("comdefend", "test_noise=3", "bits=5"), ("pixeldefend", "eps=0.5", "layers=1")):
        keys = [pretraining_key(load_settings(f"{kind}/digits", words)) for words in
                ([], [f"{kind}.{use}"], [f"{kind}.{other}"])]  # fmt: skip
        assert keys[0] == keys[1] != keys[2], "one that is used in another way is not trained again"
    used = load_settings("diffpure/digits", ["diffpure.time=0.1", "diffpure.sampler=ode"])
    assert pretraining_key(used) == pretraining_key(kinds[0])
