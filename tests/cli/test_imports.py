"""What answers at once imports no library that takes a second: asked of a process of its own, by its modules."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maep.__main__ import VERBS
from maep.runtime.exits import ExitCode
from tests.ablation.sweeps import write
from tests.tiny import ROOT, Problem, environment

HEAVY = ("torch", "torchvision", "timm", "peft", "accelerate", "deepspeed", "matplotlib", "scipy", "webdataset")
TORCH = ("torch",)
COMPILER = "torch._inductor.compile_fx"
PROGRAM = f"""
import json, sys
from maep.__main__ import command
sys.argv = ["maep", *json.loads(sys.argv[1])]
try:
    code = command()
except SystemExit as end:  # of argparse's help
    code = end.code
print(json.dumps([code, [name for name in {(*HEAVY, COMPILER)!r} if name in sys.modules]]))
"""


def answer(words: list[str], directory: Path) -> tuple[int, list[str], str]:
    """Exit code, the heavy modules that were imported, and all that was printed."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(words)]
    result = subprocess.run(
        command,
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )
    *lines, last = result.stdout.splitlines()
    code, modules = json.loads(last)
    return code, modules, "\n".join(lines) + result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, tmp_path: Path) -> None:
    """So does `maep --help`, which the first of them stands for."""
    code, modules, text = answer([verb, "--help"], tmp_path)
    assert (code, modules) == (0, [])
    assert "usage" in text or "maep" in text


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        (["-m", "maep", "purify"], "usage: maep purify [-h] [IN] [OUT] [cfg=NAME] [key=value ...]\n"),
        (["-m", "maep", "shards", "build"], "usage: maep shards build [-h] [--dry-run] [cfg=NAME] [key=value ...]\n"),
        (["launch/local.py"], "usage: launch/local.py [-h]"),
    ],
)
def test_usage_is_of_the_command_that_was_typed(command: list[str], usage: str) -> None:
    """A verb or a script, with its settings; a mistyped option is said of the same."""
    help_page, refusal = (
        subprocess.run([sys.executable, *command, word], cwd=ROOT, capture_output=True, text=True, check=False)
        for word in ("--help", "--qqq")
    )
    assert help_page.stdout.startswith(usage)
    assert (refusal.returncode, refusal.stderr.split(": --qqq")[0]) == (2, f"error: {usage.split(' [')[0][7:]}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "cfg=digits", "pretain.lr=3"], "did you mean pretrain.lr?"),
        (["run", "cfg=digits", "objective.name=mae2"], "choose one of mae, purification"),
        (["run", "cfg=digits", "attack.norm=L3"], "choose one of Linf, L2"),
        (["run", "cfg=digits", "purifier.kind=medan"], "choose one of maep, median"),
        (["run", "cfg=digits", "evaluation.threat_models=[blind]"], "choose one of oblivious"),
        (["run", "cfg=digit"], "did you mean digits?"),
        (["run", "cfg=ablation/table15", "--scle", "cpu"], "did you mean --scale?"),
        (["shards", "build", "cfg=digits", "data.image_size=x"], "data.image_size"),
        (["slurm", "status", "nowhere"], "no such run directory"),
        (["checkpoint", "list", "nowhere"], "no checkpoints"),
        (["purify", "nothing.png", "out.png"], "no such file"),
        (["bench", "cfg=digits", "--secnds", "1"], "did you mean --seconds?"),
    ],
)
def test_a_mistake_is_answered(words: list[str], message: str, tmp_path: Path) -> None:
    """Registries and choices are text."""
    code, modules, text = answer(words, tmp_path)
    assert (code, modules) == (2, [])
    assert message in text


def test_what_is_finished_says_so(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """A stage and its results, their hashes included; then what the run stands at, for whoever asks."""
    words = problem.arguments(run_dir)
    for stage in ("shards", "classifier", "attack"):
        code, modules, text = answer(["run", *words, f"stage={stage}"], tmp_path)
        assert (code, modules) == (0, [])
        assert f"{stage}: finished before" in text


def test_a_training_that_compiles_nothing_imports_no_compiler(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """It takes a second of CPU, at every start and requeue."""
    code, modules, text = answer(
        ["run", *problem.arguments(run_dir), "stage=pretrain", "pretrain.pause_at=1"], tmp_path
    )
    assert code == ExitCode.PAUSED, text
    assert "timm" in modules
    assert COMPILER not in modules


def test_what_starts_ranks_imports_no_models() -> None:
    """A launcher checks the pairs that its ranks will read: they start when it has, so each second of it is a wait."""
    names = ("timm", "accelerate", "torch._dynamo")
    program = f"import sys, maep.training.inputs; print([name for name in {names!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_points_of_a_sweep_are_shown_without_figures(tmp_path: Path) -> None:
    """torch is needed to read them (threat models are asked whether they see the purifier); matplotlib is not."""
    code, modules, text = answer(["run", f"cfg={write(tmp_path / 'sweep.yaml')}", "--dry-run"], tmp_path)
    assert code == 0
    assert set(modules) <= set(TORCH)
    assert "pretrainings" in text


def test_a_ctrl_c_is_waited_for_before_anything_is_read() -> None:
    """What takes most of a start comes after: in the imports of a command's own file it would be a traceback."""
    words = [sys.executable, "-c", "import sys, maep.__main__; print([n for n in sys.modules if 'config' in n])"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "maep.config" not in result.stdout
