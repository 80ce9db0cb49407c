"""A tiny real training problem: digits shards, a briefly trained classifier, PGD pairs, and a small model."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "data.train_limit=120", "data.test_limit=60", "data.shard_images=32", "data.workers=0",
    "classifier.epochs=1", "attack.steps=2", "compute.threads=1", "compute.compile=false", "compute.precision=fp32",
    "model.patch_size=4", "model.encoder_width=32", "model.encoder_depth=2", "model.encoder_heads=2",
    "model.decoder_width=32", "model.decoder_depth=1", "model.decoder_heads=2",
    "model.stem_width=0", "model.stem_depth=0", "model.refine_width=8", "model.refine_depth=1",
    "pretrain.batch_size=16", "pretrain.steps=30", "pretrain.save_every=5", "pretrain.log_every=1",
    "pretrain.mask_ratio=0.5", "pretrain.mask_until=0.8", "pretrain.ema=0.9", "pretrain.accumulation=1",
    "finetune.batch_size=16", "finetune.steps=8", "finetune.save_every=3", "finetune.rank=2", "finetune.log_every=1",
    "evaluation.threat_models=[oblivious,adaptive]", "evaluation.check_images=2",
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Where the shared artefacts of the tiny problem are; `arguments` point a run at them."""

    cache: Path
    prepared: Path

    def arguments(self, run: Path, *more: str) -> list[str]:
        return ["cfg=digits", *TINY, f"run.cache={self.cache}", f"run.dir={run}", *more]

    def command(self, stage: str, run: Path, *more: str, nproc: int = 1) -> list[str]:
        """The real launcher for one stage; `nproc` processes."""
        words = self.arguments(run, f"stage={stage}", *more)
        return [sys.executable, "launch/local.py", "--nproc", str(nproc), *words]

    def run(self, stage: str, run: Path, *more: str, nproc: int = 1) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        command = self.command(stage, run, *more, nproc=nproc)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment())


def environment() -> dict[str, str]:
    """The environment of a launched command: one thread, so that two tests can run at a time."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
