"""Check every shard against its manifest: `python shards/verify.py PATH`, the same as `maep shards verify PATH`."""

import sys

from maep.__main__ import command

if __name__ == "__main__":
    sys.exit(command("shards", "verify"))
