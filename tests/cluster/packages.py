"""Debian's Slurm: whether this machine can run it, and installing what is missing."""

import os
import shutil
import subprocess

PROGRAMS = {
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "mariadb": "mariadb-server",
    "slurmdbd": "slurmdbd",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
PLUGIN = "slurm-wlm-mysql-plugin"
NAMESPACES = ["unshare", "--uts", "--pid", "--mount", "--fork", "--mount-proc", "true"]


def why_not() -> str | None:
    """Why no cluster can be brought up here, in one line; None when it can. Installs the packages it lacks."""
    if os.geteuid() != 0:
        return "a Slurm cluster needs root (namespaces, munge, slurmd)"
    done = subprocess.run(NAMESPACES, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"a Slurm cluster needs PID, mount and UTS namespaces: {done.stderr.strip()}"
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    return _install([*missing, PLUGIN]) if missing else None


def _install(packages: list[str]) -> str | None:
    """Install Debian packages; what went wrong, in one line, or None."""
    if not shutil.which("apt-get"):
        return f"a Slurm cluster needs {', '.join(packages)}, and there is no apt-get here to install them"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        command = ["apt-get", "-qq", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(command)} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
    return None
