"""A small real sweep on the digits: two objectives and a learning rate that cannot work."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.tiny import ROOT, TINY, Problem, environment

QUICK = [
    *TINY, "pretrain.steps=4", "pretrain.mask_until=1", "finetune.method=none", "pretrain.save_every=4",
    "evaluation.images=40", "evaluation.chunk_images=20", "evaluation.batch_size=20",
    "evaluation.threat_models=[oblivious]", "evaluation.attacks=[pgd-2]", "evaluation.figure_images=1",
]  # fmt: skip


def nested(words: list[str]) -> dict[str, Any]:
    """`key=value` words as YAML settings."""
    return {key: yaml.safe_load(text) for key, _, text in (word.partition("=") for word in words)}


def tree(**changes: Any) -> dict[str, Any]:
    """A valid sweep file's content, with changes."""
    return {
        "table": "Table 0",
        "title": "Distances on digits",
        "scales": {"cpu": {"base": "digits", "set": nested(QUICK), "note": "Tiny."}},
        "grid": {"objective.distance": ["l1", "mse"]},
        "readings": {"": {"attack": "pgd-2", "eps": "32/255"}},
        "paper": {"l1": [92.30, 88.73], "mse": [93.59, 69.72]},
        **changes,
    }


def write(path: Path, **changes: Any) -> Path:
    """That file."""
    path.write_text(yaml.safe_dump(tree(**changes), sort_keys=False))
    return path


def command(problem: Problem, sweep: Path, directory: Path, *more: str) -> list[str]:
    """The real command on it, with the tiny problem's cache unless `more` names another."""
    words = [f"cfg={sweep}", f"run.dir={directory}", f"run.cache={problem.cache}"]
    return [sys.executable, "launch/local.py", *words, *more]


def run(
    problem: Problem, sweep: Path, directory: Path, *more: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(problem, sweep, directory, *more), cwd=ROOT, capture_output=True, text=True, check=False,
        env=environment(), timeout=timeout,
    )  # fmt: skip
