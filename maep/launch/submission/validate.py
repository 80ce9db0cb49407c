"""Bad input to the cluster launcher, found before anything is submitted: one line, exit code 2."""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from maep.config.identity import decisive_settings
from maep.config.schema import Settings
from maep.launch.cluster.jobs import Job
from maep.launch.cluster.settings import Cluster
from maep.launch.cluster.slurm_client import most_workers, node_addresses, partitions, why_refused
from maep.launch.submission.batch_script import MARGIN
from maep.purifiers.registry import network_section
from maep.purifiers.sections import network_entries
from maep.runtime.errors import fail, nearest
from maep.storage.manifests import CheckpointManifest
from maep.storage.sealed import MANIFEST
from maep.training.checkpointing.directory import checkpoints

# Types of file systems that one machine alone has; any other is taken for shared, since there are more of those than
# anybody can list, and a wrong guess is one `--shared` away.
LOCAL = ("tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "aufs")
MOUNTS = Path("/proc/self/mountinfo")
ESCAPE = re.compile(r"\\([0-7]{3})")  # of a blank, tab, newline or backslash in a mount point


def check_run(settings: Settings, cluster: Cluster, jobs: Sequence[Job]) -> None:
    """Raise UserError for what this cluster or this run directory does not allow."""
    sizes, most = partitions(), most_workers()
    for job in jobs:
        check_partition(job, sizes)
        check_time(job, settings.compute.grace)
        check_workers(job, most)
    check_model(settings)
    run = Path(settings.run.dir).absolute()
    if not cluster.general.shared and not nodes_are_here(node_addresses()):
        check_shared(run, file_system(run))


def check_partition(job: Job, sizes: Mapping[str, int]) -> None:
    """Raise UserError for a partition that does not exist or has too few nodes.

    sizes: `{partition: nodes}`, the default one first.
    """
    partition = job.settings.partition
    names = partition.split(",") if partition else list(sizes)[:1]
    for name in names:
        if name not in sizes:
            fail(f"--partition {name} ({job.stage}): no such partition{nearest(name, list(sizes))} (there are: "
                 f"{', '.join(sizes)})")  # fmt: skip
    most = max((sizes[name] for name in names), default=0)
    if job.nodes[0] > most:
        option = "--min-nodes" if job.nodes[0] < job.nodes[1] else "--nodes"
        fail(f"{option} {job.nodes[0]} ({job.stage}): partition {','.join(names)} has {most} nodes")


def check_time(job: Job, grace: float) -> None:
    """The time limit must leave something beside the time for the last save."""
    seconds = job.settings.minutes * 60
    if seconds <= grace + MARGIN:
        fail(
            f"--time {job.settings.time} ({job.stage}): {seconds} s are not more than the last save and leaving may "
            f"take, {grace + MARGIN:g} s (compute.grace={grace:g}); give more time or set --grace"
        )


def check_workers(job: Job, most: int) -> None:
    """Raise UserError for more workers than an array of this cluster may have."""
    if job.workers > most:
        fail(
            f"--workers {job.workers} ({job.stage}): arrays of this cluster have at most {most} (MaxArraySize); fewer "
            f"workers share the same work"
        )


def check_model(settings: Settings) -> None:
    """Refuse a run directory whose newest checkpoint is of another model than the settings ask for."""
    committed = checkpoints(Path(settings.run.dir) / "checkpoints")
    if not committed or _is_for_other_settings(Path(settings.run.dir), settings):
        return
    saved, (section, network) = CheckpointManifest.read(committed[-1] / MANIFEST), network_section(settings)
    if saved.purifier != settings.purifier.kind:
        fail(f"{committed[-1]}: a checkpoint of purifier.kind={saved.purifier}; choose another run.dir")
    for key, value in network_entries(network).items():
        if saved.model.get(key) != value and key != "init":
            fail(
                f"{committed[-1]}: a checkpoint of another model, with {section}.{key}={saved.model.get(key)}; "
                f"this run has {value}; choose another run.dir"
            )


def _is_for_other_settings(run: Path, settings: Settings) -> bool:
    """Whether the pretrain stage's own record tells the change; then it moves the checkpoints aside by itself."""
    from maep.pipeline.stage_records import changed_settings, read_stage_record

    record = read_stage_record(run, "pretrain")
    present = decisive_settings(settings, "pretrain")
    return record is not None and bool(changed_settings(record.settings, present, settings, "pretrain"))


def file_system(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that holds `path`, as the kernel names it: ext4, nfs4, lustre, …"""
    best, kind, place = "", "", Path(os.path.realpath(path))
    for line in (mounts if mounts is not None else os.fsdecode(MOUNTS.read_bytes())).splitlines():
        mount, _, source = line.partition(" - ")
        point = ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), mount.split()[4])
        inside = place == Path(point) or Path(point) in place.parents
        if inside and len(point) >= len(best):
            best, kind = point, source.split()[0]
    return kind


def check_shared(run: Path, kind: str) -> None:
    """Refuse a run directory that only this machine can see."""
    if kind in LOCAL:
        fail(
            f"run.dir={run}: lies on {kind}, which only this machine sees; choose a directory that all nodes share, or "
            f"give --shared if this one is exported to them"
        )


def nodes_are_here(addresses: set[str]) -> bool:
    """Whether all nodes of the cluster are this very machine."""
    return bool(addresses) and all(map(_is_here, addresses))


def _is_here(address: str) -> bool:
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(address, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(ip).is_loopback or _is_own(ip) for ip in addresses)


def _is_own(ip: str) -> bool:
    """Whether an address is one of this machine's: only those can be bound."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def check_with_slurm(scripts: Sequence[tuple[Job, str]]) -> None:
    """Raise UserError with Slurm's own words for a job that it would never run."""
    for job, script in scripts:
        refused = why_refused(script)
        if refused:
            fail(f"{job.stage}: Slurm would not run it ({_asked(job)}): {refused}; nothing was submitted")


def _asked(job: Job) -> str:
    """The options that may not fit the cluster, as they would be written."""
    names = ("partition", "account", "qos", "constraint", "exclude", "time", "cpus_per_task", "mem_per_task")
    options = [(name, getattr(job.settings, name)) for name in names] + [("gpus_per_node", job.gpus)]
    options += [(f"sbatch {name}", value) for name, value in job.settings.sbatch.items()]
    return " ".join([job.size, *(f"--{name.replace('_', '-')} {value}" for name, value in options if value)])
