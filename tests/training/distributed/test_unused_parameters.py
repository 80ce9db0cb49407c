"""DDP waits for the gradient of every parameter, but for those of which it is told that a step may leave them out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from maep.config.load import config_names, load_settings
from maep.launch.estimate import training_count
from maep.launch.estimate.whole_costs import count_trainings
from maep.models.masked_autoencoder import MASK_TOKEN
from tests.tiny import Problem


@pytest.mark.parametrize("name", [name for name in config_names() if name.endswith("digits")])
def test_only_the_mask_token_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no kind's training another parameter, and that where no patch is hidden alone."""
    steps: list[tuple[float, list[str]]] = []
    counted = training_count._Step.counted

    def watched(step: training_count._Step, ratio: float, which: int) -> training_count.StepCount:
        trained = [key for key, each in step.model.named_parameters() if each.requires_grad]
        grad = torch.autograd.grad

        def kept(outputs: torch.Tensor, inputs: Any, **options: Any) -> Sequence[torch.Tensor | None]:
            gradients = grad(outputs, inputs, **options)
            if isinstance(inputs, list) and len(inputs) == len(trained):
                left_out = [key for key, each in zip(trained, gradients, strict=True) if each is None]
                steps.append((ratio, left_out))
            return gradients

        with monkeypatch.context() as patch:
            patch.setattr(torch.autograd, "grad", kept)
            return counted(step, ratio, which)

    monkeypatch.setattr(training_count._Step, "counted", watched)
    trainings = count_trainings(load_settings(name))
    assert bool(steps) == bool(trainings)
    for ratio, left_out in steps:
        assert left_out in ([[]] if ratio else [[], [MASK_TOKEN]]), ratio


@pytest.mark.parametrize(
    "words",
    [["purifier.kind=residual_cnn", "pretrain.mask_ratio=0"], ["objective.name=nim", "pretrain.mask_ratio=0"]],
)
def test_ddp_is_told_of_no_others(words: list[str], problem: Problem, run_dir: Path) -> None:
    """It warns on every rank where it is told to look for parameters that are left out, and finds none."""
    done = problem.run("pretrain", run_dir, *words, "pretrain.steps=2", nproc=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "find_unused_parameters" not in done.stdout + done.stderr
