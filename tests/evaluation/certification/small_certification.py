"""A small certification: real digits, a small classifier, a blur for a purifier; also run as a process to be killed."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from maep.config.evaluation_settings import CertifySettings
from maep.config.schema import Settings
from maep.data.shards import ShardSet
from maep.evaluation.certification.certificate_record import CERTIFICATES, plan_chunks
from maep.evaluation.certification.certifying import CertifyUnit, certify_all, certify_identity
from maep.evaluation.scoring.defense import Defense
from tests.small import Blur, killed_after, train_small


def settings_for(directory: Path, **certify: Any) -> Settings:
    """Settings of a quick certification with its run below `directory`."""
    settings = Settings()
    settings.run.dir, settings.run.cache = str(directory / "run"), str(directory / "cache")
    quick = {"sigma": [0.25, 0.5], "images": 14, "first_draws": 20, "draws": 150, "chunk_images": 3, "batch_size": 64}
    settings.certify = CertifySettings(**{**quick, **certify})
    return settings


def units_of(settings: Settings, test: ShardSet, purifier: str = "blur") -> list[CertifyUnit]:
    """Of one purifier; the identities are names."""
    defense = Defense(Blur(), train_small(), purifier, "small")
    identity = certify_identity(settings, defense, test)
    directory = Path(settings.run.dir) / CERTIFICATES / "pretrained"
    return [CertifyUnit(defense, test, identity, directory, task) for task in plan_chunks(settings.certify, len(test))]


def contents(directory: Path) -> dict[str, Any]:
    """All records by path, as JSON, without what differs from run to run: the time, and the digest that covers it."""
    files = sorted((directory / "run" / CERTIFICATES).rglob("chunk-*.json"))
    records = {str(path.relative_to(directory)): json.loads(path.read_text()) for path in files}
    for record in records.values():
        del record["seconds"], record["content_sha256"]
    return records


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, shards, number, count, *killed = sys.argv[1:]
    if killed:
        made = itertools.count(1)
        killed_after(CertifyUnit, "make", lambda _: next(made) == int(killed[0]))
    settings = settings_for(Path(folder))
    is_finished = certify_all(units_of(settings, ShardSet(shards)), settings, (int(number), int(count)))
    print("finished" if is_finished else "others go on", flush=True)
