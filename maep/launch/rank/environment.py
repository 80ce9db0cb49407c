"""How a process is told which of many it is; `maep.training.distributed.world.join_world` reads it."""

NODE_ADDRESS = "MAEP_NODE_ADDRESS"  # NodeAddr of a job's first node by slurm.conf: the batch script asks for it


def rank_environment(rank: int, size: int, local_rank: int, address: str, port: int) -> dict[str, str]:
    """The variables of one rank; rank 0 serves at `address` and `port`. local_rank: among those of its node."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
