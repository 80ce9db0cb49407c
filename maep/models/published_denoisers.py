"""Files of published denoisers, key for key: which network they are of, and its weights under that network's names.

    layout      files                                                        told of the time
    score_sde   score_sde_pytorch, DDPM++ (DiffPure's on CIFAR-10)           999·t
    ddpm        pesser/pytorch_diffusion, and folders of diffusers           steps of Ho et al.
    improved    improved-diffusion, 32 and 64 pixels                         steps of the cosine schedule
    guided      guided-diffusion, unconditional (DiffPure's on ImageNet)     steps of Ho et al.
    edm         EDM, ddpmpp, unconditional (ScoreOpt's on CIFAR-10)          ln σ / 4

Sizes are read off the tensors. Heads and schedules stand in none of these files but diffusers', and are the layout's.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep.models.ddpm_network import DdpmNetwork
from maep.models.edm_network import SIDE, EdmNetwork
from maep.models.guided_network import GUIDED, IMPROVED, GuidedNetwork
from maep.models.score_sde_network import ScoreSdeNetwork
from maep.models.weight_files import read_content
from maep.models.weights import weights_in
from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.storage.json_files import read_json

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "score_sde": ScoreSdeNetwork,
    "ddpm": DdpmNetwork,
    "improved": partial(GuidedNetwork, variant=IMPROVED),
    "guided": partial(GuidedNetwork, variant=GUIDED),
    "edm": EdmNetwork,
}
WIDTHS = 32  # widths are multiples of it: their group norms have so many groups
STEPS = 1000  # of the schedule of a score_sde file


@dataclass(frozen=True)
class Sizes:
    """What the tensors tell of a network; named as in the settings of a denoiser."""

    width: int
    multipliers: list[int]
    blocks: int
    attention: list[int]


# The sizes of the published files, to which one is held whose own cannot be read.
PUBLISHED = {
    "score_sde": Sizes(128, [1, 2, 2, 2], 8, [1]),
    "ddpm": Sizes(128, [1, 2, 2, 2], 2, [1]),
    "improved": Sizes(128, [1, 2, 2, 2], 3, [1, 2]),
    "guided": Sizes(256, [1, 1, 2, 2, 4, 4], 2, [3, 4, 5]),
    "edm": Sizes(128, [2, 2, 2], 4, [1]),
}


@dataclass(frozen=True)
class PublishedDenoiser:
    """layout: one of BUILDERS; tensors: all that the file has for the network, under the names of its layout."""

    layout: str
    sizes: Sizes
    tensors: Mapping[str, Tensor]


def build_published(layout: str, sizes: Sizes, latest: float) -> nn.Module:
    """The network of a layout, with random weights, whose last layer is 0. latest: the time up to which it is asked."""
    return BUILDERS[layout](**asdict(sizes), latest=latest)


def read_published(path: Path) -> PublishedDenoiser:
    """What a file of one of the layouts holds, averaged weights before others; or a folder of diffusers.

    Raises UserError, naming what differs, for other files, and where the schedule that a file tells is not the one that
    the network of its layout was made for. Names and shapes of the tensors are the caller's to compare.
    """
    path = path / "unet" if (path / "unet").is_dir() else path
    content = read_content(path)
    tensors = _score_sde_average(content, path) or weights_in(content, path)
    if "time_embedding.linear_1.weight" in tensors:
        _check_diffusers(path if path.is_dir() else path.parent)
        tensors = _renamed(tensors)
    tensors = _without_model(tensors)
    layout = _layout(tensors, path)
    if layout == "score_sde":
        _check_steps(tensors.pop("sigmas", None), path)
    if layout == "edm":
        tensors = _edm_tensors(tensors, path)
    return PublishedDenoiser(layout, _sizes(layout, tensors, path), tensors)


def _layout(tensors: Mapping[str, Tensor], path: Path) -> str:
    marks = {"all_modules.0.weight": "score_sde", "temb.dense.0.weight": "ddpm", "map_layer0.weight": "edm"}
    for name, layout in marks.items():
        if name in tensors:
            return layout
    if "time_embed.0.weight" in tensors:
        return "improved" if any(name.endswith(".op.weight") for name in tensors) else "guided"
    names = ", ".join(list(tensors)[:3])
    fail(f"{path}: weights do not fit: of no layout of a denoiser that is read ({', '.join(BUILDERS)}, diffusers); "
         f"its first names are {names}")  # fmt: skip


# score_sde: the averaged weights are a list without names, in the order of the parameters


def _score_sde_average(content: Any, path: Path) -> dict[str, Tensor]:
    """The averaged weights of a score_sde file under its model's names, and its buffers; {} for another file."""
    average = content.get("ema") if isinstance(content, Mapping) else None
    shadows = average.get("shadow_params") if isinstance(average, Mapping) else None
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(shadows, list) or not isinstance(model, Mapping):
        return {}
    named = {name.removeprefix("module."): tensor for name, tensor in model.items() if isinstance(tensor, Tensor)}
    weights = [name for name in named if name != "sigmas"]
    if len(weights) != len(shadows):
        fail(f"{path}: weights do not fit: ema has {len(shadows)} tensors, model {len(weights)}")
    for name, shadow in zip(weights, shadows, strict=True):
        if not isinstance(shadow, Tensor) or shadow.shape != named[name].shape:
            shape = tuple(shadow.shape) if isinstance(shadow, Tensor) else type(shadow).__name__
            fail(f"{path}: weights do not fit: {name} (is {shape} in ema, {tuple(named[name].shape)} in model)")
    say(f"{path}: the weights of ema are taken, not those of model")
    return {**named, **dict(zip(weights, shadows, strict=True))}


