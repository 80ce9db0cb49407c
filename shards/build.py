"""Images to clean shards: `python shards/build.py cfg=cifar10 data.root=PATH`."""

import sys

from maep.config import command_line
from maep.data.build import build_shards
from maep.errors import exit_code
from maep.progress import say


def main() -> None:
    """Build what is missing of the clean shards and print where they are."""
    _, settings = command_line("Turn images into clean shards.", sys.argv[1:], default_cfg="digits")
    say(f"clean shards: {build_shards(settings)}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
