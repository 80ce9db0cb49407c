"""A row of report.json that holds whatever the attack: certified accuracy against the radius."""

from dataclasses import asdict, dataclass
from typing import Any

from maep.evaluation.reporting.report_row import Interval

LATER: dict[str, Any] = {"sampling": "float", "attacked": ()}


@dataclass(frozen=True, kw_only=True)
class BesideCertificate:
    """Of the first n images, what stood within an L2 radius, in percent with Wilson intervals.

    certified: of the smoothed classifier g, by its certificates. smoothed: of g, by an attack: no attacker leaves less
    than certified, up to alpha. without_noise: of purifier and classifier as they are, another classifier, which may
    stand above or below. broken: images whose certificate at this radius an attack on g refutes.
    """

    radius: float
    n: int
    certified: float
    certified_ci95: Interval
    smoothed: float
    smoothed_ci95: Interval
    smoothed_attack: str
    without_noise: float
    without_noise_ci95: Interval
    without_noise_attack: str
    broken: int


@dataclass(frozen=True, kw_only=True)
class CertificateRow:
    """Certificates of a purifier before a classifier, on n images, in report.json.

    sigma: deviation of the noise. trained_on_noise: whether the purifier was trained on noise, None where nothing says;
    trained_sigma: that noise's deviation, None for none or many. samples, first_samples: N and N₀ draws an image.
    alpha: chance, at most, that one certificate is wrong. certified: (radius, share of the images in percent whose
    class is right and cannot be changed within it); certified_ci95: Wilson intervals of these, in percent. abstained:
    percent of the images. sampling: how the noise was drawn (certify.sampling). attacked: beside the certificates, at
    the radii that were attacked.
    """

    dataset: str
    classifier: str
    purifier: str
    threat_model: str
    norm: str
    sigma: float
    trained_on_noise: bool | None
    trained_sigma: float | None
    samples: int
    first_samples: int
    alpha: float
    n: int
    certified: tuple[tuple[float, float], ...]
    certified_ci95: tuple[Interval, ...]
    abstained: float
    seconds_per_image: float
    seed: int
    config_hash: str
    image_set: str
    records: str
    sampling: str = "float"  # the first reports did not say
    attacked: tuple[BesideCertificate, ...] = ()

    def at(self, radius: float) -> tuple[float, Interval]:
        """Certified accuracy at one of the curve's radii and its interval, in percent."""
        points = zip(self.certified, self.certified_ci95, strict=True)
        return next((value, interval) for (at, value), interval in points if at == radius)

    def to_json(self) -> dict[str, Any]:
        """As in report.json; how the noise was drawn, and attacks, where they are not as in the first reports."""
        entries = asdict(self)
        return {key: value for key, value in entries.items() if key not in LATER or value != LATER[key]}
