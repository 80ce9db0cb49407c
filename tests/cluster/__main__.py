"""Start or stop a Slurm of four nodes for people: `python -m tests.cluster up | down | run COMMAND …`.

up: brings one up that stays, and prints how to use it; one that is up is left as it is. down: ends all that stay.
run: runs a command on the one that is up, or on one that lives as long as the command.
"""

import sys

from tests.cluster.cluster import Cluster, ClusterError


def main(words: list[str]) -> int:
    """Returns the exit code: 0, that of the command run, or 2 for bad input or no cluster."""
    try:
        match words:
            case ["up"]:
                cluster = next(iter(Cluster.kept()), None) or Cluster.up(keep=True)
                print(f"export SLURM_CONF={cluster.configuration.path}")
                return 0
            case ["down"]:
                for cluster in Cluster.kept():
                    cluster.down()
                return 0
            case ["run", *command] if command:
                kept = Cluster.kept()
                cluster = kept[0] if kept else Cluster.up()
                return cluster.run(command, check=False, capture_output=False).returncode
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 2
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
