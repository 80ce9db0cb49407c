"""Further options of sbatch and srun, as sites demand them: `sbatch: {reservation: x}` or `--sbatch reservation=x`."""

import re
from collections.abc import Mapping, Sequence

from maep.launch.cluster.single_line import single_line
from maep.runtime.errors import fail

KEY = re.compile(r"[a-z][a-z0-9-]*")
FLAG = "true"  # the value of an option that takes none, such as exclusive
SBATCH, SRUN = "sbatch", "srun"
# Options that the launcher decides itself, and the setting to use instead; "" where there is nothing to choose.
OWN = {
    SBATCH: {
        "nodes": "--nodes", "ntasks": "--nproc-per-node", "ntasks-per-node": "--nproc-per-node",
        "cpus-per-task": "--cpus-per-task", "gpus-per-node": "--gpus-per-node", "gpus": "--gpus-per-node",
        "gpus-per-task": "--gpus-per-node", "gpus-per-socket": "--gpus-per-node", "partition": "--partition",
        "account": "--account", "qos": "--qos", "constraint": "--constraint", "exclude": "--exclude", "time": "--time",
        "job-name": "--name", "array": "--workers", "output": "", "error": "", "open-mode": "", "dependency": "",
        "kill-on-invalid-dep": "", "requeue": "", "no-requeue": "", "signal": "", "chdir": "", "mincpus": "",
        "wrap": "", "parsable": "", "quiet": "", "wait": "", "test-only": "", "help": "", "usage": "", "version": "",
        "verbose": "",
    },
    SRUN: {
        "nodes": "--nodes", "ntasks": "--nproc-per-node", "ntasks-per-node": "--nproc-per-node",
        "cpus-per-task": "--cpus-per-task", "kill-on-bad-exit": "", "distribution": "", "open-mode": "", "output": "",
        "error": "", "unbuffered": "", "multi-prog": "", "pty": "", "jobid": "", "wait": "", "chdir": "",
        "test-only": "", "help": "", "usage": "", "version": "",
    },
}  # fmt: skip
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")  # Slurm takes one of them


def options_of(command: str, tree: object, source: str) -> dict[str, str]:
    """`{option: value}` of a file's `sbatch:` or `srun:`; values as text, `""` for one that is to be left out.

    Raises UserError naming the option and `source`.
    """
    if tree in ("", None):
        return {}
    if not isinstance(tree, Mapping):
        fail(f"{command} ({source}): must hold options and values, such as {command}: {{reservation: x}}")
    return dict(_checked(command, str(key), value, source) for key, value in tree.items())


def options_of_words(command: str, words: Sequence[str]) -> dict[str, str]:
    """As `options_of`, of `KEY=VALUE` from the command line; `KEY` alone is an option without a value."""
    pairs = [word.partition("=") for word in words]
    source = f"argument --{command}"
    return dict(_checked(command, key, value if equals else FLAG, source) for key, equals, value in pairs)


def _checked(command: str, key: str, value: object, source: str) -> tuple[str, str]:
    name = single_line(f"{command} ({source})", key).strip().removeprefix("--").replace("_", "-").lower()
    if not KEY.fullmatch(name):
        fail(f"{command} {key} ({source}): expected a long option of {command}, such as reservation")
    if name in OWN[command]:
        instead = OWN[command][name]
        fail(f"{command} {name} ({source}): is set by the launcher{f'; use {instead}' if instead else ''}")
    if not isinstance(value, str):
        fail(f"{command} {name} ({source}): expected a single value, not {value!r}")
    return name, single_line(f"{command} {name} ({source})", value).strip()


def without_unset(options: Mapping[str, str]) -> dict[str, str]:
    """The options without those whose value is empty: a later layer took them back."""
    return {name: value for name, value in options.items() if value}


def sbatch_parameters(options: Mapping[str, str]) -> dict[str, object]:
    """As Submitit writes `#SBATCH` lines: True for an option without a value."""
    return {name: True if value == FLAG else value for name, value in options.items()}


def srun_arguments(options: Mapping[str, str]) -> list[str]:
    """As words of srun's command line."""
    return [f"--{name}" if value == FLAG else f"--{name}={value}" for name, value in options.items()]


def check_memory(options: Mapping[str, str], mem_per_task: str | None) -> None:
    """Raise UserError if memory is asked for in two ways, of which Slurm would ignore one or refuse both."""
    ways = [f"sbatch {name}" for name in MEMORY if name in options] + ["--mem-per-task"] * bool(mem_per_task)
    if len(ways) > 1:
        fail(f"{' and '.join(ways)}: memory can be asked for in one way; leave the others out")
