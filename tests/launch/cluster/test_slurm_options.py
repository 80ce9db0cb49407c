"""Further options of sbatch and srun, and the one check of every text that reaches a batch script."""

import argparse
from pathlib import Path

import pytest

from maep.launch.cluster.jobs import KINDS
from maep.launch.cluster.settings import Cluster, add_options, read_cluster
from maep.launch.cluster.single_line import job_name, single_line
from maep.runtime.errors import UserError

TEXTS = ("\n", "\r", "\x00", "\x1b[0m", "\t", "\x7f", "\x85", "\u2028", "\u202e", "\udc80")


def read(*words: str) -> Cluster:
    """The cluster that these options give."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser)
    return read_cluster(parser.parse_args(words), list(KINDS))


def test_layers_of_further_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shell, file, stage, command line: later ones win, and an empty value takes an option back."""
    monkeypatch.setenv("SBATCH_RESERVATION", "shell")
    monkeypatch.setenv("SBATCH_ACCOUNT", "a0")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "sbatch: {mail_user: me@x.org, licenses: 'a:1', exclusive: true, comment: x}\nsrun: {mpi: pmix}\n"
        "stages:\n  shards: {sbatch: {licenses: '', comment: y}}\n"
    )
    cluster = read("--cluster", str(file), "--sbatch", "comment=z", "--sbatch", "hold", "--srun", "cpu-bind=none")
    general = {"reservation": "shell", "mail-user": "me@x.org", "licenses": "a:1", "exclusive": "true", "comment": "z",
               "hold": "true"}  # fmt: skip
    assert cluster.general.sbatch == general
    assert cluster.general.srun == {"mpi": "pmix", "cpu-bind": "none"}
    assert cluster.of("shards").sbatch == {name: value for name, value in general.items() if name != "licenses"}
    assert cluster.general.account == "a0"
    assert read("--account", "b").general.account == "b"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sbatch", "time=5"], "sbatch time .argument --sbatch.: is set by the launcher; use --time"),
        (["--sbatch", "--parsable"], "sbatch parsable"),
        (["--sbatch", "no_requeue"], "is set by the launcher"),
        (["--sbatch", "a b=5"], "expected a long option of sbatch"),
        (["--sbatch", "N=5"], "sbatch n"),
        (["--srun", "ntasks=5"], "srun ntasks"),
        (["--mem-per-task", "2G", "--sbatch", "mem-per-cpu=1G"], "memory can be asked for in one way"),
        (["--python", "a 'b"], "cannot be read as words"),
    ],
)
def test_options_that_would_undo_the_launcher(words: list[str], told: str) -> None:
    """Named with the option to use; `N` is no long option and so nothing that Slurm reads from a script."""
    joined = [f"{words[i]}={words[i + 1]}" for i in range(0, len(words), 2)]
    if told == "sbatch n":
        assert read(*joined).general.sbatch == {"n": "5"}  # Slurm names it
        return
    with pytest.raises(UserError, match=told):
        read(*joined)


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_but_a_single_line(tmp_path: Path, text: str) -> None:
    """Every option, setup line, key and value with a character that is none on a line, named with the option."""
    with pytest.raises(UserError, match="control character U") as error:
        single_line("x", f"a{text}rm -rf b")
    assert "\n" not in str(error.value)
    for name in ("partition", "name", "account", "qos", "constraint", "exclude", "python", "gpu-type", "time"):
        with pytest.raises(UserError, match=f"^{name.replace('-', '_')} "):
            read(f"--{name}", f"a{text}b")
    for name in ("sbatch", "srun"):
        with pytest.raises(UserError, match=f"^{name} "):
            read(f"--{name}", f"comment=a{text}b")
        with pytest.raises(UserError, match=f"^{name} "):
            read(f"--{name}", f"comm{text}ent=a")
    if text not in ("\x00", "\udc80"):
        file = tmp_path / "mine.yaml"
        file.write_text(f'setup: ["module load x", "a{text.encode("unicode_escape").decode()}b"]\n')
        with pytest.raises(UserError, match=r"^setup .*\[1\]"):
            read("--cluster", str(file))


@pytest.mark.parametrize("text", ["größe", "数据", "a b", "it's", 'x"$(rm)`'])
def test_other_text_is_left_alone(text: str) -> None:
    """Quoting makes it safe; letters of any script are letters."""
    assert single_line("x", text) == text


def test_names_of_jobs() -> None:
    """What Slurm or a shell gives a meaning to becomes a dash."""
    assert job_name("my run's, 50%j/é") == "my-run-s-50-j-é"
    assert job_name("--x") == "x"
    assert job_name("//") == "maep"
    assert len(job_name("x" * 999)) == 128
