"""Images to clean shards: `python shards/build.py cfg=cifar10 data.root=PATH`, the same as `maep shards build …`."""

import sys

from maep.__main__ import command

if __name__ == "__main__":
    sys.exit(command("shards", "build"))
