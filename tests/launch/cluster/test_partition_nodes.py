"""What a job asks for where nobody said it: what the partition's nodes have, by scripted answers of Slurm."""

import argparse
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from maep.launch.cluster import partition_nodes
from maep.launch.cluster.gpu_request import gpu_parameters, gpus_of
from maep.launch.cluster.jobs import KINDS, job_of
from maep.launch.cluster.partition_nodes import NodeKind, Partition, fit_to_nodes, fitted, read_partition
from maep.launch.cluster.settings import Cluster, ClusterSettings, add_options, read_cluster
from maep.runtime.errors import UserError

A100 = NodeKind(8, "a100", 96, 1_000_000)
V100 = NodeKind(4, "v100", 40, 384_000)
CPU = NodeKind(0, "", 64, 256_000)
NODE = (
    "NodeName={name} CPUAlloc=0 CPUEfctv={cpus} CPUTot=128 AvailableFeatures={feature} ActiveFeatures={feature} "
    "Gres={gres} NodeAddr={name} OS=Linux 6.1 #1 SMP RealMemory=500000 MemSpecLimit=1000 State=IDLE Partitions={names} "
    "Weight=1"
)
CONFIG = "Configuration data as of today\nPreemptMode = {mode}\nPreemptType = {kind}\nSelectType = {select}\n"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Scripts what scontrol says of one cluster: two nodes with GPUs and one without."""

    def script(mode: str = "CANCEL", kind: str = "preempt/partition_prio", select: str = "select/cons_tres") -> None:
        nodes = [
            NODE.format(name="g1", cpus=124, feature="ib,big", gres="gpu:a100:4(S:0-1)", names="main,gpu"),
            NODE.format(name="g2", cpus=124, feature="ib", gres="gpu:a100:4(S:0-1),shard:8", names="main,gpu"),
            NODE.format(name="c1", cpus=128, feature="cpu", gres="(null)", names="main"),
        ]
        said = {
            ("show", "config"): CONFIG.format(mode="REQUEUE", kind=kind, select=select),
            ("--oneliner", "show", "node"): "\n".join(nodes),
            ("--oneliner", "show", "partition", "gpu"): f"PartitionName=gpu MaxCPUsPerNode=100 PreemptMode={mode}",
            ("--oneliner", "show", "partition", "main"): "PartitionName=main MaxCPUsPerNode=UNLIMITED",
        }
        monkeypatch.setattr(partition_nodes, "scontrol", lambda *words: said[words])
        monkeypatch.setattr(partition_nodes, "default_partition", lambda: "main")

    return script


@pytest.mark.parametrize(
    ("gres", "counts"),
    [
        ("gpu:a100:4(S:0-1)", {"a100": 4}), ("gpu:4", {"": 4}), ("gpu", {"": 1}), ("(null)", {}), ("", {}),
        ("gpu:tesla:2,gpu:kepler:1,bandwidth:lustre:4G", {"tesla": 2, "kepler": 1}), ("shard:8,mps:400", {}),
        ("gpu:1g.5gb:7(S:0,1),nvme:1", {"1g.5gb": 7}), ("gpu:h100_nvl:2(IDX:0-1)", {"h100_nvl": 2}),
    ],
)  # fmt: skip
def test_generic_resources(gres: str, counts: dict[str, int]) -> None:
    """GPUs by type, whatever else a node has, and wherever they are plugged in."""
    assert gpus_of(gres) == counts


def test_partition_is_read_from_slurm(answers: Callable[..., None]) -> None:
    """CPUs without those that Slurm keeps and within the partition's limit, memory, GPUs; what preemption does."""
    answers()
    gpu = read_partition("gpu")
    assert gpu.kinds == Counter({NodeKind(4, "a100", 100, 499_000): 2})
    assert gpu.cancels
    main = read_partition(None)
    assert main.kinds == Counter({NodeKind(4, "a100", 124, 499_000): 2, NodeKind(0, "", 128, 499_000): 1})
    assert not main.cancels
    assert sum(read_partition("main", "cpu").kinds.values()) == 1
    answers(kind="preempt/none", select="select/linear")
    assert (read_partition("gpu").cancels, read_partition("gpu").gpu_option) == (False, "gres")


