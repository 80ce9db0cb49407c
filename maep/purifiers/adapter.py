"""Adapters in peft's format (LoRA, DoRA, IA3), merged into the network that they were trained on."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from torch import Tensor, nn

from maep.models.weights import read_weights, require_fit, require_values
from maep.runtime.errors import fail
from maep.storage.documents import read_fields
from maep.storage.json_files import read_json

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The scale of the update is alpha over the rank; adapters in use have 1 to 256.
ALPHA = {"above": 0, "high": 2**16}
# peft compares every name with every layer; the largest networks have some thousand layers.
MOST_NAMES = 10_000
# peft takes some names for regular expressions, which may be invalid or take for ever.
PLAIN_NAME = re.compile(r"[\w.]+")
# What says nothing about the merged weights.
WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_ia3_weights", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
)  # fmt: skip
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LoraEntries:
    """The entries of a LoRA's or DoRA's adapter_config.json that are understood, as peft documents them.

    init_lora_weights: those that leave the network's own weights as they were, so that they are what was adapted.
    """

    target_modules: list[str]
    r: int = 8
    lora_alpha: float = field(default=8, metadata=ALPHA)
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    exclude_modules: list[str] | None = None
    layers_to_transform: list[int] | None = None
    layers_pattern: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    use_dora: bool = False
    use_rslora: bool = False
    init_lora_weights: Literal[True, False, "gaussian", "orthogonal"] = True

    def peft(self) -> "PeftConfig":
        """As peft's own."""
        from peft import LoraConfig

        return LoraConfig(**asdict(self))


@dataclass(frozen=True)
class IA3Entries:
    """The entries of an IA3's adapter_config.json that are understood, as peft documents them."""

    target_modules: list[str]
    feedforward_modules: list[str]
    exclude_modules: list[str] | None = None
    fan_in_fan_out: bool = False

    def peft(self) -> "PeftConfig":
        """As peft's own."""
        from peft import IA3Config

        return IA3Config(**asdict(self))


KINDS = {"LORA": LoraEntries, "IA3": IA3Entries}


def merge_adapter(model: M, directory: Path) -> M:
    """The model with an adapter in peft's format merged into its weights.

    Raises UserError if the adapter names layers or shapes that the model has not, or asks for what is not understood.
    """
    # Takes seconds to import, and most processes need none of it.
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    state = read_weights(directory / ADAPTER_WEIGHTS)
    config = _read_config(directory / ADAPTER_CONFIG, state).peft()
    try:
        # Without memory for the adapter's weights until those of the file are known to fit.
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError) as error:
        fail(f"{directory / ADAPTER_CONFIG}: does not fit the purifier: {str(error)[:200]}")
    require_values(state, directory / ADAPTER_WEIGHTS)
    require_fit(get_peft_model_state_dict(adapted), state, directory / ADAPTER_WEIGHTS)
    set_peft_model_state_dict(adapted, state, low_cpu_mem_usage=True)
    return cast(M, adapted.merge_and_unload())


def _read_config(path: Path, state: Mapping[str, Tensor]) -> LoraEntries | IA3Entries:
    """What an adapter_config.json asks for. Raises UserError for whatever might change the result and is not known."""
    config = read_json(path)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        fail(f"{path}: peft_type: expected a JSON object with one of {', '.join(KINDS)}")
    known = {*WITHOUT_EFFECT, *(item.name for item in fields(KINDS[kind]))}
    for name, value in config.items():
        if value and name not in known:
            fail(f"{path}: {name[:40]}={str(value)[:40]}: not supported; expected none")
    _check_names(path, config)
    entries: LoraEntries | IA3Entries = read_fields(KINDS[kind], config, str(path))
    if isinstance(entries, LoraEntries):
        _check_ranks(path, entries, state)
    return entries


def _check_names(path: Path, config: Mapping[str, object]) -> None:
    """Raise UserError for layers that are not named one by one."""
    for entry in ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern"):
        if config.get(entry) is not None and not isinstance(config[entry], list):
            fail(f"{path}: {entry}: expected a list of names of layers (a pattern may take for ever)")
    for entry, value in config.items():
        names = value if isinstance(value, list | dict) and entry not in WITHOUT_EFFECT else ()
        if len(names) > MOST_NAMES:
            fail(f"{path}: {entry}: {len(names)} entries; at most {MOST_NAMES}")
        for name in names:
            if isinstance(name, str) and not PLAIN_NAME.fullmatch(name):
                fail(f"{path}: {entry}: {name[:40]!r}: expected the name of a layer (a pattern may take for ever)")


def _check_ranks(path: Path, entries: LoraEntries, state: Mapping[str, Tensor]) -> None:
    """Raise UserError for ranks and scales that no tensor of the file has, or no adapter needs."""
    largest = max((max(tensor.shape[:2]) for tensor in state.values() if tensor.ndim >= 2), default=1)
    for rank in (entries.r, *entries.rank_pattern.values()):
        if not 1 <= rank <= largest:
            fail(f"{path}: r={rank}: expected a whole number from 1 to {largest}, the largest size of its tensors")
    for name, alpha in entries.alpha_pattern.items():
        if not ALPHA["above"] < alpha <= ALPHA["high"]:
            fail(f"{path}: alpha_pattern.{name[:40]}={alpha}: expected a number above 0, at most {ALPHA['high']}")
