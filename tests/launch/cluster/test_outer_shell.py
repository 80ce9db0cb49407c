"""What the submitting shell's own allocation leaves in the environment, and what a job gets of it."""

import os

import pytest

from maep.launch.cluster.outer_shell import extra_site_defaults, outer_environment, site_defaults, without_allocation

OUTER = {
    "SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": "7", "SLURM_NTASKS": "3",
    "SLURM_MEM_PER_CPU": "100", "SLURM_CPU_BIND": "quiet", "SLURM_EXPORT_ENV": "NONE", "SLURMD_NODENAME": "n1",
    "SLURM_TRES_PER_TASK": "cpu:1", "SBATCH_TIMELIMIT": "1", "SBATCH_ARRAY_INX": "0-9", "SRUN_CPUS_PER_TASK": "9",
    "SALLOC_X": "1", "PMI_RANK": "2", "PMI_FD": "6", "PMIX_NAMESPACE": "slurm.5.0", "OMPI_COMM_WORLD_RANK": "1",
    "RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "TORCHELASTIC_RUN_ID": "x", "SUBMITIT_EXECUTOR": "slurm",
    "CUDA_VISIBLE_DEVICES": "0", "SINFO_PARTITION": "x",
}  # fmt: skip
SITE = {
    "SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin", "HOME": "/root", "MODULEPATH": "/modules", "SITE_SLURM_QUEUE": "q",
    "MY_PMI": "1", "RANKING": "1", "NCCL_SOCKET_IFNAME": "ib0", "HTTPS_PROXY": "http://proxy",
}  # fmt: skip


def test_an_allocation_is_left_out_and_the_site_stays() -> None:
    """Sizes, ids and ranks of Slurm and of launchers go; how Slurm is reached, and what is the site's, stays."""
    assert outer_environment(OUTER | SITE) == SITE


def test_devices_are_the_persons_outside_of_an_allocation() -> None:
    """Only an allocation gives them out."""
    assert outer_environment({"CUDA_VISIBLE_DEVICES": "1"}) == {"CUDA_VISIBLE_DEVICES": "1"}


def test_it_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an error, and with what was set meanwhile."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    with pytest.raises(ValueError, match="x"), without_allocation():
        assert "SLURM_JOB_ID" not in os.environ
        raise ValueError("x")
    assert os.environ["SLURM_JOB_ID"] == "5"


def test_defaults_of_the_site_for_sbatch() -> None:
    """They become settings, so that an option given wins over them, which it does not over a variable."""
    shell = {"SBATCH_ACCOUNT": "a1", "SBATCH_RESERVATION": "r", "SBATCH_QOS": ""}
    assert site_defaults(shell) == {"account": "a1"}
    assert extra_site_defaults(shell) == {"reservation": "r"}
