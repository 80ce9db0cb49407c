"""What messages call commands: as the person who reads them started this one."""

import sys
from pathlib import Path

# verb: the script of a checkout that does the same
SCRIPTS = {"run": "launch/local.py", "slurm": "launch/slurm.py", "bench": "launch/bench.py"}


def command_name(verb: str) -> str:
    """`launch/slurm.py` to somebody who started a script of the checkout, else `maep slurm`."""
    script = Path(sys.argv[0])
    started_by_script = script.suffix == ".py" and script.parent.name in ("launch", "shards")
    return SCRIPTS[verb] if started_by_script else f"maep {verb}"


def same_command() -> list[str]:
    """The words that start this command again."""
    program, *arguments = sys.argv
    if Path(program).name == "__main__.py":
        return ["python", "-m", Path(program).parent.name, *arguments]
    return ["python", program, *arguments] if program.endswith(".py") else [Path(program).name, *arguments]
