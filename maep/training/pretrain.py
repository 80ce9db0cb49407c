"""The pretrain stage: a masked autoencoder learns to turn adversarial images into clean ones (Sec. 4.3)."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.official import load_initial
from maep.purifiers import MAEPurifier, save_purifier
from maep.runtime.cores import worker_count
from maep.storage.manifests import CheckpointManifest
from maep.training.inputs import online_attack, own_pairs
from maep.training.loop import TrainingJob, train


def seeded_model(settings: Settings) -> MaskedAutoencoder:
    """The model as training starts from it: drawn from run.seed, or read from model.init."""
    torch.manual_seed(settings.run.seed)
    model = MaskedAutoencoder(settings.model)
    if settings.model.init:
        load_initial(model, Path(settings.model.init))
    return model


def pretrain(settings: Settings, on_stall: Callable[[str], object] | None = None) -> None:
    """Train the purifier into run.dir/purifier, going on from run.dir/checkpoints. Every rank calls it."""
    directory = Path(settings.run.dir)
    pairs = own_pairs(settings, settings.pretrain)
    job = TrainingJob(
        label="pretrain", model=seeded_model(settings), dataset=pairs, settings=settings.pretrain,
        objective=settings.objective, compute=settings.compute, directory=directory / "checkpoints",
        metrics=directory / "metrics.jsonl", samples=directory / "samples", workers=worker_count(settings.data.workers),
        manifest=CheckpointManifest(
            step=0, purifier=MAEPurifier.kind, model=asdict(settings.model), purify=asdict(settings.purify),
        ),
        online=online_attack(source_settings(settings, settings.pretrain), len(pairs.clean.classes)),
        on_stall=on_stall,
    )  # fmt: skip
    weights, accelerator = train(job)
    if accelerator.is_main_process:
        trained = MaskedAutoencoder(settings.model)
        trained.load_state_dict(weights)
        save_purifier(MAEPurifier(trained, settings.purify), directory / "purifier")
    accelerator.wait_for_everyone()
