"""The median filter: exact medians, mirrored ends, the median pixel's gradient, its own settings; a run of it."""

from pathlib import Path

import pytest
import torch

from maep import load_purifier
from maep.config.load import load_settings
from maep.pipeline.execution import run_pipeline
from maep.purifiers import save_purifier
from maep.purifiers.median import MedianPurifier, MedianSettings
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from tests.small import ATTACKERS
from tests.tiny import Problem

QUICK = [
    "purifier.kind=median", f"evaluation.threat_models=[{','.join(ATTACKERS)}]", "evaluation.attacks=[pgd-3]",
    "evaluation.images=12", "evaluation.adaptive_images=12", "evaluation.chunk_images=12", "evaluation.batch_size=12",
    "evaluation.blackbox_attacks=[square-20]",
]  # fmt: skip


@pytest.mark.parametrize("window", [3, 5])
def test_each_pixel_is_the_median_around_it(window: int) -> None:
    """Against the definition, pixel by pixel, channels apart, images mirrored at their ends."""
    images, half = torch.rand(2, 3, 9, 7), window // 2
    padded = torch.nn.functional.pad(images, (half,) * 4, mode="reflect")
    expected = torch.empty_like(images)
    for row in range(9):
        for column in range(7):
            around = padded[:, :, row : row + window, column : column + window].flatten(2)
            expected[:, :, row, column] = around.median(-1).values
    assert torch.equal(MedianPurifier(MedianSettings(window))(images), expected)


def test_removes_single_pixels_and_keeps_edges() -> None:
    """Salt is gone, a straight edge stays where it is."""
    images = torch.zeros(1, 3, 8, 8)
    images[:, :, :, 4:] = 1
    salted = images.clone()
    salted[:, :, 3, 1] = 1
    assert torch.equal(MedianPurifier(MedianSettings())(salted), images)


def test_the_gradient_goes_to_the_median_pixel() -> None:
    """Of a plain window, each output's gradient is one at one pixel: as many as there are outputs, all told."""
    images = torch.rand(1, 3, 6, 6, dtype=torch.float64).requires_grad_()
    purifier = MedianPurifier(MedianSettings())
    (gradient,) = torch.autograd.grad(purifier(images).sum(), images)
    assert gradient.sum() == images.numel()
    assert torch.equal(gradient, gradient.round())
    assert torch.autograd.gradcheck(purifier, images, eps=1e-9)


def test_a_window_without_a_middle_is_refused() -> None:
    """On the command line, in code, and in a saved config: one line that names the setting."""
    with pytest.raises(UserError, match=r"median\.window=4: must be odd, such as 5"):
        MedianPurifier(MedianSettings(4))
    with pytest.raises(UserError, match=r"median\.window=4: must be odd, such as 5"):
        load_settings(None, ["purifier.kind=median", "median.window=4"])
    with pytest.raises(UserError, match=r"median\.window=4: must be odd, such as 5"):
        MedianPurifier.from_config({"median": {"window": 4}}, {})
    with pytest.raises(UserError, match=r"config: window=1: must be at least 3"):
        MedianPurifier.from_config({"median": {"window": 1}}, {})
    with pytest.raises(UserError, match=r"weights: a purifier of kind median has no weights"):
        MedianPurifier.from_config({"median": {}}, {"x": torch.zeros(1)})


def run_median(problem: Problem, run: Path, *arguments: str) -> None:
    """All stages of a run of the filter; no training is launched."""
    words = problem.arguments(run, *QUICK, *arguments)[1:]
    run_pipeline(load_settings("digits", words), "all", lambda name, _: pytest.fail(f"{name} was launched"))


def test_a_run_judges_it_under_every_threat_model(problem: Problem, tmp_path: Path) -> None:
    """Nothing is trained; run.dir/purifier ships it; clean and attacked accuracy in all threat models, by its kind."""
    run = tmp_path / "run"
    run_median(problem, run)
    assert sorted(path.stem for path in (run / "stages").iterdir() if path.suffix == ".json") == [
        "classifier", "evaluate", "report", "shards",
    ]  # fmt: skip
    images = torch.rand(1, 3, 20, 20)
    assert torch.equal(load_purifier(run)(images), MedianPurifier(MedianSettings())(images))
    rows = read_json(run / "report.json")["results"]
    assert {row["threat_model"] for row in rows} == set(ATTACKERS)
    assert {row["purifier"] for row in rows} == {"median"}
    assert all(0 <= row["robust_accuracy"] <= row["clean_accuracy"] <= 100 for row in rows)


def test_another_window_is_another_purifier(problem: Problem, tmp_path: Path) -> None:
    """The same run directory, judged again; a trained purifier in it is not overwritten."""
    run = tmp_path / "run"
    threats = "evaluation.threat_models=[oblivious]"
    run_median(problem, run, threats)
    before = read_json(run / "evaluation/median/plan.json")["purifier"]
    run_median(problem, run, threats, "median.window=5")
    assert read_json(run / "evaluation/median/plan.json")["purifier"] != before
    assert read_json(run / "purifier/config.json")["median"] == {"window": 5}
    config = (run / "purifier/config.json").read_text().replace('"median"', '"maep"', 1)
    (run / "purifier/config.json").write_text(config)
    with pytest.raises(UserError, match=r"purifier: holds one of kind maep, not median; choose another run\.dir"):
        run_median(problem, run, threats, "median.window=7")


def test_a_saved_one_is_used_as_it_was_saved(tmp_path: Path) -> None:
    """Its window is part of it: another of the same kind is refused, where it would be judged under a wrong name; what
    settings of another kind say is not about it.
    """
    save_purifier(MedianPurifier(MedianSettings(window=5)), tmp_path / "purifier")
    saved = load_purifier(tmp_path)
    for words in (["purifier.kind=median", "median.window=5"], ["purifier.kind=jpeg"], []):
        assert saved.used_as(load_settings(None, words)) is saved
    with pytest.raises(
        UserError, match=r"^median\.window=3: some/run was saved with 5, which is part of it; set it to"
    ):
        saved.used_as(load_settings(None, ["purifier.kind=median"]), "some/run")
