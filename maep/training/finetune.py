"""The finetune stage: close the gap between masked training and unmasked use (Sec. 4.4).

LoRA on the decoder with r = 0 writes run.dir/adapter in peft's format; full finetuning writes run.dir/finetuned.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maep.files import atomic_directory
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import read_purifier, save_purifier
from maep.settings import FinetuneSettings, Settings
from maep.training.inputs import finetuning_pairs, online_attack
from maep.training.loop import TrainingJob, train
from maep.training.source import source_settings

if TYPE_CHECKING:
    from peft import PeftModel


def lora_targets(model: nn.Module) -> list[str]:
    """Names of the decoder's linear and convolution layers: what LoRA adapts."""
    kinds = (nn.Linear, nn.Conv2d)
    return [n for n, m in model.named_modules() if isinstance(m, kinds) and n.startswith(("decoder", "refine"))]


def with_lora(model: MaskedAutoencoder, settings: FinetuneSettings, seed: int) -> "PeftModel":
    """Freeze the model and put LoRA of `settings.rank` on every linear and convolution layer of its decoder."""
    # Takes seconds to import, which the ranks of pretraining need not wait for.
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=lora_targets(model))
    return get_peft_model(model, config)


def finetune(settings: Settings) -> None:
    """Finetune run.dir/purifier as settings.finetune says, going on from its checkpoints. Every rank calls it."""
    directory, chosen = Path(settings.run.dir), settings.finetune
    base = read_purifier(directory / "purifier")
    base.train()
    model: nn.Module = with_lora(base, chosen, settings.run.seed) if chosen.method == "lora" else base
    pairs = finetuning_pairs(settings)
    job = TrainingJob(
        label="finetune", model=model, dataset=pairs, settings=chosen, objective=settings.objective,
        compute=settings.compute, directory=directory / "checkpoints-finetune",
        metrics=directory / "metrics-finetune.jsonl", samples=directory / "samples-finetune",
        workers=settings.data.workers,
        facts={"model": asdict(settings.model), "method": chosen.method, "rank": chosen.rank},
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
    adapted = with_lora(model, chosen, settings.run.seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    with atomic_directory(directory / "adapter", {"kind": "adapter"}) as temporary:
        adapted.save_pretrained(str(temporary), safe_serialization=True)
