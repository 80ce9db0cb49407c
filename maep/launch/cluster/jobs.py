"""Which jobs a run needs: one a stage, each waiting for those before it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from maep.config.schema import Settings
from maep.launch.cluster.settings import Cluster, ClusterSettings
from maep.runtime.errors import fail

SINGLE, RANKS, ARRAY = "single", "ranks", "array"
KINDS = {
    "shards": SINGLE,
    "classifier": SINGLE,
    "attack": ARRAY,
    "pretrain": RANKS,
    "finetune": RANKS,
    "evaluate": ARRAY,
    "certify": ARRAY,
    "report": SINGLE,
}
POINTS = "points"  # the one job of a sweep: each worker runs whole points, every stage of them
WITHOUT_GPU = ("shards", "report")


@dataclass(frozen=True)
class Job:
    """One job, or array of jobs, of a stage.

    nodes: fewest and most. tasks, gpus: processes and GPUs on each node. workers: tasks of the array, 1 for a single
    job. needs: the stages whose jobs it waits for.
    """

    stage: str
    kind: str
    settings: ClusterSettings
    nodes: tuple[int, int]
    tasks: int
    gpus: int
    workers: int
    needs: tuple[str, ...]

    @property
    def is_elastic(self) -> bool:
        """Whether Slurm may give fewer nodes than the most."""
        return self.nodes[0] < self.nodes[1]

    @property
    def node_hours(self) -> float:
        """Hours of nodes at most, if every job runs until its time limit once."""
        return self.workers * self.nodes[1] * self.settings.minutes / 60

    @property
    def gpu_hours(self) -> float:
        """Hours of GPUs at most."""
        return self.node_hours * self.gpus

    @property
    def size(self) -> str:
        """Nodes, processes and workers, in words."""
        if self.kind == ARRAY:
            return f"{self.workers} workers, {min(self.workers, self.settings.array_parallelism)} at a time"
        fewest, most = self.nodes
        span = str(most) if fewest == most else f"{fewest} to {most}"
        return f"{span} node{'s' if most > 1 else ''} × {self.tasks} process{'es' if self.tasks > 1 else ''}"


def job_of(stage: str, cluster: Cluster, needs: Sequence[str]) -> Job:
    """The job that a stage becomes on this cluster."""
    settings, kind = cluster.of(stage), KINDS[stage]
    gpus = settings.gpus_per_node or 0
    if kind == RANKS:
        nodes = (settings.fewest, settings.nodes)
        return Job(stage, kind, settings, nodes, settings.processes, gpus, 1, tuple(needs))
    # One process uses one GPU, however many its node has; writing shards and pages uses none.
    gpus = 0 if stage in WITHOUT_GPU else min(gpus, 1)
    workers = settings.workers if kind == ARRAY else 1
    return Job(stage, kind, settings, (1, 1), 1, gpus, workers, tuple(needs))


def job_graph(
    stages: Sequence[str], cluster: Cluster, needs: Mapping[str, Sequence[str]], under_way: Collection[str] = ()
) -> list[Job]:
    """The jobs of these stages, in order; each waits for those of the stages it needs.

    needs: the stages that each one's result depends on, those without work of their own replaced by theirs.
    under_way: stages whose jobs were submitted before; they are waited for too.
    """
    submitted = {*stages, *under_way}
    return [job_of(name, cluster, [before for before in needs[name] if before in submitted]) for name in stages]


def check_batch(settings: Settings, jobs: Sequence[Job]) -> None:
    """Raise UserError if a training stage has more processes than images a step."""
    for job in jobs:
        if job.kind != RANKS:
            continue
        train = settings.pretrain if job.stage == "pretrain" else settings.finetune
        processes = job.nodes[1] * job.tasks
        if processes * train.accumulation > train.batch_size:
            fail(
                f"{job.stage}: {processes} processes (--nodes {job.nodes[1]}, {job.tasks} a node) times "
                f"accumulation={train.accumulation} exceed {job.stage}.batch_size={train.batch_size}; "
                f"choose fewer processes or a larger batch"
            )
