"""The measurement of many workers, on a small set with a few of them."""

from pathlib import Path

import pytest

from tests.cluster import many_workers
from tests.cluster.cluster import Cluster


@pytest.mark.slow
def test_workers_are_measured(cluster: Cluster, tmp_path: Path) -> None:
    """Each worker has its time taken apart, and all records are there."""
    rows = {row.name: row for row in many_workers.measure(cluster, tmp_path, [500], workers=4)}
    assert list(rows) == [
        "waiting of a worker, 500 images", "claims, 500 images", "CPU a chunk, 500 images", "merge, 500 images",
    ]  # fmt: skip
    assert len(list(tmp_path.glob("500/spent-*.json"))) == 4
    assert 0 <= rows["waiting of a worker, 500 images"].ratio < 1
    assert rows["claims, 500 images"].rate > 0