@pytest.mark.parametrize(
    ("said", "cancels"),
    [("CANCEL\n", True), ("requeue\n", False), ("cluster\n", False), ("", False), ("GANG,CANCEL", True)],
)
def test_a_quality_of_service_says_what_preemption_does(
    answers: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, cancels: bool
) -> None:
    """Where Slurm preempts by it; the partition's own mode means nothing then, and without an answer the cluster's."""
    answers(kind="preempt/qos")
    assert not read_partition("gpu").cancels
    program = tmp_path / "sacctmgr"
    program.write_text(f'#!/bin/sh\n[ "$5" = scavenger ] && printf "{said}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert read_partition("gpu", qos="scavenger").cancels == cancels
    assert not read_partition("gpu", qos="other").cancels
    answers()
    assert read_partition("gpu", qos="other").cancels, "by the partition, where Slurm preempts by that"


@pytest.mark.parametrize(
    ("asked", "kinds", "gpus", "gpu_type", "cpus"),
    [
        ({}, {A100: 4}, 8, "a100", 12),
        ({"nodes": 4}, {A100: 2, V100: 10, CPU: 40}, 4, "v100", 10),  # too few of the best
        ({"nodes": 12}, {A100: 2, V100: 10, CPU: 40}, 4, None, 10),  # what all of them have
        ({"nodes": 20}, {A100: 2, V100: 10, CPU: 40}, 0, None, 64),  # too few with GPUs
        ({"nodes": 8, "min_nodes": 2}, {A100: 2, CPU: 40}, 8, "a100", 12),
        ({"gpu_type": "v100"}, {A100: 2, V100: 10}, 4, "v100", 10),
        ({"gpus_per_node": 2}, {A100: 2}, 2, "a100", 12),  # a GPU's share of the node, not all of it
        ({"gpus_per_node": 0}, {A100: 2}, 0, None, 96),
        ({"nproc_per_node": 4}, {A100: 2}, 4, "a100", 12),
        ({"nproc_per_node": 16}, {A100: 2}, 0, None, 6),
        ({"cpus_per_task": 3}, {A100: 2}, 8, "a100", 3),
        ({"sbatch": {"gres": "gpu:a100:2"}}, {A100: 2}, 2, None, 12),
        ({}, {CPU: 3}, 0, None, 64),
    ],
)
def test_what_is_open_is_taken_from_the_nodes(
    asked: dict[str, object], kinds: dict[NodeKind, int], gpus: int, gpu_type: str | None, cpus: int
) -> None:
    """GPUs of one type where enough nodes have them; the CPUs of a node shared out; what was said stays."""
    suited = fitted(ClusterSettings(**asked), Partition("p", Counter(kinds)))  # type: ignore[arg-type]
    assert (suited.gpus_per_node, suited.gpu_type, suited.cpus) == (gpus, gpu_type, cpus)


def test_each_stage_by_its_own_partition(answers: Callable[..., None]) -> None:
    """A worker without GPUs does not take a whole node; what nodes have and that jobs are cancelled is said once."""
    answers()
    lines: list[str] = []
    general = ClusterSettings(partition="gpu", nodes=2)
    cpu = ClusterSettings(partition="main", constraint="cpu")
    cluster = fit_to_nodes(Cluster(general, {"shards": cpu}), lines.append)
    train, attack, shards = (job_of(stage, cluster, []) for stage in ("pretrain", "attack", "shards"))
    assert (train.tasks, train.gpus, train.settings.cpus) == (4, 4, 25)
    assert (attack.tasks, attack.gpus, attack.settings.cpus) == (1, 1, 25)
    assert (shards.gpus, shards.settings.cpus) == (0, partition_nodes.WORKER_CPUS)
    assert [line.split(":")[0] for line in lines if "nodes of" in line] == ["partition gpu", "partition main"]
    assert sum("PreemptMode=CANCEL" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"gpus_per_node": 9}, "--gpus-per-node: 9 GPUs on a node are asked for, and a node of partition p has 8"),
        ({"gpu_type": "h100"}, "--gpu-type h100: partition p has a100"),
        ({"cpus_per_task": 97, "gpus_per_node": 1}, "--cpus-per-task: 97 CPUs"),
        ({"mem_per_task": "2T", "gpus_per_node": 1}, "--mem-per-task: 2097152 MB"),
    ],
)
def test_more_than_a_node_has_is_refused(asked: dict[str, object], told: str) -> None:
    """One line with the option, what is asked for, and what there is."""
    with pytest.raises(UserError, match=told):
        fitted(ClusterSettings(**asked), Partition("p", Counter({A100: 2})))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpus", "kind", "option", "extra", "flag", "gres"),
    [
        (8, "a100", "gpus-per-node", {}, "a100:8", None),
        (1, None, "gpus-per-node", {"gres": "nvme:1"}, "1", "nvme:1"),
        (4, "a100", "gres", {}, None, "gpu:a100:4"),
        (1, None, "gpus-per-node", {"gres": "gpu:h100:4,nvme:1"}, None, "gpu:h100:1,nvme:1"),
        (0, "a100", "gpus-per-node", {"gres": "gpu:h100:4"}, None, None),
    ],
)
def test_gpus_as_the_site_wants_them(
    gpus: int, kind: str | None, option: str, extra: dict[str, str], flag: str | None, gres: str | None
) -> None:
    """By --gpus-per-node or --gres, with the type; a stage of one GPU asks for one, a stage of none for none."""
    assert gpu_parameters(gpus, kind, option, extra) == {"gpus_per_node": flag, "gres": gres}


def test_the_default_cluster_leaves_it_to_the_nodes() -> None:
    """Without --cluster neither GPUs nor CPUs are set before Slurm is asked."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    general = read_cluster(parser.parse_args([]), list(KINDS)).general
    assert (general.gpus_per_node, general.cpus_per_task) == (None, None)
