"""Rows of a report are what the records say; of a random purifier, whose draws are known here, all four numbers."""

import dataclasses
from pathlib import Path
from statistics import fmean, mode

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.catalog import NamedAttack
from maep.evaluation.reporting.provenance import write_environment
from maep.evaluation.reporting.report import build_report, read_results
from maep.evaluation.reporting.rows import combine, draw_accuracies
from maep.evaluation.scoring.chunk_record import ChunkRecord, read_records
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import read_plan
from maep.evaluation.workers import evaluate_all
from maep.purifiers import Purifier
from tests.evaluation.small_evaluation import directory_of, settings_for
from tests.small import digits, train_small, write_shards

CHUNK, DRAWS = 3, 4
# Scoring's key has two numbers, that of the draws on clean images three; attacked images are drawn after a call each
# for clean, attacked and 8-bit ones.
CLEAN_ONE, ATTACKED_ONE = range(2, 3), range(3, 4)
CLEAN_CALLS, ATTACKED_CALLS = range(3, 3 + DRAWS), range(5, 5 + DRAWS)


class Blackening(nn.Module):
    """Call c blackens the images at the positions p of a batch where p + c is a multiple of 3. A key of K numbers
    starts the calls at K.
    """

    calls = 0

    def reseed(self, *key: int) -> None:
        self.calls = len(key)

    def forward(self, images: Tensor) -> Tensor:
        kept = (torch.arange(len(images)) + self.calls) % 3 > 0
        self.calls += 1
        return images * kept.view(-1, 1, 1, 1)


def answers(images: Tensor, calls: range) -> list[list[int]]:
    """For each call, what the classifier behind the purifier says of each image, of chunks of three."""
    classifier = train_small()
    black = int(classifier(torch.zeros(1, *images.shape[1:])).argmax())
    seen = classifier(images).argmax(1).tolist()
    return [[black if (n % CHUNK + call) % 3 == 0 else answer for n, answer in enumerate(seen)] for call in calls]


def test_all_numbers_of_a_random_purifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One draw, mean, worst and majority, of clean and attacked images: in report.json, on the page, in the table."""
    test = write_shards(tmp_path / "test", 2 * CHUNK)
    settings = settings_for(
        tmp_path, attacks=["fgsm"], threat_models=["oblivious"], images=2 * CHUNK, chunk_images=CHUNK, batch_size=CHUNK,
        draws=DRAWS, check_images=1, figure_images=1,
    )  # fmt: skip
    defense = Defense(Blackening(), train_small(), "blackening", "small")
    assert evaluate_all([Evaluation(settings, defense, test, directory_of(settings))])
    images, labels = (part[: 2 * CHUNK] for part in digits())
    attack = NamedAttack("fgsm", "Linf", settings.evaluation.eps[0])
    attacked = attack.run(train_small(), images, labels, keys=range(6), seed=0, batch_size=CHUNK).images
    write_environment(Path(settings.run.dir), ["test"])
    row = build_report(settings, Path(settings.run.dir)).results[0].to_json()
    for what, batch, one, calls in (
        ("clean", images, CLEAN_ONE, CLEAN_CALLS), ("robust", attacked, ATTACKED_ONE, ATTACKED_CALLS)
    ):  # fmt: skip
        right = [[answer == label for answer, label in zip(draw, labels.tolist(), strict=True)]
                 for draw in answers(batch, calls)]  # fmt: skip
        (first,) = answers(batch, one)
        assert row[f"{what}_accuracy"] == pytest.approx(100 * fmean(map(int.__eq__, first, labels.tolist())), abs=1e-3)
        assert row[f"{what}_average"] == pytest.approx(100 * fmean(map(fmean, right)), abs=1e-3)
        assert row[f"{what}_worst"] == pytest.approx(100 * fmean(map(all, zip(*right, strict=True))), abs=1e-3)
        commonest = map(mode, zip(*answers(batch, calls), strict=True))
        assert row[f"{what}_majority"] == pytest.approx(
            100 * fmean(map(int.__eq__, commonest, labels.tolist())), abs=1e-3
        )
    assert row["draws"] == DRAWS
    assert len({row[f"clean_{name}"] for name in ("average", "worst", "majority")}) == 3, "they say different things"
    page, printed = (Path(settings.run.dir) / "report.html").read_text(), capsys.readouterr().out
    assert f"worst of {DRAWS} draws {row['clean_worst']:.1f}" in page
    assert "those of one draw" in page
    assert f"mean of {DRAWS}" in printed
    assert f"{row['clean_average']:.1f}" in printed


def test_records_without_clean_draws_have_no_numbers_of_them(tmp_path: Path) -> None:
    """Those of an earlier version stay valid; of a part of the images there is no number of all."""
    test = write_shards(tmp_path / "test", 2 * CHUNK)
    settings = settings_for(
        tmp_path, attacks=["fgsm"], threat_models=["oblivious"], images=2 * CHUNK, chunk_images=CHUNK, batch_size=CHUNK,
        draws=2, check_images=1, figure_images=1,
    )  # fmt: skip
    defense = Defense(Blackening(), train_small(), "blackening", "small")
    assert evaluate_all([Evaluation(settings, defense, test, directory_of(settings))])
    plan = read_plan(settings, directory_of(settings))
    ((folder, records),) = read_records(plan, directory_of(settings)).items()
    path = directory_of(settings) / folder / "chunk-0000.json"
    older = dataclasses.replace(records[0], clean_draws=None)
    older.write(path)
    assert "clean_draws" not in path.read_text()
    assert ChunkRecord.read(path) == older
    row = combine(settings, "blackening", plan, directory_of(settings) / folder, [older, records[1]]).result
    assert row.clean_average is row.clean_worst is row.clean_majority is None
    assert row.robust_average is not None
    (read,) = read_results(settings, Path(settings.run.dir) / "evaluation")[0].rows
    assert read.result.clean_average is None
    assert read.result.robust_average == row.robust_average


class Judging(Purifier):
    """Leaves images as they are, and takes those for attacked of which the corner's pixel is not black."""

    kind = "judging"
    detects = True

    def purify(self, images: Tensor) -> Tensor:
        return images

    def detected(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0].amax(1) > 0


