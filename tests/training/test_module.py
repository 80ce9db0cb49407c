"""The training module gives every objective what it needs, whatever the model is wrapped in."""

import pytest
import torch

from maep.config.implementations import OBJECTIVES
from maep.config.schema import FinetuneSettings, ModelSettings, ObjectiveSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.training.finetune import with_adapter
from maep.training.module import TrainingModule

SMALL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=32,
    decoder_depth=1, decoder_heads=2,
)  # fmt: skip


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_trains_an_adapted_model(name: str) -> None:
    """Finite losses, one an image, and a gradient for the adapter's weights, through peft's wrapper in bf16."""
    torch.manual_seed(0)
    adapted = with_adapter(MaskedAutoencoder(SMALL), FinetuneSettings(), 0)
    module = TrainingModule(adapted, ObjectiveSettings(name=name), "bf16")
    clean = torch.rand(3, 3, 16, 16)
    visible = None if OBJECTIVES[name].whole_images else torch.arange(16).expand(3, 16) % 2 == 0
    total, _parts = module(clean, (clean + 0.03).clamp(0, 1), visible)
    total.sum().backward()
    assert total.shape == (3,)
    assert total.isfinite().all()
    assert any(p.grad is not None and p.grad.any() for p in adapted.parameters())
