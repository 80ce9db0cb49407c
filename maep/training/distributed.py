"""Process set-up: one `Accelerator` for one process, several (DDP), or DeepSpeed ZeRO 0 to 3.

Mixed precision is an autocast inside the training module, the same for every backend, with weights and optimizer
in fp32; fp16 adds accelerate's gradient scaler.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs

from maep.errors import fail
from maep.settings import ComputeSettings, TrainSettings

JOIN_TIMEOUT = timedelta(minutes=10)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def world() -> tuple[int, int]:
    """(rank, number of processes) as the launcher's environment states them; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def device_type(compute: ComputeSettings) -> str:
    """`cuda` or `cpu`. Raises UserError if cuda is asked for and there is none."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        fail("compute.device=cuda: no CUDA device here; choose cpu or auto")
    return "cuda" if compute.device != "cpu" and torch.cuda.is_available() else "cpu"


def _deepspeed_config(train: TrainSettings, stage: int, processes: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": -(-train.batch_size // (processes * train.accumulation)),
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }


def make_accelerator(compute: ComputeSettings, train: TrainSettings) -> Accelerator:
    """Join the process group that the environment describes and return the one entry to training.

    Raises UserError for arithmetic that the device or backend cannot do, or a batch smaller than the processes.
    """
    device = device_type(compute)
    rank, processes = world()
    if train.batch_size < processes * train.accumulation:
        fail(
            f"batch_size={train.batch_size}: smaller than {processes} processes times "
            f"accumulation={train.accumulation}; choose at least {processes * train.accumulation}"
        )
    if compute.precision == "fp16" and (device == "cpu" or compute.zero_stage is not None):
        fail("compute.precision=fp16: needs a CUDA device without DeepSpeed; choose bf16 or fp32")
    plugin = None
    if compute.zero_stage is not None:
        plugin = _deepspeed_plugin(compute.zero_stage, train, processes, device)
    sees_all = train.mask_ratio == 0 or train.mask_until < 1  # then the mask token is not used in some steps
    backend = "nccl" if device == "cuda" else "gloo"
    joins = [InitProcessGroupKwargs(backend=backend, timeout=JOIN_TIMEOUT)] if processes > 1 or plugin else []
    accelerator = Accelerator(
        cpu=device == "cpu" and plugin is None,
        mixed_precision="fp16" if compute.precision == "fp16" else "no",
        gradient_accumulation_steps=train.accumulation,
        deepspeed_plugin=plugin,
        kwargs_handlers=[*joins, DistributedDataParallelKwargs(find_unused_parameters=sees_all)],
        step_scheduler_with_optimizer=False,
    )
    if (accelerator.num_processes, accelerator.process_index) != (processes, rank):
        raise RuntimeError(
            f"joined as {accelerator.process_index} of {accelerator.num_processes}, not {rank} of {processes}"
        )
    return accelerator


def _deepspeed_plugin(stage: int, train: TrainSettings, processes: int, device: str) -> DeepSpeedPlugin:
    os.environ["DS_ACCELERATOR"] = device
    for name, value in (
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "0"),
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("LOCAL_RANK", "0"),
    ):
        if processes == 1:
            os.environ.setdefault(name, value)
    import deepspeed.ops

    # Building this CPU op takes 40 s and a compiler, and an interrupted build hangs later runs; gloo serves as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return DeepSpeedPlugin(hf_ds_config=_deepspeed_config(train, stage, processes))


def agree(values: list[float], accelerator: Accelerator) -> list[float]:
    """Sum a few numbers over all ranks: the one tiny all-reduce of a step."""
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    if accelerator.num_processes > 1:
        dist.all_reduce(tensor)
    return tensor.tolist()


def gather_objects(value: Any, accelerator: Accelerator) -> list[Any]:
    """Every rank's value, in rank order."""
    if accelerator.num_processes == 1:
        return [value]
    gathered: list[Any] = [None] * accelerator.num_processes
    dist.all_gather_object(gathered, value)
    return gathered
