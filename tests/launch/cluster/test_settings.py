"""Cluster settings: layers, notations, and mistakes that name where they were written."""

import argparse
from pathlib import Path

import pytest

from maep.launch.cluster.jobs import KINDS
from maep.launch.cluster.settings import Cluster, add_options, cluster_names, megabytes_of, minutes_of, read_cluster
from maep.runtime.errors import UserError


def read(*words: str) -> Cluster:
    """The cluster that these options give."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser)
    return read_cluster(parser.parse_args(words), list(KINDS))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("0:30", 1), ("12:00:00", 720), ("0:00:01", 1), ("2-12", 3600), ("1-2:3", 1563), ("1-0:0:1", 1441)],
)
def test_time_is_read_as_slurm_reads_it(text: str, minutes: int) -> None:
    """Each of Slurm's notations gives its minutes, rounded up."""
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "abc", "1:2:3:4", "-5", "0", "0:0:0"])
def test_other_times_are_refused(text: str) -> None:
    """What Slurm would not read, or takes for endless, is told with the notation."""
    with pytest.raises(UserError, match="--time"):
        minutes_of(text)


def test_memory_units() -> None:
    """Megabytes of each unit; a bare number is refused."""
    assert [megabytes_of(text) for text in ("512M", "2G", "1tb")] == [512, 2048, 1024**2]
    with pytest.raises(UserError, match="32G"):
        megabytes_of("32")


def test_options_win_over_a_stage_which_wins_over_the_file(tmp_path: Path) -> None:
    """The layers in their order; a time without quotes is not taken for a number."""
    file = tmp_path / "mine.yaml"
    file.write_text("nodes: 3\ntime: 12:00:00\npartition: a\nstages:\n  shards: {partition: b, time: 01:00:00}\n")
    cluster = read("--cluster", str(file), "--nodes", "5")
    assert (cluster.of("pretrain").nodes, cluster.of("pretrain").minutes) == (5, 720)
    assert (cluster.of("shards").partition, cluster.of("shards").minutes) == ("b", 60)
    assert read("--cluster", str(file), "--partition", "c").of("shards").partition == "c"
    assert read("--cluster", str(file), "--partition=").of("pretrain").partition is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nods: 3", r"nods \(.*mine.yaml\): unknown key; did you mean nodes\?"),
        ("nodes: many", "nodes='?many'?"),
        ("nodes: 0", "at least 1"),
        ("stages: {pretrian: {nodes: 2}}", "did you mean pretrain"),
        ("nodes: [", "YAML"),
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path: Path, text: str, told: str) -> None:
    """An unknown key, a wrong type, a value out of range, an unknown stage, and no YAML at all."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=told):
        read("--cluster", str(file))


def test_values_that_do_not_fit_together() -> None:
    """More nodes at least than at most; another number of processes than of GPUs."""
    with pytest.raises(UserError, match="--min-nodes 5: must be at most --nodes 4"):
        read("--nodes", "4", "--min-nodes", "5")
    with pytest.raises(UserError, match="a process a GPU"):
        read("--gpus-per-node", "8", "--nproc-per-node", "4")


def test_every_file_in_configs_is_read() -> None:
    """The committed examples are valid, and are no names for cfg=."""
    from maep.config.load import config_names

    assert {"default", "gpu"} <= set(cluster_names())
    for name in cluster_names():
        read("--cluster", name)
    assert not [name for name in config_names() if name.startswith("cluster")]
