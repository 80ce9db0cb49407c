"""What a job is not told of the shell that submits it: variables of the allocation that the shell itself runs in.

Slurm's commands read options from variables, and sbatch hands the environment on to the job. Submitted from inside a
job, its size, its array and its rank would become those of the new one.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Slurm's and its launchers' own: what an allocation sets, and what changes the commands' options or answers.
OF_SLURM = re.compile(r"(SLURM|SLURMD|SLURMCTLD|SBATCH|SRUN|SALLOC|SINFO|SACCT|SCONTROL|SQUEUE|PMI|PMI2|PMIX|OMPI)_.*")
OF_RANKS = re.compile(
    r"PMI|(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|NODE_RANK|GROUP_RANK|MASTER_ADDR|MASTER_PORT)|TORCHELASTIC_.*"
    r"|SUBMITIT_.*|MPI_LOCAL.*"
)
# The devices that an allocation gave out; outside of one they are the person's own choice.
OF_ALLOCATIONS = re.compile(
    r"CUDA_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|ZE_AFFINITY_MASK"
)
# How this site's Slurm is reached, and how it is spoken with.
OF_SITES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_SOCKET")
# sbatch's own defaults that people and sites set for all their jobs: the cluster setting that each one is.
DEFAULTS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
}
# The same, where the launcher has no setting of its own: they go on to sbatch, as `--sbatch` would.
EXTRA_DEFAULTS = {"SBATCH_RESERVATION": "reservation", "SBATCH_WCKEY": "wckey", "SBATCH_EXPORT": "export",
                  "SBATCH_CLUSTERS": "clusters", "SBATCH_GET_USER_ENV": "get-user-env"}  # fmt: skip


def is_foreign(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable belongs to the allocation, or the shell's Slurm options, and is no job's business."""
    if name in OF_SITES:
        return False
    inside = "SLURM_JOB_ID" in environment and OF_ALLOCATIONS.fullmatch(name)
    return bool(OF_SLURM.fullmatch(name) or OF_RANKS.fullmatch(name) or inside)


def outer_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what is foreign; everything else as it is. environment: this process's by default."""
    whole = os.environ if environment is None else environment
    return {name: value for name, value in whole.items() if not is_foreign(name, whole)}


def site_defaults(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """`{cluster setting: value}` of the defaults for sbatch that the shell holds."""
    whole = os.environ if environment is None else environment
    return {key: whole[name] for name, key in DEFAULTS.items() if whole.get(name)}


def extra_site_defaults(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """`{option of sbatch: value}`, as `site_defaults`, of those that are no cluster setting."""
    whole = os.environ if environment is None else environment
    return {key: whole[name] for name, key in EXTRA_DEFAULTS.items() if whole.get(name)}


@contextmanager
def without_allocation() -> Iterator[None]:
    """Within it this process, and what it starts, have `outer_environment`; afterwards everything is as before."""
    before = dict(os.environ)
    for name in [name for name in before if is_foreign(name, before)]:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ |= before
