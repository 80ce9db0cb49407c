"""Adapters: nothing changes before training, only the chosen layers are trained, and merging keeps what was learnt."""

from pathlib import Path

import pytest
import torch

from maep.config.training_settings import FinetuneSettings, ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers.adapter import merge_adapter
from maep.storage.manifests import Manifest
from maep.storage.sealed import atomic_directory
from maep.training.finetune import parameter_counts, with_adapter

MODEL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=16,
    decoder_depth=1, decoder_heads=2, refine_width=4, refine_depth=1,
)  # fmt: skip
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def model() -> MaskedAutoencoder:
    """Always the same, with no weight at zero."""
    torch.manual_seed(0)
    made = MaskedAutoencoder(MODEL).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("targets", ["decoder", "both"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_adapters_train_their_layers_and_merge(method: str, targets: str, tmp_path: Path) -> None:
    """Each starts as the base, trains parts of the decoder or of both alone, and merged equals unmerged."""
    base = model()
    total = sum(parameter.numel() for parameter in base.parameters())
    adapted = with_adapter(model(), FinetuneSettings(method=method, targets=targets, rank=2), 0).eval()
    torch.testing.assert_close(adapted(IMAGES, None), base(IMAGES, None), rtol=0, atol=1e-5)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any("decoder" in name for name in trained)
    assert any("decoder" not in name and "refine" not in name for name in trained) == (targets == "both")
    counts = parameter_counts(adapted)
    assert counts.frozen == total
    assert 0 < counts.trained < total
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    with atomic_directory(tmp_path / "adapter", Manifest()) as temporary:
        adapted.save_pretrained(str(temporary))
    with torch.no_grad():
        learnt = adapted(IMAGES, None)
        assert (learnt - base(IMAGES, None)).abs().max() > 1e-3
        torch.testing.assert_close(
            merge_adapter(model(), tmp_path / "adapter")(IMAGES, None), learnt, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("rank", [3, 100])
def test_an_adapter_of_any_rank_loads(rank: int, tmp_path: Path) -> None:
    """Also one that is wider than every layer, with its scale."""
    adapted = with_adapter(model(), FinetuneSettings(method="lora", rank=rank, alpha=7), 0).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        adapted.save_pretrained(str(tmp_path))
        torch.testing.assert_close(
            merge_adapter(model(), tmp_path)(IMAGES, None), adapted(IMAGES, None), rtol=0, atol=1e-4
        )
