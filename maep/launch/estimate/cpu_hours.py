"""How long a training would take without accelerators, on paper: whether somebody should be warned."""

from collections.abc import Sequence

from maep.config.schema import Settings
from maep.launch.cluster.jobs import POINTS, RANKS, Job
from maep.launch.estimate.cost_model import Constant
from maep.launch.estimate.scaling_table import workload
from maep.runtime.errors import UserError

CORE = Constant(
    34e9, "FLOP/s a CPU", "measured: 64 tokens of 96 channels, 350 images/s, two cores; fp32", measured=True
)
LONG = 24.0  # hours: somebody who waits longer than a day would rather have known


def cpu_hours(settings: Settings, cpus: int) -> float:
    """Hours of the pretraining's arithmetic on so many CPUs. Raises UserError where its images are not known."""
    work = workload(settings)
    return work.steps * work.batch * work.step_flops / (cpus * CORE.value) / 3600


def warning(settings: Settings, jobs: Sequence[Job]) -> str:
    """A line about a training that gets no GPU though its settings are meant for some, or it takes days; else ""."""
    for job in jobs:
        if (job.kind == RANKS or job.stage == POINTS) and not job.gpus:
            return _warning(settings, job)
    return ""


def _warning(settings: Settings, job: Job) -> str:
    cpus = job.nodes[1] * job.tasks * job.settings.cpus
    # Half precision is what GPUs have units for; a CPU is slower with it than without.
    is_for_gpus = settings.compute.precision != "fp32"
    try:
        hours = cpu_hours(settings, cpus)
    except UserError as error:
        duration = f"hours are not known ({error})"
        return f"{job.stage}: no GPUs are asked for, and {_meant(settings)}; {duration}" if is_for_gpus else ""
    if not is_for_gpus and hours <= LONG:
        return ""
    return (
        f"{job.stage}: no GPUs are asked for, and {_meant(settings)}: the pretraining alone would take about "
        f"{hours:,.0f} hours on {cpus} CPUs, by the estimate; give --gpus-per-node and a --partition that has GPUs, or "
        f"a smaller configuration"
    )


def _meant(settings: Settings) -> str:
    if settings.compute.precision != "fp32":
        return f"compute.precision={settings.compute.precision} is meant for accelerators"
    return "the training is long"
