"""Which job of Slurm's this process is part of, by Slurm's environment; the standard library alone."""

import os


def this_job() -> str | None:
    """The job's id as people and Slurm's commands write it: 123, or 123_4 for a worker of an array; None without one.

    A worker's SLURM_JOB_ID names no worker: the last one's is the array's, and a requeue of that restarts all of them.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
