"""Every kind of purifier before a trained classifier: all threat models, and the self-check says what it is like."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from maep.config.load import load_settings
from maep.evaluation.audit.gradient_masking import median_error, read_checks
from maep.evaluation.image_set import ImageSet
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import PLAN, Plan
from maep.evaluation.workers import evaluate_all
from maep.purifiers.registry import KINDS, purifier_class
from tests.purifiers.test_registry import woken, words_of
from tests.small import ATTACKERS, digits, train_small

QUICK = [
    "evaluation.images=4", "evaluation.adaptive_images=4", "evaluation.chunk_images=4", "evaluation.batch_size=4",
    "evaluation.attacks=[pgd-3]", "evaluation.eps=[0.1]", "evaluation.blackbox_attacks=[square-5]",
    "evaluation.check_images=2", "evaluation.draws=2", f"evaluation.threat_models=[{','.join(ATTACKERS)}]",
]  # fmt: skip
# Settings that only make it fast.
FAST = {
    "tvm": ["tvm.iterations=3"], "dram": ["dram.steps=2"], "diffpure": ["diffpure.steps=1"],
    "adbm": ["adbm.steps=1"],
    "gdmp": ["gdmp.steps=1", "gdmp.rounds=1"], "freqpure": ["freqpure.steps=1"], "adp": ["adp.steps=2"],
    "flowpure": ["flowpure.steps=1"], "scoreopt": ["scoreopt.steps=1"],
    "ebm": ["ebm.steps=1", "ebm.activation=silu"],
    "pixeldefend": ["pixeldefend.layers=0", "pixeldefend.components=1", "pixeldefend.eps=1/255"],
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_is_judged_and_checked(kind: str, tmp_path: Path) -> None:
    """Records of every threat model; randomness and gradients as the kind says; true gradients where it has them,
    and where not adaptive attackers are BPDA's."""
    torch.manual_seed(0)
    cache = [f"run.cache={tmp_path / 'cache'}", f"run.dir={tmp_path}"]
    settings = load_settings(None, [*words_of(kind), *FAST.get(kind, []), *QUICK, *cache])
    purifier = woken(purifier_class(kind).from_settings(settings))
    images, labels = digits()
    noise = 0.1 * torch.rand(4, *images.shape[1:])  # of equal pixels, a median has two slopes
    test = ImageSet(0.05 + 0.8 * images[:4] + noise, labels[:4], list("0123456789"))
    # Small's own takes one size alone; pooled to it, larger ones as well.
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(images.shape[2]), train_small())
    assert evaluate_all([Evaluation(settings, Defense.of(purifier, classifier, kind, "small"), test, tmp_path)])
    assert {path.parent.parent.name for path in tmp_path.glob("*/*/chunk-*.json")} == set(ATTACKERS)
    checks = read_checks(Plan.read(tmp_path / PLAN), tmp_path)
    assert checks.random == purifier.is_random
    assert checks.has_gradient == purifier.is_differentiable
    assert checks.gradients.zero_share == 0  # of a kind that has none, it is the identity's
    if purifier.is_differentiable:
        assert median_error(checks.finite_differences) < 0.1
    else:
        records = [
            json.loads(next(tmp_path.glob(f"{name}/*/chunk-*.json")).read_text()) for name in ("adaptive", "bpda")
        ]
        adaptive, bpda = (record["predictions"]["undefended_adversarial"] for record in records)
        assert adaptive == bpda  # of the same images; what a random kind makes of them differs by its draws
