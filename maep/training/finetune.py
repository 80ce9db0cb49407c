"""The finetune stage: close the gap between masked training and unmasked use (Sec. 4.4).

An adapter, LoRA on the decoder unless another is chosen, with r = 0 writes run.dir/adapter in peft's format, whose
manifest says how many parameters it has; full finetuning writes run.dir/finetuned.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maep.config.schema import FinetuneSettings, Settings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import read_purifier, save_purifier
from maep.runtime.console import say
from maep.storage.atomic import atomic_directory
from maep.training.inputs import finetuning_pairs, online_attack
from maep.training.loop import TrainingJob, train
from maep.training.source import source_settings

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


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many parameters are trained, and how many there are without the adapter's."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return {"trained_parameters": trained, "parameters": frozen or trained}


def finetune(settings: Settings) -> None:
    """Finetune run.dir/purifier as settings.finetune says, going on from its checkpoints. Every rank calls it."""
    directory, chosen = Path(settings.run.dir), settings.finetune
    base = read_purifier(directory / "purifier")
    base.train()
    model: nn.Module = base if chosen.method == "full" else with_adapter(base, chosen, settings.run.seed)
    pairs = finetuning_pairs(settings)
    job = TrainingJob(
        label="finetune", model=model, dataset=pairs, settings=chosen, objective=settings.objective,
        compute=settings.compute, directory=directory / "checkpoints-finetune",
        metrics=directory / "metrics-finetune.jsonl", samples=directory / "samples-finetune",
        workers=settings.data.workers,
        facts={
            "model": asdict(settings.model), "method": chosen.method, "rank": chosen.rank, "targets": chosen.targets,
        },
        online=online_attack(source_settings(settings, chosen), len(pairs.clean.classes)),
    )  # fmt: skip
    weights, accelerator = train(job)
    if accelerator.is_main_process:
        _export(settings, weights)
    accelerator.wait_for_everyone()


def _export(settings: Settings, weights: dict[str, Tensor]) -> None:
    """Write the finetuned weights: an adapter in peft's format, or a whole purifier."""
    directory, chosen = Path(settings.run.dir), settings.finetune
    model = read_purifier(directory / "purifier")
    if chosen.method == "full":
        model.load_state_dict(weights)
        save_purifier(model, settings.purify, directory / "finetuned")
        return
    adapted = with_adapter(model, chosen, settings.run.seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    facts = {"kind": "adapter", "method": chosen.method, "targets": chosen.targets, **parameter_counts(adapted)}
    say(f"finetune: {chosen.method} trained {facts['trained_parameters']} beside {facts['parameters']} parameters")
    with atomic_directory(directory / "adapter", facts) as temporary:
        adapted.save_pretrained(str(temporary), safe_serialization=True)