def test_verdicts_of_a_purifier_that_judges(tmp_path: Path) -> None:
    """Shares of the clean and of the attacked images that it takes for attacked, image by image in the records; none
    where a chunk of an earlier version does not say.
    """
    test = write_shards(tmp_path / "test", 2 * CHUNK)
    settings = settings_for(
        tmp_path, attacks=["fgsm"], threat_models=["oblivious"], images=2 * CHUNK, chunk_images=CHUNK, batch_size=2,
        check_images=1, figure_images=1,
    )  # fmt: skip
    defense = Defense(Judging(), train_small(), "judging", "small")
    assert evaluate_all([Evaluation(settings, defense, test, directory_of(settings))])
    images, labels = (part[: 2 * CHUNK] for part in digits())
    attack = NamedAttack("fgsm", "Linf", settings.evaluation.eps[0])
    attacked = attack.run(train_small(), images, labels, keys=range(6), seed=0, batch_size=2).images
    expected = {
        name: Judging().detected(batch).tolist() for name, batch in (("clean", images), ("adversarial", attacked))
    }
    assert 0 <= sum(expected["clean"]) < sum(expected["adversarial"]) < 2 * CHUNK, "the verdicts differ"
    plan = read_plan(settings, directory_of(settings))
    ((folder, records),) = read_records(plan, directory_of(settings)).items()
    for name, verdicts in expected.items():
        assert [each for record in records for each in (record.detected or {})[name]] == verdicts
    write_environment(Path(settings.run.dir), ["test"])
    row = build_report(settings, Path(settings.run.dir)).results[0].to_json()
    assert row["detected_clean"] == pytest.approx(100 * fmean(expected["clean"]), abs=1e-3)
    assert row["detected_adversarial"] == pytest.approx(100 * fmean(expected["adversarial"]), abs=1e-3)
    page = (Path(settings.run.dir) / "report.html").read_text()
    assert f"{row['detected_clean']:.1f} % taken for attacked" in page
    assert f"{row['detected_adversarial']:.1f} % detected" in page
    older = dataclasses.replace(records[0], detected=None)
    assert "detected" not in older.to_json()
    part = combine(settings, "judging", plan, directory_of(settings) / folder, [older, records[1]]).result
    assert part.detected_clean is part.detected_adversarial is None
    assert "detected_clean" not in part.to_json()


def test_accuracies_of_draws() -> None:
    """By hand, of two chunks and three draws; of as many answers of one kind as of another the first counts."""
    chunks = [[[0, 1], [0, 2], [1, 2]], [[5], [5], [5]]]  # by chunk, draw and image
    average, worst, majority = draw_accuracies(chunks, [0, 1, 5])
    assert (average, worst, majority) == (pytest.approx(100 * (2 / 3 + 1 / 3 + 1) / 3, abs=1e-3), 33.3333, 66.6667)
    assert draw_accuracies([[[1], [0]]], [1])[2] == 100
