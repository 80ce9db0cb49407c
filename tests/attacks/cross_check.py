"""Our AutoAttack beside pyautoattack's, image by image: `python -m tests.attacks.cross_check cfg=NAME … --out FILE`.

The whole `standard` attack on the configured classifier (classifier.weights), once a seed, at a budget so small that
every single attack has images left to work on. Writes what was compared; ends with 1 if one image or answer differs.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from pyautoattack import AutoAttack
from torch import Tensor, nn

from maep.attacks.autoattack import autoattack
from maep.config.command_line import command_line
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import build_shards, clean_split
from maep.data.shards import to_float
from maep.evaluation.reporting.provenance import environment
from maep.models.classifiers import load_classifier
from maep.runtime.device import prepare_device
from maep.runtime.errors import exit_code
from maep.storage.atomic import write_json

EPS, BATCH = 1 / 255, 16


def compare(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    """One seed: how many images are left after each attack, and how many images and answers are pyautoattack's own."""
    plain = AutoAttack(model, norm="Linf", eps=EPS, seed=seed, version="standard", device=images.device)
    expected, answers = plain.run_standard_evaluation(images, labels, batch_size=BATCH)
    ours = autoattack(model, images, labels, norm="Linf", eps=EPS, seed=seed, batch_size=BATCH)
    return {
        "seed": seed,
        "eps": EPS,
        "n": len(images),
        "standing": ours.survivors,
        "equal_images": int((ours.images == expected).flatten(1).all(1).sum()),
        "equal_answers": int((ours.predictions == answers).sum()),
    }


def main() -> int:
    """Compare under every seed, print, write."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--images", type=int, default=32, help="the first of the test images")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of both attacks")
    options.add_argument("--out", type=Path, required=True, help="where to write")
    namespace, settings = command_line(__doc__ or "", sys.argv[1:], options=options)
    device = prepare_device(settings.compute)
    build_shards(settings)
    test = clean_split(settings, "test")
    model = load_classifier(settings.classifier, len(test.classes), classifier_weights(settings)).to(device).eval()
    images, labels = test.batch(range(namespace.images))
    rows = []
    for seed in namespace.seeds:
        rows.append(compare(model.requires_grad_(False), to_float(images).to(device), labels.to(device), seed))
        print(rows[-1], flush=True)
    facts = {"schema": 1, "environment": environment(sys.argv), "classifier": settings.classifier.arch}
    write_json(namespace.out, {**facts, "rows": rows})
    return int(any(row["equal_images"] + row["equal_answers"] < 2 * row["n"] for row in rows))


if __name__ == "__main__":
    sys.exit(exit_code(main))
