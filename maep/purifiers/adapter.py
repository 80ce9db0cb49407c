"""Adapters in peft's format (LoRA, DoRA, IA3), merged into the network that they were trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from maep.models.weights import read_weights, require_fit, require_values
from maep.runtime.errors import UserError, fail
from maep.storage.json_files import read_json

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KINDS = ("LORA", "IA3")
MOST_ALPHA = 2**16  # the scale of the update is alpha over the rank; adapters in use have 1 to 256
# What makes peft import a module by name, or fetch and compute something of its own.
REFUSED = (
    "megatron_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "modules_to_save",
    "trainable_token_indices", "layer_replication", "target_parameters",
)  # fmt: skip
M = TypeVar("M", bound=nn.Module)


def merge_adapter(model: M, directory: Path) -> M:
    """The model with an adapter in peft's format merged into its weights.

    Raises UserError if the adapter names layers or shapes that the model has not.
    """
    # Takes seconds to import, and most processes need none of it.
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    state = read_weights(directory / ADAPTER_WEIGHTS)
    _check_config(directory / ADAPTER_CONFIG, state)
    try:
        adapted = get_peft_model(model, PeftConfig.from_pretrained(str(directory)))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{directory / ADAPTER_CONFIG}: does not fit the purifier: {error}") from error
    require_values(state, directory / ADAPTER_WEIGHTS)
    require_fit(get_peft_model_state_dict(adapted), state, directory / ADAPTER_WEIGHTS)
    set_peft_model_state_dict(adapted, state)
    merged: M = adapted.merge_and_unload()
    return merged


def _check_config(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise UserError for what peft would take memory, time or code for that no adapter of ours asks for."""
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") not in KINDS:
        fail(f"{path}: peft_type: expected a JSON object with one of {', '.join(KINDS)}")
    largest = max((min(tensor.shape) for tensor in state.values() if tensor.ndim == 2), default=1)
    pattern = config.get("rank_pattern") or {}
    for rank in [config.get("r", 1), *(pattern.values() if isinstance(pattern, dict) else [None])]:
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
            fail(f"{path}: r={str(rank)[:40]}: expected a whole number from 1 to {largest}, the rank of its tensors")
    alpha, targets = config.get("lora_alpha", 1), config.get("target_modules")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < MOST_ALPHA:
        fail(f"{path}: lora_alpha={str(alpha)[:40]}: expected a number above 0 and below {MOST_ALPHA}")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        fail(f"{path}: target_modules: expected a list of names of layers (a pattern may take for ever)")
    unknown = [name for name in REFUSED if config.get(name)]
    unknown += [] if isinstance(config.get("init_lora_weights", True), bool) else ["init_lora_weights"]
    if unknown:
        fail(f"{path}: {unknown[0]}={str(config[unknown[0]])[:40]}: not supported; expected none")
