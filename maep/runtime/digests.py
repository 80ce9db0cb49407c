"""Digests of values: the identity of settings and artefacts."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """A JSON-able value as the one text that has its digest: keys in order, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def as_read(value: Any) -> Any:
    """A JSON-able value as a reader of its text sees it: every key is text, which decides the canonical order."""
    return json.loads(json.dumps(value))


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form, as 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
