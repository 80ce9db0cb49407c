"""Certificates in a report: certified accuracy against the radius, for every purifier and noise."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from maep.config.evaluation_settings import CertifySettings
from maep.config.identity import configuration_digest
from maep.config.schema import Settings
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_split
from maep.evaluation.certification.attacked_record import (
    GRADIENT_DRAWS,
    plan_attacks,
    radii_of,
    require_attacked,
)
from maep.evaluation.certification.certificate_record import (
    CERTIFICATES,
    Certificate,
    CertificateRecord,
    CertifyIdentity,
    plan_chunks,
    require_certificates,
)
from maep.evaluation.certification.smoothing import largest_radius
from maep.evaluation.certification.subjects import certified_identities
from maep.evaluation.certification.trained_noise import TrainedNoise, trained_noise, untrained_note
from maep.evaluation.reporting.figures import COLOURS, INK, drawn, legend_room, style_axes
from maep.evaluation.reporting.report_certificate import BesideCertificate, CertificateRow
from maep.evaluation.reporting.rows import percent_with_interval
from maep.evaluation.scoring.defense import UNDEFENDED
from maep.models.classifiers import classifier_identity

THREAT_MODEL = "certified"
STEP = 0.05  # between radii of the curve, in [0,1] pixels: those that papers print, 0.25 to 1, are among them
NO_PURIFIER = TrainedNoise(is_known=True)
SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)  # radii of the tables, as in Cohen et al. 2019


def certificate_rows(settings: Settings, names: dict[str, str]) -> list[CertificateRow]:
    """What was certified of each purifier, and of the classifier alone, under each noise.

    names: `{label: name in reports}` of the purifiers.

    Raises UserError, naming the first chunk that is missing.
    """
    test = clean_split(settings, "test")
    classifier = classifier_identity(settings.classifier, classifier_weights(settings))
    tasks = plan_chunks(settings.certify, len(test))
    rows = []
    for label, purifier in certified_identities(settings).items():
        identity = CertifyIdentity(settings.certify, settings.run.seed, classifier, purifier, test.identity)
        folder = Path(settings.run.dir) / CERTIFICATES / label
        for sigma in dict.fromkeys(settings.certify.sigma):
            records = [
                require_certificates(folder / task.path, identity.record(task)) for task in tasks if task.sigma == sigma
            ]
            row = _row(settings, label, names.get(label, label), test.identity, records)
            certificates = [each for record in records for each in record.certificates]
            beside = _beside(settings.certify, identity, folder, sigma, certificates, len(test))
            rows.append(replace(row, attacked=tuple(beside)))
    return rows


def _beside(
    certify: CertifySettings, identity: CertifyIdentity, folder: Path, sigma: float,
    certificates: Sequence[Certificate], available: int,
) -> Iterator[BesideCertificate]:  # fmt: skip
    """What became of the images under attack, radius by radius, beside the certificates of the same images."""
    tasks = plan_attacks(certify, available)
    if not tasks:
        return
    records = {task: require_attacked(folder / task.path, identity, task) for task in tasks}
    smoothed, plain = ([record for task, record in records.items() if task.sigma == which] for which in (sigma, None))
    of_smoothed, of_plain = ([each for record in part for each in record.attacked] for part in (smoothed, plain))
    n = len(of_plain)
    for radius in radii_of(certify):
        holds = [each.holds_at(radius) for each in certificates[:n]]
        stands, stands_plain = ([each.stands_at(radius) for each in part] for part in (of_smoothed, of_plain))
        points = [percent_with_interval(sum(part), n) for part in (holds, stands, stands_plain)]
        yield BesideCertificate(
            radius=radius, n=n, certified=points[0][0], certified_ci95=points[0][1], smoothed=points[1][0],
            smoothed_ci95=points[1][1], smoothed_attack=f"{smoothed[0].attack}, EOT over {GRADIENT_DRAWS} draws",
            without_noise=points[2][0], without_noise_ci95=points[2][1], without_noise_attack=plain[0].attack,
            broken=sum(held and not stood for held, stood in zip(holds, stands, strict=True)),
        )  # fmt: skip


def _row(
    settings: Settings, label: str, name: str, images: str, records: Sequence[CertificateRecord]
) -> CertificateRow:
    first, certificates = records[0], [each for record in records for each in record.certificates]
    n, radii = len(certificates), _radii(largest_radius(first.draws, first.sigma, first.alpha))
    trained = NO_PURIFIER if label == UNDEFENDED else trained_noise(settings, label)
    points = [percent_with_interval(_held(certificates, radius), n) for radius in radii]
    return CertificateRow(
        dataset=settings.data.name,
        classifier=settings.classifier.arch,
        purifier=name,
        threat_model=THREAT_MODEL,
        norm="L2",
        sigma=first.sigma,
        trained_on_noise=trained.is_there if trained.is_known else None,
        trained_sigma=trained.deviation,
        samples=first.draws,
        first_samples=first.first_draws,
        alpha=first.alpha,
        n=n,
        certified=tuple((radius, value) for radius, (value, _) in zip(radii, points, strict=True)),
        certified_ci95=tuple(interval for _, interval in points),
        abstained=round(100 * sum(each.abstains for each in certificates) / n, 4),
        seconds_per_image=round(sum(record.seconds for record in records) / n, 6),
        seed=settings.run.seed,
        config_hash=configuration_digest(settings)[:16],
        image_set=images[:16],
        records=f"{label}/sigma-{first.sigma:g}",
        sampling=settings.certify.sampling,
    )


def _radii(largest: float) -> list[float]:
    """Of the curve: as far as N draws can show anything, and all of the tables."""
    largest = max(largest, *SHOWN)
    return [round(STEP * number, 6) for number in range(int(largest / STEP) + 1)]


def _held(certificates: Sequence[Certificate], radius: float) -> int:
    return sum(each.holds_at(radius) for each in certificates)


def certificate_notes(settings: Settings, rows: Sequence[CertificateRow]) -> list[str]:
    """What a reader must know before believing the certificates."""
    purified = [row for row in rows if row.purifier != UNDEFENDED]
    notes = [note for row in purified for note in untrained_note(row.purifier, _trained(row), row.sigma)]
    if rows:
        notes.append(
            "certified: the smoothed classifier, which takes the majority under noise, is what is certified, in L2; "
            f"each certificate is wrong with a probability of {settings.certify.alpha:g} at most"
        )
    if any(row.attacked for row in rows):
        notes.append(
            "beside the certificates the same images are attacked: the smoothed classifier, of which no attacker "
            "leaves less than is certified; and purifier and classifier without noise, another classifier, which "
            "certificates say nothing of"
        )
    notes += [
        f"ALARM: {row.purifier}, σ = {row.sigma:g}: an attack refutes {each.broken} of {each.n} certificates at radius "
        f"{each.radius:g}: they are wrong"
        for row in rows
        for each in row.attacked
        if each.broken
    ]
    return list(dict.fromkeys(notes))


def _trained(row: CertificateRow) -> TrainedNoise:
    return TrainedNoise(row.trained_on_noise is not None, bool(row.trained_on_noise), row.trained_sigma)


def certificate_table(rows: Sequence[CertificateRow]) -> Table:
    """Certified accuracy in percent at some radii, one line a purifier and noise, for the terminal."""
    first = rows[0]
    title = f"{THREAT_MODEL}: {first.dataset}, {first.classifier}; accuracy in % at an L2 radius r"
    table = Table(title=title, title_style="bold", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("purifier", "σ"):
        table.add_column(name, no_wrap=True, vertical="bottom")
    for name in ("N", "n", *(f"r =\n{radius:g}" for radius in SHOWN), "ab-\nstained"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        values = [f"{row.at(radius)[0]:.1f}" for radius in SHOWN]
        table.add_row(row.purifier, f"{row.sigma:g}", str(row.samples), str(row.n), *values, f"{row.abstained:.1f}")
    return table


def attacked_table(rows: Sequence[CertificateRow]) -> Table:
    """Certificates and attacks on the same images, one line a purifier, noise and radius, for the terminal."""
    title = "the same images: certified, and what attacks left of them; accuracy in % within an L2 radius r"
    table = Table(title=title, title_style="bold", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("purifier", "σ"):
        table.add_column(name, no_wrap=True, vertical="bottom")
    for name in ("r", "n", "certified", "smoothed,\nattacked", "without noise,\nattacked"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        for each in row.attacked:
            values = [f"{value:.1f}" for value in (each.certified, each.smoothed, each.without_noise)]
            table.add_row(row.purifier, f"{row.sigma:g}", f"{each.radius:g}", str(each.n), *values)
    return table


def certificate_figure(rows: Sequence[CertificateRow], ink: str = INK) -> Figure:
    """Certified accuracy with its interval against the radius."""
    labels = [f"{row.purifier}, σ = {row.sigma:g}" for row in rows]
    columns = 2 if legend_room(labels, 2)[0] <= 5.6 else 1
    width, height = legend_room([*labels, "", ""], columns)  # two more tell what marks of attacks mean
    figure = Figure(figsize=(max(5.6, width), max(3.6, 2.6 + height)), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        radii, values = zip(*row.certified, strict=True)
        low, high = zip(*row.certified_ci95, strict=True)
        colour, label = COLOURS[number % len(COLOURS)], drawn(labels[number])
        axes.plot(radii, values, color=colour, label=label)
        axes.fill_between(radii, low, high, color=colour, alpha=0.12, linewidth=0)
        for mark, name in (("v", "smoothed"), ("x", "without_noise")):
            at = [each.radius for each in row.attacked]
            axes.plot(at, [getattr(each, name) for each in row.attacked], mark, color=colour)
    if any(row.attacked for row in rows):
        for mark, text in (("v", "the same, attacked"), ("x", "without noise, attacked")):
            axes.plot([], [], mark, color=ink, label=text)
    axes.set(ylim=(0, 102), xlim=(0, None), xlabel="L2 radius, [0,1] pixels", ylabel="certified accuracy in %")
    style_axes(axes, ink)
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=8, labelcolor=ink)
    return figure
