"""What is asked of the cluster: typed settings from `configs/cluster/NAME.yaml` and the launcher's `--options`.

Layers, later ones win: the defaults below; SBATCH_ACCOUNT and its like in the shell; the file's keys; the file's
`stages: {NAME: {…}}` for one stage; options. What is then still open is taken from the partition's nodes
(`maep.launch.cluster.partition_nodes`).
"""

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from maep.config.load import CONFIGS, apply_setting, leaves
from maep.config.setting import setting
from maep.config.values import MAX_FILE
from maep.launch.cluster.gpu_request import GPUS_PER_NODE, GRES
from maep.launch.cluster.outer_shell import extra_site_defaults, site_defaults
from maep.launch.cluster.single_line import single_line, single_lines
from maep.launch.cluster.slurm_options import (
    SBATCH,
    SRUN,
    check_memory,
    options_of,
    options_of_words,
    without_unset,
)
from maep.runtime.errors import fail, nearest
from maep.runtime.plain_files import read_bytes

SHELL = "the shell's SBATCH_ variables"
CPUS = 2  # of a process, where nobody says it and no Slurm tells: one computes, one reads
STAGES = "stages"
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")
MEMORY = re.compile(r"(\d+)([MGT])B?", re.IGNORECASE)
MEGABYTES = {"M": 1, "G": 1024, "T": 1024**2}

EXTRA = {"unit": "", "choices": (), "low": None, "high": None, "above": None}  # of options that have no field


@dataclass
class ClusterSettings:
    """What one job of a stage asks for."""

    nodes: int = setting(1, "nodes of a training stage", unit="nodes", low=1)
    min_nodes: int = setting(0, "fewest nodes to train on when others are missing; 0: all", unit="nodes", low=0)
    gpus_per_node: int | None = setting(
        None, "GPUs of a node, with a process each; 0: no GPUs; unset: those that the nodes have", unit="GPUs", low=0
    )
    gpu_type: str | None = setting(None, "type of the GPUs, such as a100; unset: that of the nodes")
    gpu_option: str | None = setting(
        None, "how GPUs are asked for; unset: as Slurm's selection takes it", choices=(GPUS_PER_NODE, GRES)
    )
    nproc_per_node: int = setting(0, "processes a node without GPUs; 0: one", unit="processes", low=0)
    cpus_per_task: int | None = setting(
        None, "CPUs of each process, its loaders included; unset: its share of a node", unit="CPUs", low=1
    )
    mem_per_task: str | None = setting(None, "memory of each process, such as 32G; unset: the partition's default")
    partition: str | None = setting(None, "partition; unset: the cluster's default")
    account: str | None = setting(None, "account that is charged")
    qos: str | None = setting(None, "quality of service")
    constraint: str | None = setting(None, "features that nodes must have")
    exclude: str | None = setting(None, "nodes not to use, such as n[3-5]")
    time: str = setting("24:00:00", "time limit of a job, in Slurm's notation; it is requeued when it runs out")
    workers: int = setting(4, "workers of an array stage (attack, evaluate, certify)", unit="workers", low=1)
    array_parallelism: int = setting(256, "of these at a time", unit="workers", low=1)
    max_crashes: int = setting(3, "times a job is requeued after a crash", low=0)
    name: str | None = setting(None, "name of the jobs before -STAGE; unset: run.name")
    python: str | None = setting(
        None, "Python on the nodes, or a command such as apptainer exec --nv x.sif python; unset: the one that submits"
    )
    shared: bool = setting(False, "run.dir is on every node although its file system looks local")
    setup: list[str] = setting([], "shell lines at the start of every job, such as module load …")
    sbatch: dict[str, str] = field(default_factory=dict, metadata=EXTRA | {"help": "further options of sbatch"})
    srun: dict[str, str] = field(default_factory=dict, metadata=EXTRA | {"help": "further options of srun"})

    @property
    def processes(self) -> int:
        """Processes of a training stage on one node."""
        return self.gpus_per_node or self.nproc_per_node or 1

    @property
    def cpus(self) -> int:
        """CPUs of each process."""
        return self.cpus_per_task or CPUS

    @property
    def interpreter(self) -> list[str] | None:
        """The words that start Python on the nodes; None for the one that submits."""
        return shlex.split(self.python) if self.python else None

    @property
    def fewest(self) -> int:
        """The smallest number of nodes to train on."""
        return self.min_nodes or self.nodes

    @property
    def minutes(self) -> int:
        """The time limit in whole minutes, rounded up. Raises UserError for what Slurm would not read."""
        return minutes_of(self.time)


LEAVES = {name: leaf for name, leaf in leaves(ClusterSettings).items() if name not in (SBATCH, SRUN)}


@dataclass(frozen=True)
class Cluster:
    """The settings of a cluster, and what its file sets otherwise for some stages."""

    general: ClusterSettings
    by_stage: Mapping[str, ClusterSettings]

    def of(self, stage: str) -> ClusterSettings:
        """What a job of this stage asks for."""
        return self.by_stage.get(stage, self.general)


