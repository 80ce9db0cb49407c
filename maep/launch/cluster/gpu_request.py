"""How a job asks Slurm for its GPUs: by number and type, as the site wants it written."""

import re
from collections.abc import Mapping

GPUS_PER_NODE, GRES = "gpus-per-node", "gres"
# One entry of a list of generic resources: gpu, gpu:4, gpu:a100:4, gpu:a100:4(S:0-1); of a node or of a request.
ENTRY = re.compile(r"gpu(?::(?P<type>[^:,()]*[^:,()\d][^:,()]*))?(?::(?P<count>\d+))?(?:\([^)]*\))?")
ENTRIES = re.compile(r"[^,(]+(?:\([^)]*\))?")  # a list may have commas within brackets


def gpus_of(gres: str) -> dict[str, int]:
    """`{type: GPUs}` of a list of generic resources; the type is "" where Slurm names none."""
    counts: dict[str, int] = {}
    for entry in ENTRIES.findall(gres):
        if match := ENTRY.fullmatch(entry.strip()):
            kind = match["type"] or ""
            counts[kind] = counts.get(kind, 0) + int(match["count"] or 1)
    return counts


def gpu_parameters(gpus: int, kind: str | None, option: str, extra: Mapping[str, str]) -> dict[str, object]:
    """Submitit's parameters for a job with so many GPUs a node, 0 for none.

    kind: their type, None for any. option: gpus-per-node or gres. extra: options of sbatch from the site; what its
    `gres` asks beside GPUs is kept, and its GPUs' number is replaced, since not all jobs use as many.
    """
    entries = [entry.strip() for entry in ENTRIES.findall(extra.get(GRES, ""))]
    others = [entry for entry in entries if not ENTRY.fullmatch(entry)]
    kinds = [match["type"] for entry in entries if (match := ENTRY.fullmatch(entry))]
    by_gres = option == GRES or bool(kinds)
    kind = next((name for name in kinds if name), kind)
    request = ":".join([*([kind] if kind else []), str(gpus)])
    gres = [*([f"gpu:{request}"] if by_gres and gpus else []), *others]
    return {
        "gpus_per_node": request if gpus and not by_gres else None,
        "gres": ",".join(gres) or None,
    }
