"""What a training step costs on N nodes of 8 GPUs, on paper: compute, communication, loader, checkpoint, memory.

    step = max(compute + exposed communication, loader)
    compute = max(FLOPs / (peak * MFU), launches of kernels), FLOPs and launches of a step of the paper's network by
    formulas, 3 forward passes, of any other training counted (`maep.launch.estimate.training_count`)
    communication: ZeRO 0-2 move the gradient's bytes twice (all-reduce, or reduce-scatter and all-gather), ZeRO-3
    three times (weights gathered forward and backward, gradient scattered). Each pass goes through NVLink inside a
    node and then, an eighth of it, through every GPU's own network card between nodes.

Every number that is not the configuration's is a `Constant` with its unit and source.
"""

import math
from dataclasses import dataclass

from maep.launch.estimate.training_count import StepCount

GPUS = 8  # of a node: DGX, HGX and the clouds' instances all have eight
BACKWARD = 3  # forward passes that a step's arithmetic is worth
WORD = 4  # bytes of a weight, a gradient, a moment: all fp32


@dataclass(frozen=True)
class Constant:
    """One number of the model. measured: by this project, else taken from its source or assumed."""

    value: float
    unit: str
    source: str
    measured: bool = False


@dataclass(frozen=True)
class Constants:
    """What the machine does: nodes of 8 H100 SXM, each GPU with a 400 Gbit/s card, unless measured otherwise."""

    peak_bf16: Constant = Constant(989e12, "FLOP/s", "H100 SXM data sheet, dense bf16")
    peak_fp32: Constant = Constant(67e12, "FLOP/s", "H100 SXM data sheet, fp32 without TF32")
    mfu: Constant = Constant(0.30, "of the peak", "assumed; wide ViTs reach 0.4 to 0.5, narrow ones less")
    kernels: Constant = Constant(60, "launches a block", "assumed; forward and backward, compiled")
    launch: Constant = Constant(5e-6, "s a launch", "usual for CUDA")
    nvlink: Constant = Constant(360e9, "bytes/s a GPU", "NVLink 4: 450 GB/s a direction, 80 % reached")
    network: Constant = Constant(40e9, "bytes/s a GPU", "400 Gbit/s a GPU, 80 % reached")
    hop: Constant = Constant(10e-6, "s a message", "assumed; NCCL between nodes")
    overlap: Constant = Constant(0.8, "of the backward pass", "assumed share that hides communication")
    read: Constant = Constant(0.3e-3, "s an image", "assumed; a loader process, small images")
    decode: Constant = Constant(100e6, "bytes/s of pixels", "assumed; a loader process, PNG of photographs")
    to_host: Constant = Constant(25e9, "bytes/s a GPU", "PCIe 5 x16, 40 % of its peak")
    write: Constant = Constant(400e6, "bytes/s a process", "assumed; SHA-256 and fsync included")
    storage: Constant = Constant(20e9, "bytes/s together", "assumed; a parallel file system")
    activation: Constant = Constant(34, "bytes a token and channel", "Korthikanti et al. 2022, Eq. 2; bf16, a block")
    reserved: Constant = Constant(2e9, "bytes a GPU", "assumed; CUDA context, NCCL's buffers, fragments")


@dataclass(frozen=True)
class Workload:
    """What the configuration asks for.

    parameters: trained. flops: of one image's forward pass. blocks: transformer blocks. channels: tokens times width,
    summed over the blocks. image_bytes: of one stored image. save_every: steps. workers: loader processes a GPU.
    step: what was counted of a step that is no forward and backward pass of transformer blocks; in the place of flops,
    blocks and channels, then.
    """

    parameters: int
    flops: float
    blocks: int
    channels: int
    image_bytes: int
    batch: int
    steps: int
    save_every: int
    workers: int
    bf16: bool
    step: StepCount | None = None

    @property
    def step_flops(self) -> float:
        """Of one image in a training step."""
        return BACKWARD * self.flops if self.step is None else self.step.flops

    def launches(self, machine: Constants) -> float:
        """Of a step."""
        return self.blocks * machine.kernels.value if self.step is None else self.step.launches

    def activations(self, machine: Constants) -> float:
        """Bytes that one image's backward pass needs."""
        kept = self.channels * machine.activation.value * 2 if self.step is None else self.step.activations
        return kept / 2 if self.bf16 else kept


@dataclass(frozen=True)
class Cost:
    """Of one step on `nodes` nodes, in seconds and bytes; memory and bytes are a GPU's."""

    nodes: int
    batch_per_gpu: float
    compute: float
    communication: float
    exposed: float
    loader: float
    step: float
    saved_bytes: float
    blocked: float
    background: float
    memory: float


def cost(work: Workload, machine: Constants, nodes: int, zero: int | None) -> Cost:
    """The cost of a step. zero: DeepSpeed's stage, None for plain data parallelism, which costs as stage 0."""
    gpus, stage = nodes * GPUS, zero or 0
    images = work.batch / gpus
    compute = compute_seconds(work, machine, images)
    communication = communication_seconds(WORD * work.parameters, machine, nodes, stage)
    # Backward takes two thirds of the arithmetic, and only behind it can communication hide.
    exposed = max(communication - machine.overlap.value * compute * 2 / 3, 0.0)
    loader = loader_seconds(work, machine, images)
    saved = 4 * WORD * work.parameters  # weights, their average, two moments
    return Cost(
        nodes=nodes, batch_per_gpu=images, compute=compute, communication=communication, exposed=exposed, loader=loader,
        step=max(compute + exposed, loader), saved_bytes=saved, blocked=saved / gpus / machine.to_host.value,
        background=saved / min(gpus * machine.write.value, machine.storage.value),
        memory=memory_bytes(work, machine, gpus, stage, images),
    )  # fmt: skip


def compute_seconds(work: Workload, machine: Constants, images: float) -> float:
    """A step's `images` images on one GPU; no faster than its kernels can be launched."""
    peak = machine.peak_bf16 if work.bf16 else machine.peak_fp32
    arithmetic = work.step_flops * images / (peak.value * machine.mfu.value)
    return max(arithmetic, work.launches(machine) * machine.launch.value)


def communication_seconds(gradient: float, machine: Constants, nodes: int, stage: int) -> float:
    """One step's collectives. gradient: bytes of all gradients; stage: ZeRO 0 to 3."""
    passes = 3 if stage == 3 else 2
    inside = gradient * (GPUS - 1) / GPUS / machine.nvlink.value
    between = gradient / GPUS * (nodes - 1) / nodes / machine.network.value
    return passes * (inside + between + machine.hop.value * math.ceil(math.log2(nodes)))


def loader_seconds(work: Workload, machine: Constants, images: float) -> float:
    """Reading `images` pairs with the workers of one GPU."""
    pair = 2 * (machine.read.value + work.image_bytes / machine.decode.value)
    return images * pair / max(work.workers, 1)


def memory_bytes(work: Workload, machine: Constants, gpus: int, stage: int, images: float) -> float:
    """A GPU's memory: weights, average, gradients, moments (shared out as ZeRO does), activations, the rest."""
    tensors = WORD * work.parameters
    state = 2 * tensors / (gpus if stage >= 3 else 1)  # weights and their average
    state += tensors / (gpus if stage >= 2 else 1)  # gradients
    state += 2 * tensors / (gpus if stage >= 1 else 1)  # moments
    return state + images * work.activations(machine) + machine.reserved.value