def minutes_of(text: str) -> int:
    """Minutes, rounded up, of Slurm's `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`."""
    match = TIME.fullmatch(text.strip())
    if not match:
        fail(f"--time {text}: expected minutes, H:M:S or D-H:M:S, such as 90, 12:00:00 or 2-00:00:00")
    a, b, c = (int(match[name] or 0) for name in "abc")
    hours = bool(match["days"] or match["c"])  # then the first number is hours, else minutes
    seconds = int(match["days"] or 0) * 86400 + (a * 3600 + b * 60 + c if hours else a * 60 + b)
    if seconds == 0:
        fail(f"--time {text}: must be above 0")
    return -(-seconds // 60)


def megabytes_of(text: str) -> int:
    """Megabytes of `512M`, `32G` or `1T`. Raises UserError for anything else."""
    match = MEMORY.fullmatch(text.strip())
    if not match:
        fail(f"--mem-per-task {text}: expected a number and M, G or T, such as 32G")
    return int(match[1]) * MEGABYTES[match[2].upper()]


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--cluster NAME`, an option for every setting above that is not a list, `--sbatch` and `--srun`."""
    names = ", ".join(cluster_names())
    parser.add_argument("--cluster", default="default", metavar="NAME", help=f"configs/cluster/NAME.yaml: {names}")
    for command in (SBATCH, SRUN):
        text = f"a further option of {command}, such as reservation=x; may be repeated"
        parser.add_argument(f"--{command}", action="append", metavar="KEY=VALUE", help=text)
    for item, hint in LEAVES.values():
        option, unit = f"--{item.name.replace('_', '-')}", item.metadata["unit"]
        text = item.metadata["help"] + (f" [{unit}]" if unit else "")
        if hint is bool:
            parser.add_argument(option, action="store_const", const="true", help=text)
        elif not str(hint).startswith("list"):
            parser.add_argument(option, metavar="VALUE", help=text.replace("%", "%%"))


def cluster_names() -> list[str]:
    """Names that `--cluster` takes."""
    return sorted(path.stem for path in (CONFIGS / "cluster").glob("*.yaml"))


def read_cluster(options: argparse.Namespace, stages: list[str]) -> Cluster:
    """The cluster that `--cluster` names, with the other options on top.

    stages: names that the file's `stages` may hold. Raises UserError naming the key and where it was written.
    """
    path = _cluster_file(options.cluster)
    tree = _read(path)
    shell = (SHELL, {**site_defaults(), SBATCH: extra_site_defaults()})
    extra = {name: options_of_words(name, getattr(options, name, None) or []) for name in (SBATCH, SRUN)}
    typed = {name: value for name in LEAVES if (value := getattr(options, name, None)) is not None}
    by_stage = tree.pop(STAGES, {})
    if not isinstance(by_stage, dict):
        fail(f"{path}: {STAGES} must hold a stage's name and its keys")
    for name, keys in by_stage.items():
        if name not in stages:
            fail(f"{STAGES}.{name} ({path}): unknown stage{nearest(name, stages)}")
        if not isinstance(keys, dict):
            fail(f"{STAGES}.{name} ({path}): must hold keys and values")
    general = _resolve([shell, (str(path), tree)], typed, extra)
    layers = {name: [shell, (str(path), tree), (str(path), keys)] for name, keys in by_stage.items()}
    return Cluster(general, {name: _resolve(layers[name], typed, extra) for name in layers})


def _cluster_file(name: str) -> Path:
    for path in (CONFIGS / "cluster" / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    names = cluster_names()
    fail(f"--cluster {name}: no such cluster{nearest(name, names)} (there are: {', '.join(names)})")


def _read(path: Path) -> dict[str, object]:
    """A file's keys, all scalars as text: YAML would take 12:00:00 for a number."""
    try:
        tree = yaml.load(read_bytes(path, MAX_FILE).decode(), yaml.BaseLoader) or {}
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        fail(f"{path}: cannot be read as YAML: {error}")
    if not isinstance(tree, dict):
        fail(f"{path}: must hold keys and values")
    return tree


def _resolve(
    layers: Sequence[tuple[str, Mapping[str, object]]], options: dict[str, str], extra: dict[str, dict[str, str]]
) -> ClusterSettings:
    """The settings of all layers. options: of the command line; extra: its `--sbatch` and `--srun`."""
    config = OmegaConf.structured(ClusterSettings)
    further: dict[str, dict[str, str]] = {SBATCH: {}, SRUN: {}}
    for source, tree in layers:
        for key, value in tree.items():
            if key in further:
                further[key] |= options_of(key, value, source)
            else:
                _apply(config, key, value, source)
    for key, value in options.items():
        _apply(config, key, value, f"argument --{key.replace('_', '-')}")
    settings: ClusterSettings = OmegaConf.to_object(config)  # type: ignore[assignment]
    commands = {name: without_unset(further[name] | extra[name]) for name in further}
    settings = replace(settings, sbatch=commands[SBATCH], srun=commands[SRUN])
    _check_together(settings)
    return settings


def _apply(config: Any, key: str, value: Any, source: str) -> None:
    single_line(f"a key ({source})", key)
    single_lines(f"{key} ({source})", value)
    unset = value in ("", "null") and "None" in str(LEAVES.get(key, (None, ""))[1])
    apply_setting(config, LEAVES, key, None if unset else value, source)


def _check_together(settings: ClusterSettings) -> None:
    if settings.fewest > settings.nodes:
        fail(f"--min-nodes {settings.min_nodes}: must be at most --nodes {settings.nodes}")
    if settings.gpus_per_node and settings.nproc_per_node not in (0, settings.gpus_per_node):
        fail(
            f"--nproc-per-node {settings.nproc_per_node}: there is a process a GPU, --gpus-per-node "
            f"{settings.gpus_per_node}; leave it out"
        )
    minutes_of(settings.time)
    if settings.mem_per_task:
        megabytes_of(settings.mem_per_task)
    check_memory(settings.sbatch, settings.mem_per_task)
    try:
        words = settings.interpreter
    except ValueError as error:
        fail(f"--python {settings.python}: cannot be read as words: {error}")
    if words == []:
        fail(f"--python {settings.python!r}: names no program")
