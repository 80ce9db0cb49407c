"""`maep checkpoint`: what list, verify, export and convert say and write, on checkpoints of a real state."""

import os
from pathlib import Path

import pytest
import torch

from maep.__main__ import run
from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import load_purifier
from maep.runtime.errors import UserError
from maep.storage.manifests import CheckpointManifest
from maep.storage.tensor_files import ShardedTensors
from maep.training.checkpointing.async_saver import Saver
from maep.training.checkpointing.directory import Retention
from maep.training.checkpointing.training_state import TrainingState
from maep.training.ema import Average

MODEL = {
    "image_size": 16, "patch_size": 8, "encoder_width": 8, "encoder_depth": 1, "encoder_heads": 1,
    "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 1,
}  # fmt: skip


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1 to 3, saved as training saves them."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(ModelSettings(**MODEL))  # type: ignore[arg-type]
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values())
    saver = Saver(
        tmp_path / "checkpoints", TrainingState(parameters, optimizer, Average(parameters, 0.5)), Retention(3), 10
    )
    for step in (1, 2, 3):
        model(torch.rand(2, 3, 16, 16)).mean().backward()
        optimizer.step()
        saver.save(CheckpointManifest(step=step, loss=1 / step, model=MODEL))
        saver.finish()
    return tmp_path


def damage(checkpoint: Path) -> Path:
    """Flip a bit of its first file."""
    path = next(checkpoint.glob("rank-*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def test_list_tells_the_whole_from_the_damaged(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a checkpoint, with its loss and what is wrong with it."""
    os.truncate(next((trained / "checkpoints/step-000002").glob("rank-*")), 100)
    assert run(["checkpoint", "list", str(trained)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"checkpoints/step-00000{step}" in printed for step in (1, 2, 3))
    assert "0.33333" in printed
    assert printed.count("- whole") == 2
    assert "100" in printed


def test_verify_names_the_damaged_file(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All whole: said so. One altered: an error that names its file; another step may still be verified alone."""
    assert run(["checkpoint", "verify", str(trained)]) == 0
    assert "3 checkpoints are whole" in capsys.readouterr().out
    path = damage(trained / "checkpoints/step-000003")
    with pytest.raises(UserError, match=rf"1 of 3 checkpoints are damaged: .*{path.name}: altered"):
        run(["checkpoint", "verify", str(trained)])
    assert run(["checkpoint", "verify", str(trained), "--step", "2"]) == 0


def test_export_writes_the_purifier(trained: Path, tmp_path: Path) -> None:
    """The averaged weights as a purifier/ directory that loads to the same output; an existing target is refused."""
    target = tmp_path / "out"
    run(["checkpoint", "export", str(trained), "--step", "2", "--to", str(target)])
    images = torch.rand(2, 3, 16, 16)
    expected = load_purifier(trained / "checkpoints/step-000002")
    with torch.no_grad():
        assert torch.equal(load_purifier(target)(images), expected(images))
    with pytest.raises(UserError, match="exists already"):
        run(["checkpoint", "export", str(trained), "--to", str(target)])
    with pytest.raises(UserError, match=r"--step 7: no such checkpoint; choose one of 1, 2, 3"):
        run(["checkpoint", "export", str(trained), "--step", "7"])
    damage(trained / "checkpoints/step-000003")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        run(["checkpoint", "export", str(trained), "--to", str(tmp_path / "other")])


def test_convert_shares_the_same_tensors_out(trained: Path) -> None:
    """Four parts of about the same size hold every tensor of the original, bit for bit, and verify."""
    run(["checkpoint", "convert", str(trained), "--parts", "4"])
    target = trained / "converted/step-000003"
    before, after = ShardedTensors(trained / "checkpoints/step-000003"), ShardedTensors(target)
    assert before.names() == after.names()
    assert all(torch.equal(before.tensor(name), after.tensor(name)) for name in before.names())
    assert len(list(target.glob("rank-*-of-0004.safetensors"))) == 4
    assert run(["checkpoint", "verify", str(target)]) == 0


def test_bad_input_is_one_line(trained: Path, tmp_path: Path) -> None:
    """A mistyped action and a place without checkpoints say what there is instead."""
    with pytest.raises(UserError, match=r"checkpoint verfy: unknown; did you mean verify\?"):
        run(["checkpoint", "verfy", str(trained)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoints; give a run directory"):
        run(["checkpoint", "list", str(tmp_path / "empty")])
