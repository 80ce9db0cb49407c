"""A sweep as an array on the cluster: a node is lost in its middle, and every point ends as in an undisturbed sweep."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.cluster import Cluster as Asked
from launch.cluster import ClusterSettings
from launch.scheduler import job_states
from launch.sweep_jobs import print_sweep, submit_sweep
from maep.ablation.points import Point
from maep.ablation.records import read_record
from maep.ablation.study import read_study
from tests.ablation.sweeps import QUICK, nested, write
from tests.cluster.cluster import Cluster
from tests.tiny import Problem

LONG = {**nested(QUICK), "pretrain.steps": 120, "pretrain.save_every": 10, "compute.claim_timeout": 6}
LIFE = 400.0


class Swept:
    """A sweep submitted as an array, with a cache of its own."""

    def __init__(self, cluster: Cluster, problem: Problem, place: Path) -> None:
        self.cluster, self.directory = cluster, place / "out"
        shutil.copytree(problem.cache, place / "cache")
        shutil.rmtree(place / "cache" / "points", ignore_errors=True)
        axes = {"objective.distance": ["l1", "mse", "smooth_l1"]}
        file = write(place / "sweep.yaml", grid=axes, paper=None, scales={"cpu": {"base": "digits", "set": LONG}})
        words = [f"run.dir={self.directory}", f"run.cache={place / 'cache'}"]
        options = argparse.Namespace(cfg=str(file), scale=None, allow_code_change=False)
        [self.record] = submit_sweep(options, words, Asked(ClusterSettings(time="30"), {}))
        self.points = read_study(self.directory)[0].points

    def running(self) -> list[Point]:
        """Points in the middle of their training."""
        paths = [(point, point.directory / "metrics.jsonl") for point in self.points]
        return [point for point, path in paths if path.is_file() and 20 < len(path.read_text().splitlines()) < 90]

    def finish(self) -> dict[str, Any]:
        """Wait for the end of all workers, each of which must be a good one; returns ablation.json."""

        def ended() -> bool:
            return all(state.state == "COMPLETED" for state in job_states([self.record.job])[self.record.job])

        self.cluster.wait_for(ended, LIFE, "the end of the array")
        return json.loads((self.directory / "ablation.json").read_text())

    def weights(self) -> list[bytes]:
        """The purifiers, in the order of the points."""
        return [(point.directory / "purifier" / "model.safetensors").read_bytes() for point in self.points]


@pytest.mark.slow
def test_node_loss_in_a_sweep(
    cluster: Cluster,
    problem: Problem,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three points on as many nodes, one of which loses power: each point is there once, with the same bits."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    calm = Swept(cluster, problem, tmp_path / "calm")
    calm.finish()
    swept = Swept(cluster, problem, tmp_path / "swept")
    cluster.wait_for(swept.running, LIFE, "a point in its training")
    lost = next(state.nodes for state in job_states([swept.record.job])[swept.record.job] if state.nodes)
    cluster.nodes[lost].power_off()
    cluster.set_state(lost, "down")
    summary = swept.finish()
    assert [point["state"] for point in summary["points"]] == ["finished"] * 3
    assert summary["attacked"]["test"]["sets"] == 1
    assert swept.weights() == calm.weights()
    assert [read_record(point).state for point in swept.points] == ["finished"] * 3
    print_sweep(swept.directory)
    assert "3 finished" in " ".join(capsys.readouterr().out.split())
