"""The pretrain stage: a purifier's network learns to turn adversarial images into clean ones (Sec. 4.3)."""

from collections.abc import Callable
from pathlib import Path

import torch

from maep.config.schema import Settings
from maep.purifiers import save_purifier
from maep.purifiers.base import TrainedPurifier
from maep.purifiers.registry import purifier_class
from maep.runtime.cores import worker_count
from maep.storage.manifests import CheckpointManifest
from maep.training.inputs import adversary, own_pairs
from maep.training.loop import TrainingJob, train


def seeded_purifier(settings: Settings) -> TrainedPurifier:
    """The purifier as training starts from it: drawn from run.seed, or read from weights that the settings name."""
    torch.manual_seed(settings.run.seed)
    kind = purifier_class(settings.purifier.kind)
    assert issubclass(kind, TrainedPurifier), "the pipeline asks no other kind to be trained"
    return kind.untrained(settings)


def pretrain(settings: Settings, on_stall: Callable[[str], object] | None = None) -> None:
    """Train the purifier into run.dir/purifier, going on from run.dir/checkpoints. Every rank calls it."""
    directory, purifier = Path(settings.run.dir), seeded_purifier(settings)
    pairs = own_pairs(settings, settings.pretrain)
    job = TrainingJob(
        label="pretrain", model=purifier.model, dataset=pairs, settings=settings.pretrain,
        objective=settings.objective, compute=settings.compute, directory=directory / "checkpoints",
        metrics=directory / "metrics.jsonl", samples=directory / "samples", workers=worker_count(settings.data.workers),
        manifest=CheckpointManifest(step=0, purifier=purifier.kind, **purifier.config()),
        adversary=adversary(settings, settings.pretrain, len(pairs.clean.classes)),
        on_stall=on_stall,
    )  # fmt: skip
    weights, accelerator = train(job)
    if accelerator.is_main_process:
        save_purifier(type(purifier).from_config(purifier.config(), weights), directory / "purifier")
    accelerator.wait_for_everyone()