def _check_steps(sigmas: Tensor | None, path: Path) -> None:
    """Raise UserError for a file of another number of steps: its network hears other times."""
    if sigmas is not None and len(sigmas) != STEPS:
        fail(f"{path}: sigmas: its schedule has {len(sigmas)} steps; networks of {STEPS} are read")


# EDM: the network lies in a preconditioning, which is not in the file, and may have an augmentation's layer


def _without_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the name that EDM's preconditioning has for its network, where all have it."""
    whole = all(name.startswith("model.") for name in tensors)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()} if whole else tensors


def _edm_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Under the names of CIFAR-10's levels; without the layer that hears the augmentation, of which none is told."""
    filters = {name for name, tensor in tensors.items() if name.endswith(".resample_filter") and (tensor != 0.25).any()}
    if filters:
        fail(f"{path}: {min(filters)}: is no mean of four pixels; networks of the architecture ddpmpp are read")
    sides = [int(found[1]) for name in tensors if (found := re.match(r"enc\.(\d+)x\1_", name))]
    finest = max(sides, default=SIDE)

    def renamed(name: str) -> str:
        found = re.match(r"(enc|dec)\.(\d+)x\2_", name)
        side = int(found[2]) * SIDE // finest if found else 0
        return f"{found[1]}.{side}x{side}_{name[found.end() :]}" if found else name

    return {renamed(name): tensor for name, tensor in tensors.items() if name != "map_augment.weight"}


# diffusers: Ho et al.'s network under other names, and what it was trained on beside it

