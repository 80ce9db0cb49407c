"""The pretrain stage: a purifier's network learns to turn adversarial images into clean ones (Sec. 4.3)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from maep.config.schema import Settings
from maep.data.pairs import PairDataset
from maep.data.shards import to_float
from maep.purifiers import save_purifier
from maep.purifiers.base import TrainedPurifier
from maep.purifiers.registry import purifier_class
from maep.runtime.cores import worker_count
from maep.runtime.device import prepare_device
from maep.storage.manifests import CheckpointManifest
from maep.training.inputs import adversary, own_pairs
from maep.training.loop import TrainingJob, train


def seeded_purifier(settings: Settings) -> TrainedPurifier:
    """The purifier as training starts from it: drawn from run.seed, or read from weights that the settings name."""
    torch.manual_seed(settings.run.seed)
    kind = purifier_class(settings.purifier.kind)
    assert issubclass(kind, TrainedPurifier), "the pipeline asks no other kind to be trained"
    return kind.untrained(settings)


def _clean_images(pairs: PairDataset, count: int) -> Tensor:
    return to_float(pairs.clean.batch(range(min(count, len(pairs.clean))))[0])


def pretrain(settings: Settings, on_stall: Callable[[str], object] | None = None) -> None:
    """Train the purifier into run.dir/purifier, going on from run.dir/checkpoints. Every rank calls it."""
    directory, purifier = Path(settings.run.dir), seeded_purifier(settings)
    pairs, config = own_pairs(settings, settings.pretrain), purifier.config()
    attacker = adversary(settings, settings.pretrain, len(pairs.clean.classes))
    device = prepare_device(settings.compute, trains=True)

    def clean(count: int) -> Tensor:
        return _clean_images(pairs, count).to(device)

    purifier.prepare(clean, attacker.classifiers)
    job = TrainingJob(
        label="pretrain", model=purifier.model, dataset=pairs, settings=settings.pretrain,
        objective=settings.objective, compute=settings.compute, directory=directory / "checkpoints",
        metrics=directory / "metrics.jsonl", samples=directory / "samples", workers=worker_count(settings.data.workers),
        manifest=CheckpointManifest(step=0, purifier=purifier.kind, model=config["model"], purify=config["purify"]),
        adversary=attacker,
        on_stall=on_stall,
    )  # fmt: skip
    weights, accelerator = train(job)
    if accelerator.is_main_process:
        trained = type(purifier).from_config(config, weights).to(accelerator.device).eval().requires_grad_(False)
        trained.prepare(clean, attacker.classifiers)
        save_purifier(trained.calibrated(clean), directory / "purifier")
    accelerator.wait_for_everyone()
