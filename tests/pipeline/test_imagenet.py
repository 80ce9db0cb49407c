"""cfg=imagenet through every stage, on real images and a real classifier, at sizes that a laptop bears."""

import json
import subprocess
import sys
from pathlib import Path

from tests.tiny import ROOT, environment

SMALL = [
    "data.workers=0", "data.train_limit=8", "data.test_limit=4", "data.shard_images=4",
    "classifier.arch=mobilenetv2_100", "classifier.timm_args={pad_type: same}",
    "classifier.mean=[0.5,0.5,0.5]", "classifier.std=[0.5,0.5,0.5]", "attack.steps=1", "attack.batch_size=4",
    "model.patch_size=8", "model.encoder_width=32", "model.encoder_depth=1", "model.encoder_heads=2",
    "model.decoder_width=32", "model.decoder_depth=1", "model.decoder_heads=2", "model.prediction=residual",
    "pretrain.steps=4", "pretrain.batch_size=8", "finetune.steps=2", "finetune.batch_size=8",
    "evaluation.images=4", "evaluation.chunk_images=2", "evaluation.batch_size=2", "evaluation.adaptive_images=2",
    "evaluation.attacks=[fgsm]", "evaluation.eps=[4/255]", "evaluation.purifiers=finetuned",
    "evaluation.threat_models=[oblivious, adaptive]", "evaluation.figure_images=2",
    "purify.overlap=8", "purify.shifts=2", "compute.threads=1", "compute.compile=false", "compute.precision=fp32",
]  # fmt: skip


def test_all_stages_on_real_images(shared_data: Path, tmp_path: Path) -> None:
    """From the archive of JPEGs to a report, with tiles, blending and shifted grids at 224 x 224."""
    words = [
        "cfg=imagenet", *SMALL, f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}",
        f"data.root={shared_data / 'imagenet-sample.tar'}",
        f"classifier.weights={shared_data / 'weights' / 'imagenet-mobilenetv2_100.safetensors'}",
    ]  # fmt: skip
    command = [sys.executable, "launch/local.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "report.json").read_text())["results"]
    assert {(r["threat_model"], r["attack"], r["n"]) for r in results} == {
        ("oblivious", "fgsm", 4),
        ("adaptive", "fgsm", 2),
    }
    for result in results:
        assert (result["dataset"], result["classifier"], result["eps"]) == ("imagenet", "mobilenetv2_100", 4 / 255)
        assert result["undefended_clean_accuracy"] >= 50
        assert result["undefended_robust_accuracy"] < result["undefended_clean_accuracy"]
        assert result["psnr_clean"] > 25
