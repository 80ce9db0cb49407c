"""Clean shards to adversarial shards: `python shards/attack.py cfg=cifar10`, the same as `maep shards attack …`."""

import sys

from maep.__main__ import command

if __name__ == "__main__":
    sys.exit(command("shards", "attack"))
