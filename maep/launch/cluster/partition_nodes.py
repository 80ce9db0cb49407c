"""What the nodes of a partition have, as Slurm says, and what a job asks for where nobody said it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from maep.launch.cluster.gpu_request import GPUS_PER_NODE, GRES, gpus_of
from maep.launch.cluster.jobs import KINDS, POINTS, RANKS
from maep.launch.cluster.settings import CPUS, Cluster, ClusterSettings, megabytes_of
from maep.launch.cluster.slurm_client import default_partition, fields_of, qos_preempt_mode, scontrol
from maep.runtime.errors import fail

WORKER_CPUS = 8  # CPUs: a process without a GPU gains little from more at the sizes of this project's models
CANCEL = "CANCEL"


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike. gpus of type gpu_type each, "" where Slurm names no type. memory: MB of each."""

    gpus: int
    gpu_type: str
    cpus: int
    memory: int

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPUs{f' ({self.gpu_type})' if self.gpu_type else ''}" if self.gpus else "no GPUs"
        return f"{gpus}, {self.cpus} CPUs, {self.memory / 1024:.0f} GB"


@dataclass(frozen=True)
class Partition:
    """A partition: nodes of each kind; preempt_mode: OFF, REQUEUE, CANCEL, …; gpu_option: how to ask for GPUs."""

    name: str
    kinds: Counter[NodeKind]
    preempt_mode: str = "OFF"
    gpu_option: str = GPUS_PER_NODE

    @property
    def cancels(self) -> bool:
        """Whether a job that is preempted here is cancelled, however it was submitted."""
        return CANCEL in self.preempt_mode.split(",")


def read_partition(name: str | None, constraint: str | None = None, qos: str | None = None) -> Partition:
    """What Slurm says of a partition, or of the first of several. name: None for the cluster's default.

    constraint: only nodes with this feature count; an expression of several is left to Slurm. qos: of the job, which
    may decide what preemption does.
    """
    name = name.split(",")[0] if name else default_partition()
    config = _configuration(scontrol("show", "config"))
    lines = [fields_of(line) for line in scontrol("--oneliner", "show", "node").splitlines() if "NodeName=" in line]
    nodes = [fields for fields in lines if name in fields.get("Partitions", "").split(",")]
    having = [fields for fields in nodes if constraint in fields.get("ActiveFeatures", "").split(",")]
    answer = scontrol("--oneliner", "show", "partition", name)
    fields = fields_of(answer) if "PartitionName=" in answer else {}
    most = fields.get("MaxCPUsPerNode", "")
    kinds = Counter(node_kind(node, int(most) if most.isdigit() else None) for node in having or nodes)
    option = GPUS_PER_NODE if config.get("SelectType", "cons_tres").endswith("cons_tres") else GRES
    return Partition(name, kinds, _preempt_mode(config, fields, qos), option)


def _preempt_mode(config: Mapping[str, str], partition: Mapping[str, str], qos: str | None) -> str:
    """What preemption does to a job: by its partition, or where Slurm preempts by it, by its quality of service."""
    kind, cluster = config.get("PreemptType", "preempt/none"), config.get("PreemptMode", "OFF").upper()
    if kind == "preempt/none":
        return "OFF"
    if kind != "preempt/qos":
        return (partition.get("PreemptMode") or cluster).upper()
    own = qos_preempt_mode(qos or partition.get("QoS", "").replace("N/A", ""))
    return cluster if own in ("", "CLUSTER") else own


def _configuration(answer: str) -> dict[str, str]:
    """`{key: value}` of `scontrol show config`."""
    pairs = [line.partition("=") for line in answer.splitlines() if "=" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}


def node_kind(fields: dict[str, str], most_cpus: int | None = None) -> NodeKind:
    """A node from the fields of `scontrol show node`. most_cpus: what its partition gives of each node."""
    counts = gpus_of(fields.get("Gres", ""))
    gpu_type, gpus = max(counts.items(), key=lambda pair: pair[1], default=("", 0))
    # CPUEfctv is without those that are kept for Slurm itself; Slurm before 22.05 does not say it.
    cpus = _number(fields.get("CPUEfctv") or fields.get("CPUTot", "1")) or 1
    memory = max(_number(fields.get("RealMemory", "0")) - _number(fields.get("MemSpecLimit", "0")), 0)
    return NodeKind(gpus, gpu_type, min(cpus, most_cpus or cpus), memory)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def usual_kind(partition: Partition, settings: ClusterSettings) -> NodeKind | None:
    """The kind of node that a job is fitted to: with GPUs where enough nodes have them, of one type; else commonest.

    None for a partition without nodes. Where no kind alone has enough nodes, what all that are needed have.
    """
    typed = [kind for kind in partition.kinds if not settings.gpu_type or kind.gpu_type == settings.gpu_type]
    with_gpus = [kind for kind in typed if kind.gpus] if settings.gpus_per_node != 0 else []
    for kinds in (with_gpus, list(partition.kinds)):
        enough = [kind for kind in kinds if partition.kinds[kind] >= settings.fewest]
        if enough:
            return max(enough, key=lambda kind: (kind.gpus * (kind in with_gpus), partition.kinds[kind], kind.cpus))
        if kinds and sum(partition.kinds[kind] for kind in kinds) >= settings.fewest:
            return _least(kinds)
    return _least(list(partition.kinds)) if partition.kinds else None


