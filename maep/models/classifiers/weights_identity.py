"""What names a classifier, without building it: identities are asked for by commands that need no torch."""

from pathlib import Path

from maep.config.data_settings import ClassifierSettings
from maep.models.weight_files import weights_sha256
from maep.runtime.digests import digest
from maep.runtime.errors import fail


def classifier_identity(settings: ClassifierSettings, weights: Path) -> str:
    """64 hex digits that name the function: architecture, mean, deviation, arguments and the weights' bytes.

    Raises UserError if the file is missing.
    """
    if not weights.exists():
        fail(f"{weights}: no such classifier weights; run the classifier stage or set classifier.weights")
    return digest(
        {
            "arch": settings.arch,
            "mean": [float(value) for value in settings.mean],
            "std": [float(value) for value in settings.std],
            "timm_args": settings.timm_args,
            "weights": weights_sha256(weights),
        }
    )
