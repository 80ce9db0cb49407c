"""accelerate's `Accelerator` on the joined processes: one process, several (DDP), or DeepSpeed ZeRO 0 to 3.

Mixed precision is an autocast inside the training module, the same for every backend, with weights and optimizer
in fp32; fp16 adds accelerate's gradient scaler.
"""

import os
from collections.abc import Collection

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs

from maep.config.schema import ComputeSettings
from maep.config.training_settings import TrainSettings
from maep.models.masked_autoencoder import MASK_TOKEN
from maep.runtime.device import prepare_device, warn_of_slow_bf16
from maep.runtime.errors import fail
from maep.training.distributed.world import close_group_at_exit, join_world


def make_accelerator(compute: ComputeSettings, train: TrainSettings, trained: Collection[str]) -> Accelerator:
    """Join the other processes (see `join_world`) and return the one entry to training.

    trained: names of the parameters.
    Raises UserError for arithmetic that the device or backend cannot do, or a batch smaller than the processes.
    """
    device, joined = prepare_device(compute, trains=True), join_world(compute)
    _name_device(device)
    if train.batch_size < joined.size * train.accumulation:
        fail(
            f"batch_size={train.batch_size}: smaller than {joined.size} processes times "
            f"accumulation={train.accumulation}; choose at least {joined.size * train.accumulation}"
        )
    if compute.precision == "fp16" and (device.type == "cpu" or compute.zero_stage is not None):
        fail("compute.precision=fp16: needs a CUDA device without DeepSpeed; choose bf16 or fp32")
    if joined.rank == 0:
        warn_of_slow_bf16("compute.precision", compute.precision, device)
    plugin = None
    if compute.zero_stage is not None:
        plugin = _deepspeed_plugin(compute.zero_stage, train, joined.size, device.type)
    sees_all = train.mask_ratio == 0 or train.mask_until < 1
    rests = sees_all and any(name.endswith(MASK_TOKEN) for name in trained)  # in some steps: DDP must not wait for it
    # Without the name of the backend accelerate believes in a world of 1 on CPUs.
    joins = [InitProcessGroupKwargs(backend=dist.get_backend())] if dist.is_initialized() else []
    accelerator = Accelerator(
        cpu=device.type == "cpu" and plugin is None,
        mixed_precision="fp16" if compute.precision == "fp16" else "no",
        gradient_accumulation_steps=train.accumulation,
        deepspeed_plugin=plugin,
        kwargs_handlers=[*joins, DistributedDataParallelKwargs(find_unused_parameters=rests)],
        step_scheduler_with_optimizer=False,
    )
    rank, size = accelerator.process_index, accelerator.num_processes
    if (rank, size) != (joined.rank, joined.size):
        raise RuntimeError(f"joined as {joined.rank} of {joined.size}, accelerate believes {rank} of {size}")
    return accelerator


def _name_device(device: torch.device) -> None:
    """Tell accelerate and DeepSpeed, which take LOCAL_RANK for the number of a device, which one this process has.

    Where Slurm binds every task to a device of its own, each sees a single one: number 0, whatever LOCAL_RANK is.
    """
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        os.environ["LOCAL_RANK"] = str(device.index)


def _deepspeed_config(train: TrainSettings, stage: int, processes: int) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": -(-train.batch_size // (processes * train.accumulation)),
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,  # never: the loop has a log of its own
    }


def _deepspeed_plugin(stage: int, train: TrainSettings, processes: int, device: str) -> DeepSpeedPlugin:
    """DeepSpeed wants a process group and its variables for a single process too."""
    os.environ["DS_ACCELERATOR"] = device
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        if processes == 1:
            os.environ.setdefault(name, value)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
        close_group_at_exit()
    import deepspeed.ops

    # Building this CPU op takes 40 s and a compiler, and an interrupted build hangs later runs; gloo serves as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return DeepSpeedPlugin(hf_ds_config=_deepspeed_config(train, stage, processes))