def _least(kinds: Sequence[NodeKind]) -> NodeKind:
    """What every one of these nodes has."""
    types = {kind.gpu_type for kind in kinds}
    return NodeKind(
        min(kind.gpus for kind in kinds), types.pop() if len(types) == 1 else "",
        min(kind.cpus for kind in kinds), min(kind.memory for kind in kinds),
    )  # fmt: skip


def fitted(settings: ClusterSettings, partition: Partition, *, is_worker: bool = False) -> ClusterSettings:
    """The settings with what was left open taken from the partition's nodes. is_worker: one process, not a training.

    Raises UserError for more GPUs, CPUs or memory on a node than any has, and for a type of GPU that none has.
    """
    kind = usual_kind(partition, settings)
    if kind is None:
        return settings
    check_fits(settings, partition)
    asked_by_gres = gpus_of(settings.sbatch.get("gres", ""))
    by_gres = sum(asked_by_gres.values()) or None
    gpus = settings.gpus_per_node if settings.gpus_per_node is not None else by_gres
    if gpus is None:
        # There is a process a GPU: so many processes use so many GPUs, if the nodes have them.
        wanted = settings.nproc_per_node or kind.gpus
        gpus = wanted if wanted <= kind.gpus else 0
    processes = gpus or settings.nproc_per_node or 1
    # Of a node with GPUs each GPU gets its share, also where fewer are asked for than there are.
    share = max(kind.cpus // max(processes, kind.gpus if gpus else 0), 1)
    if is_worker and not gpus:
        share = min(share, WORKER_CPUS)
    return replace(
        settings, gpus_per_node=gpus, cpus_per_task=settings.cpus_per_task or share,
        gpu_type=settings.gpu_type or (kind.gpu_type or None if gpus and not by_gres else None),
        gpu_option=settings.gpu_option or partition.gpu_option,
    )  # fmt: skip


def check_fits(settings: ClusterSettings, partition: Partition) -> None:
    """Raise UserError for what no node of the partition has."""
    kinds = partition.kinds
    if settings.gpu_type and settings.gpu_type not in {kind.gpu_type for kind in kinds if kind.gpus}:
        there = sorted({kind.gpu_type or "GPUs without a type" for kind in kinds if kind.gpus}) or ["no GPUs"]
        fail(f"--gpu-type {settings.gpu_type}: partition {partition.name} has {', '.join(there)}")
    processes, cpus = settings.processes, settings.cpus_per_task or 0
    memory = megabytes_of(settings.mem_per_task) * processes if settings.mem_per_task else 0
    for option, asked, most, unit in (
        ("--gpus-per-node", settings.gpus_per_node or 0, max(kind.gpus for kind in kinds), "GPUs"),
        ("--cpus-per-task", cpus * processes, max(kind.cpus for kind in kinds), "CPUs"),
        ("--mem-per-task", memory, max(kind.memory for kind in kinds), "MB"),
    ):
        if asked > most > 0 or (asked and option == "--gpus-per-node" and not most):
            fail(f"{option}: {asked} {unit} on a node are asked for, and a node of partition {partition.name} has "
                 f"{most} {unit} at most")  # fmt: skip


def fit_to_nodes(cluster: Cluster, report: Callable[[str], object]) -> Cluster:
    """The cluster's settings with what the nodes have, each stage by its own partition.

    report: called with a line for each partition: what its nodes have, what is asked for, and whether it cancels.
    """
    partitions: dict[tuple[str | None, str | None, str | None], Partition] = {}

    def fit(settings: ClusterSettings, stage: str = "pretrain") -> ClusterSettings:
        key = (settings.partition, settings.constraint, settings.qos)
        is_new = key not in partitions
        if is_new:
            partitions[key] = read_partition(*key)
        suited = fitted(settings, partitions[key], is_worker=KINDS.get(stage) != RANKS)
        if is_new:
            for line in _lines(partitions[key], settings, suited):
                report(line)
        return suited

    general = fit(cluster.general)
    return Cluster(general, {name: fit(cluster.of(name), name) for name in (*KINDS, POINTS)})


def _lines(partition: Partition, asked: ClusterSettings, suited: ClusterSettings) -> list[str]:
    kinds = ", ".join(f"{count} × {kind}" for kind, count in partition.kinds.most_common())
    use = f"{suited.gpus_per_node or 'no'} GPUs and {suited.processes} processes a node, {suited.cpus} CPUs each"
    lines = [f"partition {partition.name}: nodes of {kinds}; a training asks for {use}"]
    if partition.cancels:
        lines.append(
            f"partition {partition.name} cancels jobs that it preempts (PreemptMode=CANCEL) and requeues none: "
            f"--wait submits them again, as does the same command"
        )
    return lines


def unfitted(cluster: Cluster) -> str:
    """What is assumed where no Slurm tells what the nodes have; "" if nothing was left open."""
    general = cluster.general
    if general.gpus_per_node is not None and general.cpus_per_task is not None:
        return ""
    gpus = general.gpus_per_node or 0
    return f"no Slurm here tells what the nodes have: {gpus} GPUs and {general.cpus_per_task or CPUS} CPUs are assumed"
