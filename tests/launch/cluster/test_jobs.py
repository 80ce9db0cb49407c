"""The job graph: sizes, dependencies, hours."""

import argparse
from collections import Counter
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.launch.cluster.gpu_request import gpu_parameters
from maep.launch.cluster.jobs import ARRAY, KINDS, check_batch, job_graph, job_of
from maep.launch.cluster.partition_nodes import NodeKind, Partition, fitted
from maep.launch.cluster.settings import Cluster, add_options, read_cluster
from maep.launch.submission.submit import plan_jobs, real_needs
from maep.pipeline.stages import STAGES
from maep.runtime.errors import UserError


def cluster(*words: str) -> Cluster:
    """The default cluster with some options."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_cluster(parser.parse_args(words), list(KINDS))


def test_each_stage_waits_for_those_it_needs() -> None:
    """The whole pipeline, in order, with the dependencies of its stages."""
    jobs = job_graph(list(KINDS), cluster(), real_needs(load_settings("digits")))
    assert {job.stage: set(job.needs) for job in jobs} == {
        "shards": set(), "classifier": {"shards"}, "attack": {"shards", "classifier"}, "pretrain": {"shards", "attack"},
        "finetune": {"pretrain"}, "evaluate": {"shards", "classifier", "pretrain", "finetune"}, "report": {"evaluate"},
        "certify": {"shards", "classifier", "pretrain", "finetune"},
    }  # fmt: skip


def test_a_report_of_certificates_waits_for_them() -> None:
    """Where a noise is named; and they are shared by an array."""
    settings = load_settings("digits", ["certify.sigma=[0.25]"])
    jobs = {job.stage: job for job in job_graph(list(KINDS), cluster("--workers", "3"), real_needs(settings))}
    assert set(jobs["report"].needs) == {"evaluate", "certify"}
    assert (jobs["certify"].kind, jobs["certify"].workers) == ("array", 3)


def test_stages_without_work_are_bridged() -> None:
    """With given weights and no finetuning, nobody waits for those stages, but for what they need."""
    settings = load_settings("digits", ["classifier.weights=w.safetensors", "finetune.method=none"])
    needs = real_needs(settings)
    assert needs["attack"] == ["shards"]
    assert needs["evaluate"] == ["shards", "pretrain"]


def test_finished_stages_are_not_waited_for() -> None:
    """Only jobs of this submission are dependencies."""
    jobs = job_graph(["finetune", "evaluate"], cluster(), real_needs(load_settings("digits")))
    assert [job.needs for job in jobs] == [(), ("finetune",)]


def test_stages_under_way_are_waited_for() -> None:
    """A stage submitted alone waits for jobs of an earlier submission, and for those it needs only."""
    needs = real_needs(load_settings("digits"))
    (job,) = job_graph(["evaluate"], cluster(), needs, ["attack", "pretrain", "report"])
    assert job.needs == ("pretrain",)


def test_plan_passes_on_what_is_under_way(tmp_path: Path) -> None:
    """The submission's own plan keeps the jobs that a stage has to wait for, and does not wait for its own array."""
    settings = load_settings("digits", [f"run.dir={tmp_path}/run", f"run.cache={tmp_path}/cache"])
    live = {stage: [str(i)] for i, stage in enumerate(KINDS)}
    plan = plan_jobs(settings, cluster(), "evaluate", live)
    assert [job.needs for job in plan.jobs] == [("shards", "classifier", "pretrain", "finetune")]
    assert "evaluate" not in plan.waits
    assert plan.waits["pretrain"] == live["pretrain"]


def test_sizes() -> None:
    """Training takes the nodes with a process a GPU; workers one GPU each; shards none."""
    asked = cluster("--nodes", "4", "--min-nodes", "2", "--gpus-per-node", "8", "--workers", "16", "--time", "90")
    train, attack, shards = (job_of(stage, asked, []) for stage in ("pretrain", "attack", "shards"))
    assert (train.nodes, train.tasks, train.gpus, train.is_elastic) == ((2, 4), 8, 8, True)
    assert (attack.nodes, attack.tasks, attack.gpus, attack.workers) == ((1, 1), 1, 1, 16)
    assert (shards.gpus, shards.workers) == (0, 1)
    assert (train.node_hours, train.gpu_hours) == (6.0, 48.0)
    assert (attack.node_hours, attack.gpu_hours) == (24.0, 24.0)


@pytest.mark.parametrize(("words", "gpus", "hours"), [((), 8, 64.0), (("--nproc-per-node", "4"), 4, 32.0)])
def test_a_job_whose_gpus_come_from_its_nodes(words: tuple[str, ...], gpus: int, hours: float) -> None:
    """A training takes those of each node, or as many as it has processes; a worker one. So Slurm is asked."""
    nodes = Partition("p", Counter({NodeKind(8, "a100", 96, 2**20): 4}))
    asked = cluster("--nodes", "4", "--time", "120", *words).general
    suited = Cluster(fitted(asked, nodes), {"attack": fitted(asked, nodes, is_worker=True)})
    train, attack = (job_of(stage, suited, []) for stage in ("pretrain", "attack"))
    assert (train.tasks, train.gpus, train.gpu_hours) == (gpus, gpus, hours)
    assert (attack.tasks, attack.gpus) == (1, 1)
    requests = [gpu_parameters(job.gpus, job.settings.gpu_type, "gpus-per-node", {}) for job in (train, attack)]
    assert [request["gpus_per_node"] for request in requests] == [f"a100:{gpus}", "a100:1"]


def test_more_processes_than_images_are_refused() -> None:
    """The batch must leave an image to every process."""
    settings = load_settings("digits")
    check_batch(settings, [job_of("pretrain", cluster("--nodes", "64"), [])])
    with pytest.raises(UserError, match="pretrain.batch_size=64"):
        check_batch(settings, [job_of("pretrain", cluster("--nodes", "65"), [])])


def test_every_stage_has_a_kind_of_job() -> None:
    """In the stages' order; an array where the pipeline shares a stage's work out, and nowhere else."""
    assert list(KINDS) == list(STAGES)
    assert {name for name, kind in KINDS.items() if kind == ARRAY} == {n for n, stage in STAGES.items() if stage.share}
