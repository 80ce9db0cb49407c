"""Which noise a purifier was trained on, as far as its run says; certificates of other purifiers come to nothing."""

from dataclasses import dataclass
from pathlib import Path

from maep.config.implementations import OBJECTIVES
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.evaluation.stage import is_finetuned, is_trained, purifiers_of, run_of
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail

OF_ALL_NOISES = ("denoiser", "score")  # networks that learn what Gaussian noise is in an image, of many deviations


@dataclass(frozen=True)
class TrainedNoise:
    """is_known: whether anything says what a purifier was trained on; is_there: whether that was noise. deviation: of
    it, in [0,1] pixels; None where it was of many, or is not known.
    """

    is_known: bool
    is_there: bool = False
    deviation: float | None = None


def trained_noise(settings: Settings, label: str) -> TrainedNoise:
    """Of one of `purifiers_of`; of a purifier from elsewhere its run's own config.yaml says it."""
    if settings.evaluation.purifier:
        return _given_noise(Path(settings.evaluation.purifier).resolve())
    return _own_noise(settings, is_pretrained=label == "pretrained")


def _own_noise(settings: Settings, *, is_pretrained: bool) -> TrainedNoise:
    objective = settings.objective
    name = objective.name if is_pretrained else settings.finetune.objective or objective.name
    if not is_trained(settings):
        return TrainedNoise(is_known=True)
    if OBJECTIVES[name].network in OF_ALL_NOISES:
        return TrainedNoise(True, True)
    if not OBJECTIVES[name].noises:
        return TrainedNoise(is_known=True)
    return TrainedNoise(True, True, objective.noise_mean if objective.noise == "fixed" else None)


def _given_noise(path: Path) -> TrainedNoise:
    directory = run_of(path)
    if directory is None:
        return TrainedNoise(is_known=False)
    try:
        run = load_settings(str(directory / "config.yaml"))
    except UserError as error:
        say(f"warning: {error}: so it is not known on what noise the purifier was trained")
        return TrainedNoise(is_known=False)
    folder = path.relative_to(directory).parts[:1]
    finetuned = folder in ((), ("finetuned",), ("checkpoints-finetune",)) and is_finetuned(run)
    return _own_noise(run, is_pretrained=not finetuned)


def check_noise(settings: Settings) -> None:
    """Raise UserError for certificates under a noise other than that of a purifier's training."""
    for label in purifiers_of(settings):
        trained = trained_noise(settings, label).deviation
        for sigma in settings.certify.sigma:
            if trained is not None and trained != sigma:
                fail(
                    f"certify.sigma={sigma:g}: {label} was trained on noise of {trained:g}; certify it with "
                    f"certify.sigma=[{trained:g}], or train one on {sigma:g} (objective.noise_mean)"
                )


def warn_of_untrained(settings: Settings) -> None:
    """Say where certificates will come to nothing."""
    for label in purifiers_of(settings):
        for line in untrained_note(label, trained_noise(settings, label), max(settings.certify.sigma)):
            say(f"warning: {line}")


def untrained_note(name: str, trained: TrainedNoise, sigma: float) -> list[str]:
    """What to expect of a purifier that was not trained on noise; [] for one that was."""
    if trained.is_there:
        return []
    known = "was not trained" if trained.is_known else "is not known to have been trained"
    return [
        f"{name} {known} on Gaussian noise: expect its accuracy under noise of {sigma:g} to collapse, and next to no "
        "certificates (a frozen ResNet-110 alone keeps 7 % of CIFAR-10 at radius 0.25, Salman et al. 2020); train one "
        f"with objective.name=nim objective.noise=fixed objective.noise_mean={sigma:g}"
    ]
