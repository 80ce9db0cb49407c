"""What a stranger types: files of other kinds, mistyped options, pipes and loops. One line, exit code 2, and no trace.

All in this process, as `maep VERB …` runs it; what only a process of its own can show is in `test_imports.py`.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maep.__main__ import run
from maep.purifiers import save_purifier
from maep.purifiers.median import MedianPurifier, MedianSettings
from maep.runtime.errors import exit_code
from tests.small import write_shards
from tests.test_damage import without_privileges

MODEL = """
import sys
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)).eval()
def leaves():
    sys.exit(3)
number = 5
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything."""
    base = tmp_path_factory.mktemp("stranger")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = base / "images" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "0.png")
    shutil.copy(base / "images/train/cat/0.png", base / "a.png")
    write_shards(base / "shards" / "test", 12)
    save_purifier(MedianPurifier(MedianSettings()), base / "median" / "purifier")
    (base / "emptydir").mkdir()
    (base / "emptyfile").touch()
    (base / "text.txt").write_text("hello\n")
    (base / "strangers_model.py").write_text(MODEL)
    return base


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy as the working directory, with what cannot be copied."""
    base = Path(shutil.copytree(prepared, tmp_path / "here"))
    for name in ("fifo", *PIPES):
        os.mkfifo(base / name)
    (base / "loop").symlink_to("loop")
    (base / "dangling").symlink_to("nowhere")
    (base / "loopdir").mkdir()
    (base / "loopdir" / "in").symlink_to("../loopdir")
    monkeypatch.chdir(base)
    return base


# Whose names say that they are something else.
PIPES = ("fifo.tar", "fifo.png", "fifo.zip", "fifo.tar.gz", "fifo.json", "fifo.yaml", "fifo.safetensors", "fifo.pt")
KINDS = (
    "nowhere", "emptydir", "emptyfile", "text.txt", "a.png", "fifo", "loop", "dangling", "/dev/zero", *PIPES
)  # fmt: skip
RUN = ("run", "cfg=digits", "data.format=auto", "run.dir=r", "run.cache=c")
EVALUATE = ("evaluate", "--model", "strangers_model:make", "--data", "shards/test", "evaluation.images=8")
DIGITS = ("run", "cfg=digits", "run.dir=r", "run.cache=c")


