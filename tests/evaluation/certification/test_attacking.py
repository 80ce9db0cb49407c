"""Attacks beside certificates: on models whose truth is known, on digits, resumed, and in the report."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from maep.config.evaluation_settings import CertifySettings
from maep.data.shards import ShardSet
from maep.evaluation.certification.attacked_record import (
    AttackedImage,
    AttackTask,
    plan_attacks,
    radii_of,
    read_attacked,
)
from maep.evaluation.certification.attacking import AttackUnit, PlainAttack, SmoothedAttack, falls
from maep.evaluation.certification.certificate_record import CERTIFICATES, CertificateRecord, CertifyIdentity
from maep.evaluation.certification.certifying import CertifyUnit, certify_all, units_of
from maep.evaluation.certification.smoothing import Smoothed
from maep.evaluation.reporting.certificates import _beside
from maep.evaluation.scoring.defense import Defense
from maep.runtime.errors import UserError
from tests.evaluation.certification.small_certification import settings_for
from tests.evaluation.certification.test_smoothing import TwoHalves
from tests.small import Blur, train_small, write_shards

RADII = (0.1, 0.2, 0.4)
QUICK = {
    "sigma": [0.25], "images": 8, "chunk_images": 4, "attack_radii": [0.5, 0.25, 2.0], "attack_images": 6,
    "attack": "autoattack-custom:apgd-ce", "attack_draws": 40,
}  # fmt: skip


@pytest.mark.parametrize("sampling", ["float", "integer"])
def test_the_smoothed_classifier_falls_where_it_must_and_nowhere_else(sampling: str) -> None:
    """Two halves: an image stands within what lies before the plane, however it is attacked, and falls well beyond it;
    no certificate reaches the radius within which it fell.
    """
    model = TwoHalves(8).eval()
    images = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    distances = model.distance(images)
    labels = (distances > 0).long()
    settings = CertifySettings(first_draws=50, draws=400, attack_draws=400, batch_size=400, sampling=sampling)
    smoothed = Smoothed(model, model, settings, 0.25, seed=0)
    fell = falls(images, labels, RADII, SmoothedAttack(model, smoothed, 0))
    assert 0 < sum(at is not None for at in fell) < len(fell)
    for number, (image, at, distance) in enumerate(zip(images, fell, distances.abs().tolist(), strict=True)):
        if at is not None:
            assert at >= distance - 1e-4
        elif distance < 0.25:  # the last radius takes it 0.15 beyond the plane, to where 73 % of draws are wrong
            pytest.fail(f"image {number}, {distance:.3f} from the plane, stood within {RADII[-1]}")
        certificate = smoothed.certify(image, int(labels[number]), number)
        assert at is None or not certificate.holds_at(at)


def test_what_fell_stays_fallen_and_is_attacked_no_more() -> None:
    """Radii ascend, 0 is asked first, and only of what stands."""
    asked: list[tuple[float, list[int]]] = []

    def turned(_images: torch.Tensor, _labels: torch.Tensor, numbers: list[int], radius: float) -> list[bool]:
        asked.append((radius, numbers))
        return [number == {0.0: 2, 0.1: 0, 0.2: 1}.get(radius) for number in numbers]

    images = torch.zeros(4, 3, 2, 2)
    assert falls(images, torch.zeros(4), RADII, turned) == [0.1, 0.2, 0.0, None]
    assert asked == [(0.0, [0, 1, 2, 3]), (0.1, [0, 1, 3]), (0.2, [1, 3]), (0.4, [3])]
    everything: list[float] = []

    def all_wrong(_images: torch.Tensor, _labels: torch.Tensor, numbers: list[int], radius: float) -> list[bool]:
        everything.append(radius)
        return [True] * len(numbers)

    assert falls(images, torch.zeros(4), RADII, all_wrong) == [0.0] * 4
    assert everything == [0.0]


def test_without_noise_it_is_the_catalogues_attack(one_thread: None, test_set: ShardSet) -> None:
    """What stands is what AutoAttack on the same model leaves; images that are wrong anyway fall at 0."""
    model = nn.Sequential(Blur(), train_small()).eval().requires_grad_(False)
    images, labels = test_set.batch(range(12))
    images, labels = images.float() / 255, labels.clone()
    labels[3] = (labels[3] + 1) % 10
    fell = falls(images, labels, (0.3, 1.5), PlainAttack(model, "autoattack-custom:apgd-ce", 0, 5))
    assert fell[3] == 0.0
    assert {0.3, 1.5, None} & set(fell) >= {1.5}
    first = PlainAttack(model, "autoattack-custom:apgd-ce", 0, 5)(images, labels, list(range(12)), 0.3)
    assert [at in (0.0, 0.3) for at in fell] == first


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", 20)


def small_units(directory: Path, test: ShardSet, **certify: object) -> list[CertifyUnit | AttackUnit]:
    settings = settings_for(directory, **{**QUICK, **certify})
    defense = Defense(Blur(), train_small(), "blur", "small")
    return units_of(settings, defense, test, Path(settings.run.dir) / CERTIFICATES / "pretrained")


def test_a_run_attacks_what_it_certifies(
    one_thread: None, test_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chunk by chunk, without noise and under it; done is not done again, another attack is; beside each radius stands
    the certificate of the same images, which no attack goes below; a record that is missing is named.
    """
    settings = settings_for(tmp_path, **QUICK)
    units = small_units(tmp_path, test_set)
    assert [str(unit.task.path) for unit in units[2:]] == [
        f"attacked/{noise}/chunk-000{number}.json" for noise in ("without-noise", "sigma-0.25") for number in (0, 1)
    ]
    assert [unit.task.count for unit in units] == [4, 4, 4, 2, 4, 2]
    assert certify_all(units, settings)
    assert "of 4 stood" in capsys.readouterr().out
    assert all(unit.is_done() for unit in small_units(tmp_path, test_set))
    others = ({"attack_radii": [0.5]}, {"attack_draws": 41}, {"attack": "pgd-5"}, {"sampling": "integer"})
    changed = [[unit.is_done() for unit in small_units(tmp_path, test_set, **other)][2:] for other in others]
    assert changed == [[False] * 4, [True, True, False, False], [False, False, True, True], [True, True, False, False]]
    assert [unit.is_done() for unit in small_units(tmp_path, test_set, attack_radii=[])] == [True, True]

    identity = units[0].identity
    folder = Path(settings.run.dir) / CERTIFICATES / "pretrained"
    certificates = [each for unit in units[:2] for each in CertificateRecord.read(unit.path).certificates]
    rows = list(_beside(settings.certify, identity, folder, 0.25, certificates, len(test_set)))
    assert [(row.radius, row.n, row.broken) for row in rows] == [(0.25, 6, 0), (0.5, 6, 0), (2.0, 6, 0)]
    assert all(row.certified <= row.smoothed for row in rows)
    assert rows[-1].without_noise < rows[0].without_noise
    sure = [replace(each, radius=9.0, abstains=False, prediction=each.label) for each in certificates]
    assert any(row.broken for row in _beside(settings.certify, identity, folder, 0.25, sure, len(test_set)))
    units[-1].path.unlink()
    with pytest.raises(UserError, match="chunk-0001.json: has not been attacked; run stage=certify"):
        list(_beside(settings.certify, identity, folder, 0.25, certificates, len(test_set)))


def test_stands_at() -> None:
    """What fell within a radius has fallen there; a smaller one it withstood."""
    fell = AttackedImage(0, 3, 0.5)
    assert [fell.stands_at(radius) for radius in (0.25, 0.5, 1.0)] == [True, False, False]
    assert AttackedImage(0, 3, None).stands_at(1.0)


def test_plan(tmp_path: Path) -> None:
    """Without radii nothing is attacked; never more than is certified, or than there is; each radius once."""
    assert plan_attacks(CertifySettings(sigma=[0.25]), 100) == []
    settings = CertifySettings(sigma=[0.5, 0.25], images=5, chunk_images=4, attack_radii=[1.0, 0.5, 1.0])
    assert radii_of(settings) == (0.5, 1.0)
    assert plan_attacks(settings, 100) == [
        AttackTask(sigma, chunk, first, count)
        for sigma in (None, 0.5, 0.25)
        for chunk, first, count in ((0, 0, 4), (1, 4, 1))
    ]
    assert [task.count for task in plan_attacks(settings, 3)] == [3, 3, 3]
    assert read_attacked(tmp_path / "none.json", "x") is None
    assert CertifyIdentity(settings, 0, "f", "p", "i").settings is settings
