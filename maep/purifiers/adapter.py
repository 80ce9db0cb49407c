"""Adapters in peft's format (LoRA, DoRA, IA3), merged into the network that they were trained on."""

from pathlib import Path
from typing import TypeVar

from torch import nn

from maep.models.weights import read_weights, require_fit
from maep.runtime.errors import UserError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
M = TypeVar("M", bound=nn.Module)


def merge_adapter(model: M, directory: Path) -> M:
    """The model with an adapter in peft's format merged into its weights.

    Raises UserError if the adapter names layers or shapes that the model has not.
    """
    # Takes seconds to import, and most processes need none of it.
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    try:
        adapted = get_peft_model(model, PeftConfig.from_pretrained(str(directory)))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{directory / ADAPTER_CONFIG}: does not fit the purifier: {error}") from error
    state = read_weights(directory / ADAPTER_WEIGHTS)
    require_fit(get_peft_model_state_dict(adapted), state, directory / ADAPTER_WEIGHTS)
    set_peft_model_state_dict(adapted, state)
    merged: M = adapted.merge_and_unload()
    return merged
