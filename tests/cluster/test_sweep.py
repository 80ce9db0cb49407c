"""A sweep as an array on the cluster, disturbed in its middle: every point ends as in a sweep that nobody disturbed."""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from maep.ablation.running.pretrained import by_pretraining
from maep.ablation.study import read_study
from maep.config.load import load_settings
from maep.launch.cluster.settings import Cluster as Asked
from maep.launch.cluster.settings import ClusterSettings
from maep.launch.monitor.sweep_status import print_sweep
from maep.launch.submission.submit import submit
from maep.launch.submission.sweep_jobs import submit_sweep
from maep.runtime.errors import UserError
from tests.ablation.sweeps import QUICK, nested, run, write
from tests.cluster.cluster import Cluster
from tests.cluster.runs import ATTEMPT, ENDED
from tests.cluster.test_worker_faults import without_time
from tests.tiny import Problem

STEPS = 80
LONG = {**nested(QUICK), "pretrain.steps": STEPS, "pretrain.save_every": 10, "compute.claim_timeout": 6}
GRID = {"objective.distance": ["l1", "mse", "smooth_l1"], "pretrain.lr": [5e-4, 1e-3, 2e-3, 4e-3]}
POINTS, WORKERS = 12, 4


def sweep_file(problem: Problem, place: Path) -> list[str]:
    """A sweep of 12 points with a cache of its own, in which nothing has been attacked: its file, then words."""
    place.mkdir()
    shutil.copytree(
        problem.cache, place / "cache", ignore=shutil.ignore_patterns("points", "adversarial", "attacked", "pretrained")
    )
    file = write(place / "sweep.yaml", grid=GRID, paper=None, scales={"cpu": {"base": "digits", "set": LONG}})
    return [str(file), f"run.dir={place / 'out'}", f"run.cache={place / 'cache'}"]


def test_jobs_that_could_not_read_their_weights_are_not_submitted(
    cluster: Cluster, problem: Problem, tmp_path: Path
) -> None:
    """A sweep's and a run's: told at once, and not by every worker when its turn has come."""
    file, *words = sweep_file(problem, tmp_path / "sweep")
    options = argparse.Namespace(cfg=file, scale=None, allow_code_change=False)
    missing, asked = "classifier.weights=none.pt", Asked(ClusterSettings(time="60"), {})
    told = rf"^{missing}: no such file.*; nothing was submitted$"
    with pytest.raises(UserError, match=told):
        submit_sweep(options, [*words, missing], asked)
    with pytest.raises(UserError, match=told):
        submit(load_settings("digits", [*words, missing]), asked, "all", allow_code_change=False)
    assert not cluster.run(["squeue", "--noheader"]).stdout
    assert not (tmp_path / "sweep" / "out").exists()


class Swept:
    """That sweep submitted as an array, a worker a node."""

    def __init__(self, cluster: Cluster, problem: Problem, place: Path) -> None:
        file, *words = sweep_file(problem, place)
        self.cluster, self.directory = cluster, place / "out"
        options = argparse.Namespace(cfg=file, scale=None, allow_code_change=False)
        asked = ClusterSettings(time="60", cpus_per_task=4, array_parallelism=WORKERS)
        [self.record] = submit_sweep(options, words, Asked(asked, {}))
        self.points = read_study(self.directory)[0].points

    def in_training(self) -> tuple[str, str] | None:
        """(job, node) of a worker that is in the middle of a training."""
        for key, [point] in by_pretraining(self.points).items():
            path = point.directory / "metrics.jsonl"
            claims = sorted((point.directory.parent / ".claims").glob(f"{key}.claim-*"))
            if claims and path.is_file() and 5 < len(path.read_text().splitlines()) < STEPS - 20:
                job = re.findall(r"job (\d+)", claims[-1].read_text())[0]
                return job, self.cluster.job(job).nodes
        return None

    def finished(self) -> int:
        """How many points have their report."""
        return sum((point.directory / "report.json").is_file() for point in self.points)

    def disturb(self, finished: int, *, power: bool) -> None:
        """After so many points take away the node of one in training, for a moment or, by its power, for good."""
        self.cluster.wait_for(lambda: self.finished() >= finished, ATTEMPT, f"{finished} finished points")
        job, node = self.cluster.wait_for(self.in_training, ATTEMPT, "a point in its training")
        if power:
            self.cluster.nodes[node].power_off()
            self.cluster.set_state(node, "down")
        else:
            script = ["--output=/dev/null", "--wrap=sleep 1"]
            self.cluster.run(["sbatch", "--partition=high", f"--nodelist={node}", "--exclusive", *script])
        self.cluster.wait_for(lambda: self.cluster.job(job).restarts, ATTEMPT, f"the requeue of job {job}")

    def finish(self) -> dict[str, Any]:
        """Wait for the end of all workers, each of which must be a good one; returns ablation.json."""
        tasks = [f"{self.record.job}_{number}" for number in range(POINTS)]

        def ended() -> bool:
            return all(self.cluster.job(task).state in ENDED for task in tasks)

        self.cluster.wait_for(ended, 5 * ATTEMPT, "the end of the array", every=2)
        assert {self.cluster.job(task).state for task in tasks} == {"COMPLETED"}, self.cluster.describe()
        assert sum(self.cluster.job(task).restarts for task in tasks) >= 3
        return json.loads((self.directory / "ablation.json").read_text())


def results(points: list[dict[str, Any]]) -> list[tuple[str, bytes, dict[str, Any]]]:
    """Identity, weights and records of every point, without how long they took."""
    found = []
    for point in points:
        directory = Path(point["directory"])
        records = sorted((directory / "evaluation").rglob("chunk-*.json"))
        told = {str(path.relative_to(directory)): without_time(json.loads(path.read_text())) for path in records}
        found.append((point["identity"], (directory / "purifier" / "model.safetensors").read_bytes(), told))
    return found


@pytest.mark.slow
def test_two_preemptions_and_a_node_loss(
    cluster: Cluster, problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve points on four nodes: each is there once, with the bits of an undisturbed sweep; shared work is shared."""
    swept = Swept(cluster, problem, tmp_path / "swept")
    swept.disturb(2, power=False)
    swept.disturb(4, power=True)
    swept.disturb(5, power=False)
    summary = swept.finish()
    assert [point["state"] for point in summary["points"]] == ["finished"] * POINTS
    folders = [path for path in (tmp_path / "swept" / "cache" / "points").iterdir() if not path.name.startswith(".")]
    assert {path.name for path in folders} == {point["identity"][:16] for point in summary["points"]}
    assert len(folders) == POINTS
    assert (summary["attacked"]["training"]["sets"], summary["attacked"]["test"]["sets"]) == (1, 1)
    print_sweep(swept.directory)
    assert f"{POINTS} finished" in " ".join(capsys.readouterr().out.split())
    file, *words = sweep_file(problem, tmp_path / "calm")
    done = run(problem, Path(file), tmp_path / "calm" / "out", *words, timeout=5 * ATTEMPT)
    assert done.returncode == 0, done.stderr
    calm = json.loads((tmp_path / "calm" / "out" / "ablation.json").read_text())
    assert results(summary["points"]) == results(calm["points"])
    assert summary["cells"] == calm["cells"]