DIFFUSERS_NAMES = (
    (r"^time_embedding\.linear_(\d)", lambda m: f"temb.dense.{int(m[1]) - 1}"),
    (r"^conv_norm_out", "norm_out"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"^mid_block\.attentions\.0", "mid.attn_1"),
    (r"^down_blocks\.", "down."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.time_emb_proj\.", ".temb_proj."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    # The names of attentions that files from before 2023 have, and today's.
    (r"\.(query|to_q)\.", ".q."),
    (r"\.(key|to_k)\.", ".k."),
    (r"\.(value|to_v)\.", ".v."),
    (r"\.(proj_attn|to_out\.0)\.", ".proj_out."),
)  # fmt: skip
# What a folder's config.json must say, with diffusers' defaults, which an absent entry has.
NETWORK_CONFIG: dict[str, tuple[object, object]] = {
    "act_fn": ("silu", "silu"), "norm_num_groups": (32, 32), "norm_eps": (1e-6, 1e-5), "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True), "downsample_padding": (0, 1), "attention_head_dim": (None, 8),
    "time_embedding_type": ("positional", "positional"), "center_input_sample": (False, False),
    "mid_block_scale_factor": (1, 1), "resnet_time_scale_shift": ("default", "default"),
}  # fmt: skip
SCHEDULE_CONFIG: dict[str, tuple[object, object]] = {
    "beta_schedule": ("linear", None), "num_train_timesteps": (STEPS, 1000), "beta_start": (1e-4, 1e-4),
    "beta_end": (0.02, 0.02), "prediction_type": ("epsilon", "epsilon"), "trained_betas": (None, None),
    "rescale_betas_zero_snr": (False, False),
}  # fmt: skip


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of `DdpmNetwork`; a linear layer of an attention is a 1 x 1 convolution there."""
    ups = [int(name.split(".")[1]) for name in tensors if re.match(r"up_blocks\.\d+\.", name)]
    last, result = max(ups, default=0), {}
    for name, tensor in tensors.items():
        new = re.sub(r"^up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", name)
        for pattern, replacement in DIFFUSERS_NAMES:
            new = re.sub(pattern, replacement, new)
        is_mixing = re.search(r"\.(q|k|v|proj_out)\.weight$", new) is not None and tensor.ndim == 2
        result[new] = tensor[:, :, None, None] if is_mixing else tensor
    return result


def _check_diffusers(folder: Path) -> None:
    """Raise UserError where a folder says that its network is another, or was trained on another schedule."""
    places = (folder, folder / "scheduler", folder.parent / "scheduler")
    schedules = [place / "scheduler_config.json" for place in places]
    for wanted, files in ((NETWORK_CONFIG, [folder / "config.json"]), (SCHEDULE_CONFIG, schedules)):
        present = next((path for path in files if path.is_file()), None)
        if present is None:
            said = ", ".join(f"{key}={value}" for key, (value, _) in wanted.items())
            say(f"{files[0]}: is not there; the weights are taken to be of {said}")
            continue
        told = read_json(present)
        for key, (value, default) in wanted.items():
            given = told.get(key, default) if isinstance(told, dict) else None
            if given != value:
                fail(f"{present}: {key}={given}: does not fit; networks of {key}={value} are read")


# the sizes of a network, from the names and shapes of its tensors


def _sizes(layout: str, tensors: Mapping[str, Tensor], path: Path) -> Sizes:
    """Those of all that the tensors could be of whose names and shapes are most of theirs."""
    try:
        candidates = list(READERS[layout](tensors))
    except (KeyError, IndexError, ZeroDivisionError):  # a name is missing: which, the comparison says
        candidates = []
    candidates = [sizes for sizes in candidates if _is_buildable(sizes)]
    sizes = max(candidates or [PUBLISHED[layout]], key=lambda each: _agreement(layout, each, tensors))
    if layout == "improved" and len(sizes.multipliers) != len(PUBLISHED[layout].multipliers):
        fail(f"{path}: has {len(sizes.multipliers)} levels; of this layout those with 4 are read, of 32 and 64 pixels, "
             "which were trained on the cosine schedule")  # fmt: skip
    return sizes


def _is_buildable(sizes: Sizes) -> bool:
    return bool(sizes.multipliers) and min(sizes.multipliers) > 0 and sizes.width > 0 and sizes.width % WIDTHS == 0


def _agreement(layout: str, sizes: Sizes, tensors: Mapping[str, Tensor]) -> int:
    with torch.device("meta"):
        expected = build_published(layout, sizes, 1.0).state_dict()
    return sum(name in tensors and tensors[name].shape == tensor.shape for name, tensor in expected.items())


def _ddpm_sizes(tensors: Mapping[str, Tensor]) -> Iterator[Sizes]:
    width = len(tensors["conv_in.weight"])
    levels = len({name.split(".")[1] for name in tensors if name.startswith("down.")})
    blocks = sum(re.fullmatch(r"down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in tensors)
    multipliers = [len(tensors[f"down.{level}.block.0.conv1.weight"]) // width for level in range(levels)]
    yield Sizes(width, multipliers, blocks, [i for i in range(levels) if f"down.{i}.attn.0.q.weight" in tensors])


def _score_sde_sizes(tensors: Mapping[str, Tensor]) -> Iterator[Sizes]:
    width = tensors["all_modules.0.weight"].shape[1]
    residuals = sorted(int(name.split(".")[1]) for name in tensors if name.endswith(".Conv_0.weight"))
    for levels in range(1, len(residuals) // 3 + 1):
        # of each level blocks going down and one more going up, then a change of size each way; two in the middle
        blocks = (len(residuals) // levels - 3) // 2
        if blocks < 1 or levels * (2 * blocks + 3) != len(residuals):
            continue
        firsts = [residuals[level * (blocks + 1)] for level in range(levels)]
        multipliers = [len(tensors[f"all_modules.{first}.Conv_0.weight"]) // width for first in firsts]
        attention = [i for i, first in enumerate(firsts) if f"all_modules.{first + 1}.NIN_0.W" in tensors]
        yield Sizes(width, multipliers, blocks, attention)


def _guided_sizes(tensors: Mapping[str, Tensor]) -> Iterator[Sizes]:
    width = len(tensors["input_blocks.0.0.weight"])
    count = len({name.split(".")[1] for name in tensors if name.startswith("output_blocks.")})
    for levels in range(1, count // 2 + 1):
        blocks = count // levels - 1
        if levels * (blocks + 1) != count:
            continue
        firsts = [1 + level * (blocks + 1) for level in range(levels)]
        shapes = [tensors.get(f"input_blocks.{first}.0.out_layers.3.weight") for first in firsts]
        if any(shape is None for shape in shapes):
            continue
        multipliers = [len(shape) // width for shape in shapes if shape is not None]
        attention = [i for i, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in tensors]
        yield Sizes(width, multipliers, blocks, attention)


def _edm_sizes(tensors: Mapping[str, Tensor]) -> Iterator[Sizes]:
    width, found = len(tensors["enc.32x32_conv.weight"]), [re.match(r"enc\.(\d+)x", name) for name in tensors]
    sides = sorted({int(each[1]) for each in found if each}, reverse=True)
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("enc.32x32_block")})
    first = [f"enc.{side}x{side}_block0" for side in sides]
    multipliers = [len(tensors[f"{name}.conv1.weight"]) // width for name in first]
    yield Sizes(width, multipliers, blocks, [i for i, name in enumerate(first) if f"{name}.qkv.weight" in tensors])


READERS: dict[str, Callable[[Mapping[str, Tensor]], Iterator[Sizes]]] = {
    "score_sde": _score_sde_sizes, "ddpm": _ddpm_sizes, "improved": _guided_sizes, "guided": _guided_sizes,
    "edm": _edm_sizes,
}  # fmt: skip
