"""A run on the cluster under test: submitted as `launch/slurm.py` does it, watched, and compared bit by bit."""

import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.launch.cluster.job_records import JobRecord, stage_folder
from maep.launch.cluster.settings import Cluster as Asked
from maep.launch.cluster.settings import ClusterSettings
from maep.launch.cluster.slurm_client import job_states
from maep.launch.submission.submit import submit
from tests.cluster.cluster import Cluster, Job
from tests.tiny import Problem

SAVE_EVERY = 10
TRAINING = ["pretrain.steps=80", f"pretrain.save_every={SAVE_EVERY}", "compute.log_samples=true", "compute.grace=20"]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
ATTEMPT = 180.0  # seconds that a start, its work and its end may take on a busy machine


@dataclass
class ClusterRun:
    """One run directory and the newest job of it. `submit` first."""

    cluster: Cluster
    problem: Problem
    directory: Path
    more: list[str] = field(default_factory=list)
    record: JobRecord | None = None

    def submit(self, nodes: int, stage: str = "pretrain", *, minutes: int = 30, **asked: Any) -> "ClusterRun":
        """Submit one stage: a process a node, or `workers=…` of them for an array."""
        wanted = Asked(ClusterSettings(nodes=nodes, time=str(minutes), **asked), {})
        [self.record] = submit(self.settings, wanted, stage, allow_code_change=False)
        return self

    @property
    def settings(self) -> Settings:
        """What its jobs are given."""
        return load_settings("digits", self.problem.arguments(self.directory, *TRAINING, *self.more)[1:])

    @property
    def job(self) -> str:
        """The id of the newest job."""
        assert self.record
        return self.record.job

    def state(self) -> Job:
        """What Slurm says of it."""
        return self.cluster.job(self.job)

    def nodes(self) -> list[str]:
        """The nodes it runs on, that of rank 0 first."""
        return self.cluster.run(["scontrol", "show", "hostnames", self.state().nodes]).stdout.split()

    def step(self) -> int:
        """The newest step in metrics.jsonl, 0 before the first."""
        lines = read_lines(self.directory / "metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    def reach(self, step: int) -> None:
        """Wait until the run has done `step` steps; returns within milliseconds of it."""
        while self._below(step):
            assert self.state().state not in ENDED, f"job {self.job} ended before step {step}\n{self.log()}"

    def _below(self, step: int) -> bool:
        """Whether the run has done fewer steps, also after a second."""
        deadline = time.monotonic() + 1
        while self.step() < step:
            if time.monotonic() > deadline:
                return True
            time.sleep(0.005)
        return False

    def advance(self, steps: int) -> None:
        """Wait until the present attempt has done so many steps more."""
        path, now = self.directory / "metrics.jsonl", time.time()
        told = f"a step of job {self.job}"
        self.cluster.wait_for(lambda: path.is_file() and path.stat().st_mtime > now, ATTEMPT, told)
        self.reach(self.step() + steps)

    def requeued(self, requeues: int = 1, *, frozen: str = "") -> int:
        """Wait for so many requeues in all, and for the end of the attempt before; returns the step that it reached.

        frozen: a node on which its processes stay, stopped.
        """
        self.cluster.wait_for(
            lambda: self.state().restarts >= requeues, ATTEMPT, f"requeue {requeues} of job {self.job}"
        )
        awake = [node for name, node in self.cluster.nodes.items() if name != frozen]
        self.cluster.wait_for(
            lambda: not any(node.ranks() for node in awake), ATTEMPT, f"the end of job {self.job}'s attempt"
        )
        return self.step()

    def finish(self) -> "ClusterRun":
        """Wait for the job's end, which must be a good one."""
        state = self.cluster.wait_for(
            lambda: self.state().state in ENDED and self.state().state, 3 * ATTEMPT, f"the end of job {self.job}"
        )
        assert state == "COMPLETED", f"job {self.job}: {state}\n{self.log()}"
        return self

    def finish_array(self) -> None:
        """Wait for the end of every worker; all must have ended well."""

        def states() -> list[str]:
            return [state.state for state in job_states([self.job])[self.job]]

        self.cluster.wait_for(
            lambda: all(state in ENDED for state in states()), 3 * ATTEMPT, f"the end of job {self.job}"
        )
        assert set(states()) == {"COMPLETED"}, self.cluster.describe()

    def log(self, rank: int = 0) -> str:
        """The output of one rank, of all its attempts."""
        assert self.record
        path = self.record.log(stage_folder(self.directory, self.record.stage), rank)
        return path.read_text() if path.is_file() else ""

    def resumed_from(self) -> list[int]:
        """The step that each later attempt went on from."""
        return [int(step) for step in re.findall(r"goes on from step (\d+)", self.log())]

    def weights(self) -> bytes:
        """The trained purifier."""
        return (self.directory / "purifier" / "model.safetensors").read_bytes()

    def losses(self) -> list[float]:
        """The loss of every step, in order."""
        lines = read_lines(self.directory / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["loss"] for line in lines]

    def samples(self) -> list[tuple[int, int, int]]:
        """(step, epoch, index) of every sample consumed, in the order of the global batches."""
        logs = [read_lines(path) for path in sorted((self.directory / "samples").glob("rank-*.jsonl"))]
        found = [(line["step"], line["epoch"], line["index"]) for log in logs for line in log]
        return sorted(found, key=lambda sample: sample[0])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, without a last line that is still being written."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def assert_same_samples(run: ClusterRun, undisturbed: ClusterRun) -> None:
    """The same samples in the same order, each once an epoch."""
    assert run.samples() == undisturbed.samples()
    assert set(Counter((epoch, index) for _, epoch, index in run.samples()).values()) == {1}


def assert_same(run: ClusterRun, undisturbed: ClusterRun) -> None:
    """The same samples in the same order, the same losses, and the same weights, bit by bit."""
    assert_same_samples(run, undisturbed)
    assert run.losses() == undisturbed.losses()
    assert run.weights() == undisturbed.weights()
