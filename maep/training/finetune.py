"""The finetune stage: close the gap between masked training and unmasked use (Sec. 4.4).

An adapter, LoRA on the decoder unless another is chosen, with r = 0 writes run.dir/adapter in peft's format, whose
manifest says how many parameters it has; full finetuning writes run.dir/finetuned.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maep.config.schema import Settings
from maep.config.training_settings import FinetuneSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier, read_purifier, save_purifier
from maep.runtime.console import say
from maep.runtime.cores import worker_count
from maep.storage.manifests import CheckpointManifest, StampedManifest
from maep.storage.sealed import atomic_directory
from maep.storage.tensor_files import disk_errors
from maep.training.inputs import adversary, finetuning_pairs, objective_of
from maep.training.loop import TrainingJob, train

if TYPE_CHECKING:
    from peft import PeftModel


def adapted_layers(model: nn.Module, targets: str) -> list[str]:
    """Names of the linear and convolution layers that an adapter adapts: the decoder's, or with `both` all."""
    kinds = (nn.Linear, nn.Conv2d)
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return [name for name in layers if targets == "both" or name.startswith(("decoder", "refine"))]


def with_adapter(model: MaskedAutoencoder, settings: FinetuneSettings, seed: int) -> "PeftModel":
    """Freeze the model and put the adapter that `settings` choose (lora, dora or ia3) on its layers."""
    # Takes seconds to import, which the ranks of pretraining need not wait for.
    from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model

    torch.manual_seed(seed)
    layers = adapted_layers(model, settings.targets)
    config: PeftConfig = IA3Config(target_modules=layers, feedforward_modules=[])
    if settings.method != "ia3":
        dora = settings.method == "dora"
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=layers, use_dora=dora)
    return get_peft_model(model, config)


@dataclass(frozen=True, kw_only=True)
class AdapterManifest(StampedManifest):
    """Of run.dir/adapter. method, targets: as in the settings of the finetuning. trained_parameters: the adapter's.

    parameters: those of the model, which stay as they are.
    """

    kind: str = "adapter"
    method: str
    targets: str
    trained_parameters: int = field(metadata={"low": 0})
    parameters: int = field(metadata={"low": 0})


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters of a model are trained, and how many are not: with an adapter, the model's own."""

    trained: int
    frozen: int


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """The parameters of a model, counted by whether they are trained."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return ParameterCounts(counts[True], counts[False])


def finetune(settings: Settings, on_stall: Callable[[str], object] | None = None) -> None:
    """Finetune run.dir/purifier as settings.finetune says, going on from its checkpoints. Every rank calls it."""
    directory, options = Path(settings.run.dir), settings.finetune
    base = read_purifier(directory / "purifier", MAEPurifier).model
    base.train()
    model: nn.Module = base if options.method == "full" else with_adapter(base, options, settings.run.seed)
    pairs = finetuning_pairs(settings)
    job = TrainingJob(
        label="finetune", model=model, dataset=pairs, settings=options, compute=settings.compute,
        objective=objective_of(settings, options), directory=directory / "checkpoints-finetune",
        metrics=directory / "metrics-finetune.jsonl", samples=directory / "samples-finetune",
        workers=worker_count(settings.data.workers),
        manifest=CheckpointManifest(
            step=0, purifier=MAEPurifier.kind, model=asdict(settings.model), method=options.method, rank=options.rank,
            targets=options.targets,
        ),
        adversary=adversary(settings, options, len(pairs.clean.classes)),
        on_stall=on_stall,
    )  # fmt: skip
    weights, accelerator = train(job)
    if accelerator.is_main_process:
        _export(settings, weights)
    accelerator.wait_for_everyone()


def _export(settings: Settings, weights: dict[str, Tensor]) -> None:
    """Write the finetuned weights: an adapter in peft's format, or a whole purifier."""
    directory, options = Path(settings.run.dir), settings.finetune
    model = read_purifier(directory / "purifier", MAEPurifier).model
    if options.method == "full":
        model.load_state_dict(weights)
        save_purifier(MAEPurifier(model, settings.purify), directory / "finetuned")
        return
    adapted = with_adapter(model, options, settings.run.seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    counts = parameter_counts(adapted)
    say(f"finetune: {options.method} trained {counts.trained} beside {counts.frozen} parameters")
    manifest = AdapterManifest(
        method=options.method, targets=options.targets, trained_parameters=counts.trained, parameters=counts.frozen
    )
    with atomic_directory(directory / "adapter", manifest) as temporary, disk_errors():
        adapted.save_pretrained(str(temporary), safe_serialization=True)
