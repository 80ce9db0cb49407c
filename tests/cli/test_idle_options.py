"""Options that would do nothing together are refused in one line."""

from collections.abc import Callable, Sequence

import pytest

from maep.cli import run, slurm
from maep.runtime.errors import UserError


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (slurm.main, ["--plan", "--dry-run", "cfg=digits"], "--dry-run: does nothing beside --plan"),
        (slurm.main, ["--plan", "--wait", "cfg=digits"], "--wait: does nothing beside --plan"),
        (slurm.main, ["--plan", "--allow-code-change", "cfg=digits"], "--allow-code-change: does nothing beside"),
        (slurm.main, ["--plan", "--partition", "gpu", "cfg=digits"], "--partition: does nothing beside --plan"),
        (slurm.main, ["--plan", "--cluster", "gpu", "cfg=digits"], "--cluster: does nothing beside --plan"),
        (slurm.main, ["--plan", "--sbatch", "qos=x", "cfg=digits"], "--sbatch: does nothing beside --plan"),
        (slurm.main, ["--plan", "--scale", "cpu", "cfg=digits"], "--scale: does nothing beside --plan"),
        (slurm.main, ["--plan", "stage=evaluate", "cfg=digits"], "stage=evaluate: does nothing beside --plan"),
        (slurm.main, ["--plan", "cfg=ablation/table15"], "--plan: ablation/table15 is a sweep"),
        (slurm.main, ["--bench", "x.json", "cfg=ablation/table15"], "--bench x.json: is for --plan"),
        (slurm.main, ["--bench", "x.json", "cfg=digits"], "--bench x.json: is for --plan"),
        (slurm.main, ["--dry-run", "--wait", "cfg=digits"], "--wait: does nothing beside --dry-run"),
        (slurm.main, ["--dry-run", "--wait", "cfg=ablation/table15"], "--wait: does nothing beside --dry-run"),
        (slurm.main, ["--dry-run", "--allow-code-change", "cfg=digits"], "--allow-code-change: does nothing beside"),
        (run.main, ["--dry-run", "--nproc", "2", "cfg=digits"], "--nproc: does nothing beside --dry-run"),
        (run.main, ["--dry-run", "--nproc", "2", "cfg=ablation/table15"], "--nproc: does nothing beside --dry-run"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(main: Callable[[Sequence[str]], int], words: list[str], said: str) -> None:
    """Of what is accepted and passed over a person believes that it was done."""
    with pytest.raises(UserError) as error:
        main(words)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
