"""Comparisons with code that only some users have: processes in turn, the official MAE's step, torchattacks' PGD."""

import sys
from pathlib import Path

import pytest

from maep.__main__ import run
from maep.benchmarks.bench_report import BenchReport
from maep.benchmarks.measured_process import WARM_UP, MeasuredProcess, in_turn
from maep.benchmarks.script_attacks import OURS, THEIRS, beside_torchattacks
from maep.config.load import load_settings, to_yaml
from maep.data.images.build import build_shards
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.runtime.errors import UserError
from tests.tiny import TINY, Problem

WORKER = """
import sys
from maep.benchmarks.measured_process import answer
answer(lambda: sum(range({loops})), 1, sys.stdin)
"""
# The interface of its models_mae.py, and what of it timm and NumPy have since taken away; its network is the official
# code's own affair. `count` parameters are trained.
CHECKOUT = """
import numpy as np
import torch
from timm.models.vision_transformer import Block

class MaskedAutoencoderViT(torch.nn.Module):
    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads, decoder_embed_dim, decoder_depth,
                 decoder_num_heads, mlp_ratio, norm_layer):
        super().__init__()
        block = Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, qk_scale=None, norm_layer=norm_layer)
        self.blocks = torch.nn.ModuleList([block]).requires_grad_(False)
        self.rest = torch.nn.Parameter(torch.ones({count}))

    def forward(self, images, mask_ratio):
        grid = torch.from_numpy(np.arange(3, dtype=np.float)).float()
        return images.mean() * self.rest.sum() + grid.sum(), None, None
"""


def worker(loops: int) -> list[str]:
    """A process whose work is a loop of that length."""
    return [sys.executable, "-c", WORKER.format(loops=loops)]


def test_processes_in_turn_are_told_apart() -> None:
    """Ten times the work is done much less often, in each round."""
    with MeasuredProcess(worker(10_000)) as quick, MeasuredProcess(worker(100_000)) as slow:
        quicks, slows = in_turn([quick, slow], 0.05, 3)
    assert len(quicks) == len(slows) == 3
    assert all(first > 3 * second > 0 for first, second in zip(quicks, slows, strict=True))


def test_the_first_rounds_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is slow until its memory is in place is measured as it is from then on."""
    rates = iter([*[1.0] * WARM_UP, 5.0, 6.0])
    monkeypatch.setattr(MeasuredProcess, "rate", lambda _: next(rates))
    with MeasuredProcess(worker(10)) as process:
        assert in_turn([process], 0.001, 2) == [[5.0, 6.0]]


def test_a_process_that_ends_is_said() -> None:
    """Bad input of a child is that of the command; anything else is a failure."""
    leaves = [sys.executable, "-c", "import sys; sys.exit(int(sys.argv[1]))"]
    with MeasuredProcess([*leaves, "2"]) as process, pytest.raises(UserError, match="refused its input"):
        process.wait_until_ready()
    with MeasuredProcess([*leaves, "1"]) as process, pytest.raises(RuntimeError, match="ended with 1"):
        process.wait_until_ready()


def official(directory: Path, count: int) -> Path:
    """A checkout whose model trains `count` parameters."""
    directory.mkdir()
    (directory / "models_mae.py").write_text(CHECKOUT.replace("{count}", str(count)))
    return directory


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`maep bench` of a tiny model, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    return ["bench", "cfg=digits", *TINY, "compute.device=cpu", "--seconds=0.02", "--batch=8", "run.dir=run"]


@pytest.mark.slow
def test_the_official_step_stands_beside_ours(tmp_path: Path, words: list[str]) -> None:
    """Two rows more, of ours as it is and compiled, when their networks train as many parameters."""
    model = MaskedAutoencoder(load_settings("digits", TINY).model)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert run([*words, "compute.compile=true", "--mae", str(official(tmp_path / "mae", count))]) == 0
    rows = BenchReport.read(tmp_path / "run" / "bench.json").rows[-2:]
    beside = "beside the official MAE's, 8 images"
    assert [row.name for row in rows] == [f"training step {beside}", f"training step, compiled, {beside}"]
    for row in rows:
        assert row.unit == "images/s of one core"
        assert row.limit.startswith("facebookresearch/mae ")
        assert row.rate > 0
        assert row.ratio > 0


def test_what_is_no_checkout_is_refused_at_once(tmp_path: Path, words: list[str]) -> None:
    """A directory without its model."""
    with pytest.raises(UserError, match=r"--mae .*: no models_mae.py there; name a checkout of facebookresearch/mae"):
        run([*words, "--mae", str(tmp_path)])


def test_networks_of_other_sizes_are_not_compared(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the process says that would train the official one."""
    checkout = official(tmp_path / "mae", 7)
    with pytest.raises(UserError, match=r"parameters are trained here and 7 there"):
        run([*words, "--mae", str(checkout), "--beside", str(tmp_path)])


def test_torchattacks_is_compared_where_it_is(
    tmp_path: Path, problem: Problem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line where it is missing; elsewhere both attack the same classifier and images."""
    settings = load_settings("digits", problem.arguments(tmp_path / "run")[1:])
    settings.data.shards = str(build_shards(settings))
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(settings))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / THEIRS).is_dir()])
    assert beside_torchattacks(config, 0.02) is None
    assert f"{THEIRS} is not installed" in capsys.readouterr().out
    command = [sys.executable, "-m", "maep", "bench-evaluation", f"cfg={config}", "compute.threads=1", "--attack", OURS]
    with MeasuredProcess(command) as ours:
        assert in_turn([ours], 0.02, 1)[0][0] > 0