def tree(base: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files, and that folders are there."""
    found = {}
    for path in base.rglob("*"):
        status = path.lstat()
        if "__pycache__" not in path.parts:
            found[str(path.relative_to(base))] = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found


def refused(words: Sequence[str], here: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the words end with."""
    before = tree(Path())
    capsys.readouterr()
    assert exit_code(lambda: run(list(words))) == 2, words
    line = capsys.readouterr().err
    assert line.startswith("error: "), words
    assert line.count("\n") == 1, words
    assert tree(Path()) == before, words
    return line


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ((*RUN, "data.root={}"), (*KINDS, "loopdir", "shards", "images/train/cat")),
        ((*DIGITS, "classifier.weights={}"), KINDS),
        ((*DIGITS, "model.init={}"), ("nowhere", "loop", "dangling")),
        ((*DIGITS, "data.shards={}"), (*KINDS, "images")),
        ((*DIGITS, "purifier={}"), KINDS),
        ((*DIGITS, "run.cache={}"), ("emptyfile", "fifo", "loop", "a.png/x", "/dev/null", "/proc/x", "$TMP")),
        ((*DIGITS, "run.dir={}"), ("emptyfile", "fifo", "loop", "a.png/x", "/dev/null", "/proc/x", "$TMP/x", "")),
        (("run", "cfg={}"), (*KINDS, "images")),
        (("shards", "build", "data.format=auto", "data.root={}", "run.cache=c"), KINDS),
        (("shards", "verify", "{}"), (*KINDS, "images")),
        (("purify", "{}", "out.png", "run.dir=median"), tuple(kind for kind in KINDS if kind != "a.png")),
        (("purify", "{}", "out.tar", "run.dir=median"), ("fifo.tar", "/dev/zero")),
        (("purify", "a.png", "out.png", "purifier={}"), KINDS),
        (("purify", "a.png", "{}", "run.dir=median"), ("emptydir", "fifo", "loop", "dangling", "a.png", "a.png/x.png")),
        (("checkpoint", "list", "{}"), KINDS),
        (("checkpoint", "import", "{}", "--kind", "disco", "--to", "x"), KINDS),
        (("compare", "median", "{}"), KINDS),
        (("paper", "{}"), tuple(kind for kind in KINDS if kind != "emptydir")),
        (("paper", "emptydir", "--out", "{}"), ("emptydir", "fifo", "/dev/null", "a.png/x", "loop/x")),
        ((*EVALUATE, "--data", "{}"), (*KINDS, "images")),
        ((*EVALUATE, "run.dir={}"), ("emptyfile", "fifo", "loop", "a.png/x", "/proc/x")),
        (("slurm", "--dry-run", "cfg=digits", "--cluster", "{}"), KINDS[3:]),
        (("slurm", "--plan", "cfg=digits", "--bench", "{}"), KINDS),
        (("slurm", "status", "{}"), KINDS),
        (("bench-evaluation", "cfg=digits", "--out", "{}"), ("emptydir", "a.png/x")),
    ],
    ids=lambda value: " ".join(value) if "{}" in " ".join(value) else "",
)
def test_a_file_of_another_kind(
    words: Sequence[str], kinds: Sequence[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a data set, weights, shards, a purifier, an image, an output, … is asked for."""
    for kind in kinds:
        refused([word.format(kind) for word in words], here, capsys)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint"], "the following arguments are required: list|verify|export|convert|import, RUN"),
        (["checkpoint", "list", "median", "--stpe", "3"], "--stpe: unknown argument; did you mean --step?"),
        (["checkpoint", "list", "median", "--to", "x"], "--to: checkpoint list takes no option"),
        (["checkpoint", "verify", "median", "--parts", "2"], "--parts: checkpoint verify takes --step"),
        (["checkpoint", "export", "median", "--step", "x"], "argument --step: invalid int value: 'x'"),
        (["slurm", "status"], "the following arguments are required: RUN"),
        (["slurm", "logs", "median", "--rank", "x"], "argument --rank: invalid int value: 'x'"),
        (["shards", "verify"], "the following arguments are required: PATH"),
        (["shards", "verify", ""], "one of the arguments is empty"),
        (["compare", "median", "--out"], "argument --out: expected one argument"),
        (["paper", "--uot", "x"], "unknown argument"),
        (["run", "cfg=digits", "--nproc", "0"], "argument --nproc: 0: must be at least 1"),
        (["bench", "cfg=digits", "--seconds", "nan"], "argument --seconds: nan: expected a finite number above 0"),
        (["bench", "cfg=digits", "--batch", "-1"], "argument --batch: -1: must be at least 1"),
        (["bench", "cfg=digits", "--batch", "4x"], "argument --batch: 4x: expected a whole number, at least 1"),
        (["bench", "cfg=digits", "--seconds", "1s"], "argument --seconds: 1s: expected a finite number above 0"),
        (["bench-loader", "--seconds", "0"], "argument --seconds: 0: expected a finite number above 0"),
        (["bench-evaluation", "cfg=digits", "--images", "-3"], "argument --images: -3: must be at least 1"),
        (["bench-evaluation", "cfg=jpeg/digits"], "purifier.kind=jpeg: bench-evaluation measures maep alone"),
        (["bench-evaluation", "cfg=robust/digits", "purify.overlap=2"], "set model.image_size=32 purify.overlap=0"),
        (["bench-evaluation", "cfg=digits_small", "model.image_size=16"], "set model.image_size=32 purify.overlap=0"),
        (["bench-loader", "--starts", "1,9999999"], "--starts 1,9999999: 9999999 shards are more than 64000"),
        ([*DIGITS, "evaluation.attacks=[]"], "evaluation.attacks=[]: is empty"),
        ([*DIGITS, "evaluation.eps=[]"], "evaluation.eps=[]: is empty"),
        ([*DIGITS, "evaluation.threat_models=[]"], "evaluation.threat_models=[]: is empty"),
        ([*DIGITS, "evaluation.threat_models=[blackbox]", "evaluation.blackbox_attacks=[]"], "blackbox_attacks=[]"),
        ([*DIGITS, "evaluation.attacks=[pdg]"], "pdg: unknown attack"),
        ([*EVALUATE[:2], "strangers_model:leaves", *EVALUATE[3:]], "leaves() ended the process (exit code 3)"),
        ([*EVALUATE[:2], "strangers_model:number", *EVALUATE[3:]], "is int; expected a function"),
        ([*EVALUATE, "purifier=median"], "a model is judged as it is"),
        (["purify", "a.png", "b.png", "run.dir=median", "purifier.kind=jpeg"], "holds one of kind median"),
    ],
)
def test_a_mistyped_word(words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that are missing, unknown, out of range or passed over; settings that ask for nothing."""
    assert message in refused(words, here, capsys)


def test_a_purifier_is_named_as_everywhere(here: Path) -> None:
    """`maep purify … purifier=PATH`, to a name with quotes, blanks and letters of elsewhere."""
    target = here / "ü '$(x)\".png"
    assert run(["purify", "a.png", str(target), "purifier=median"]) == 0
    assert Image.open(target).size == (20, 20)


def test_what_may_not_be_read_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory without permission, and a name that no file system takes, wherever either is asked for."""
    long = "x" * 300
    words = [
        ["checkpoint", "list", "{}"], ["shards", "verify", "{}"], ["purify", "{}", "out", "run.dir=median"],
        ["purify", "a.png", "out.png", "run.dir={}"], [*EVALUATE, "--data", "{}"], ["paper", "{}"],
        ["paper", "emptydir", "--out", "{}/x"], ["compare", "median", "{}"], ["slurm", "status", "{}"],
        [*RUN, "data.root={}"], [*DIGITS, "purifier={}"], [*DIGITS, "run.cache={}"], ["run", "cfg={}"],
    ]  # fmt: skip
    for each in words:
        assert long in refused([word.format(long) for word in each], here, capsys) or each[0] == "run"
    run(["paper", "emptydir", "--out", "warm.html"])  # what is imported later, nobody may read either
    (here / "emptydir").chmod(0)
    with without_privileges(here):
        for each in words[:4]:
            assert "ermission denied" in refused([word.format("emptydir") for word in each], here, capsys)


def test_a_typing_mistake_leaves_a_finished_run_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its records, configuration and environment are those of what it holds."""
    words = [*RUN, "data.root=images", "stage=shards", "data.workers=0"]
    assert run(words) == 0
    assert "data.root=iamges: No such file" in refused([*words, "data.root=iamges"], here, capsys)
    assert run(words) == 0
    assert "shards: finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (("run", "cfg=digits", "--dry"), "--dry-run"),
        (("slurm", "cfg=digits", "--nod", "4"), "--nodes"),
        (("slurm", "cfg=digits", "--grac", "4"), "--grace"),
        (("slurm", "logs", "x", "--line", "3"), "--lines"),
        (("slurm", "logs", "x", "--line=3"), "--lines"),
        (("evaluate", "--mod", "a:b", "--data", "x"), "--model"),
        (("evaluate", "--robust", "x"), "--robustbench"),
        (("checkpoint", "list", "x", "--st", "3"), "--step"),
        (("compare", "a", "b", "--ou", "x"), "--out"),
        (("paper", "--ou", "x"), "--out"),
        (("shards", "build", "--dry"), "--dry-run"),
        (("certify", "cfg=certified/digits", "--work", "0/2"), "--worker"),
        (("bench", "cfg=digits", "--sec", "3"), "--seconds"),
        (("bench-loader", "--start", "3"), "--starts"),
    ],
)
def test_an_option_is_its_whole_name(
    words: tuple[str, ...], whole: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `--n` stands for would change with every option that is added; the whole one is named."""
    assert f"did you mean {whole}?" in refused(words, here, capsys)


def test_of_an_option_given_twice_it_is_said_which_value_counts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of settings; not of one that says the same twice, nor of one that may stand several times."""
    again = "--sbatch=nice=1", "--sbatch=nice=2", "--scale", "x", "--scale=x"
    assert exit_code(lambda: run(["slurm", "cfg=digits", "--nodes=1", "--nodes", "2", *again])) == 2
    assert capsys.readouterr().out == "--nodes is given 2 times: --nodes=2 counts, not --nodes=1\n"
