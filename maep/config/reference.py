"""configs/README.md, written from the settings: `python -m maep.config.reference > configs/README.md`."""

import math
from dataclasses import Field, fields
from typing import Any

from maep.config.identity import READS, decides
from maep.config.implementations import names_of
from maep.config.load import (
    KINDS,
    config_names,
    default_of,
    leaves,
    settings_class,
    sweep_names,
    type_name,
    valid_choices,
)
from maep.config.schema import Settings

SECTIONS = [item.name for item in fields(Settings)]

HEAD = """\
# Configurations

`cfg=NAME` picks `configs/NAME.yaml`, or any YAML file by its path; `base: NAME` in a file builds on another one;
`section.key=value` on the command line overrides both. Values are YAML, and a fraction such as `8/255` may be written
for a number. A mistyped key, a wrong type or a value out of range ends with exit code 2 and one line that names the
key, where it was written, and the valid choice. `run.dir/config.yaml` holds what a run resolved to, and `cfg=` takes it
back.

- Configurations: {configs}.
- Tables of the paper, as sweeps: {sweeps}.
- Clusters, for `--cluster NAME` of `launch/slurm.py`: the files of `cluster/` (see `../launch/README.md`).

*Decides* names the stages whose results depend on a setting: they, and what is made of theirs, run again when it
changes. `nothing` is how something is computed, or where, and never what comes out. The rule itself stands in
`maep/config/identity.py`.

This page is written from `maep/config/schema.py` by `python -m maep.config.reference`; a test holds the two together.
"""


def reference() -> str:
    """The whole page: each section of the settings as a table, then the sections of the purifiers' kinds."""
    names = ", ".join(f"`{name}`" for name in config_names())
    sweeps = ", ".join(f"`{name}`" for name in sweep_names())
    parts = [HEAD.format(configs=names, sweeps=sweeps)]
    parts += [_section(Settings, name) for name in SECTIONS]
    for kind in names_of(KINDS):
        cls = settings_class(kind)
        parts += [
            _section(cls, item.name, f" (purifier.kind={kind})") for item in fields(cls) if item.name not in SECTIONS
        ]
    return "\n".join(parts)


def _section(cls: type[Settings], name: str, note: str = "") -> str:
    """One section as a heading and a table."""
    rows = [
        f"| `{key}` | {_type(item, hint)} | {_default(item)} | {_decides(key, item)} | {item.metadata['help']} |"
        for key, (item, hint) in leaves(cls).items()
        if key.startswith(f"{name}.")
    ]
    table = ["| setting | type and range | default | decides | meaning |", "|---|---|---|---|---|", *rows]
    return "\n".join([f"## {name}{note}", "", *table, ""])


def _type(item: Field[Any], hint: Any) -> str:
    """The type or the choices, then range and unit."""
    choices, signs = valid_choices(item), {"low": "≥", "above": ">", "high": "≤"}
    parts = [", ".join(f"`{choice}`" for choice in choices) if choices else type_name(hint).replace("|", "or")]
    for name, sign in signs.items():
        if item.metadata.get(name) is not None:
            parts.append(f"{sign} {_value(item, item.metadata[name])}")
    unit = item.metadata.get("unit")
    return " ".join([*parts, f"[{unit}]"] if unit else parts)


def _default(item: Field[Any]) -> str:
    """As it would be written."""
    value = default_of(item)
    if isinstance(value, list):
        return f"`[{', '.join(_value(item, entry) for entry in value)}]`"
    return "unset" if value is None else f"`{_value(item, value)}`"


def _value(item: Field[Any], value: Any) -> str:
    """A pixel value that is a whole number of 255 levels as that fraction."""
    if isinstance(value, bool):
        return str(value).lower()
    levels = value * 255 if isinstance(value, float) else 0.0
    if "pixels" in item.metadata.get("unit", "") and 0 < levels < 255 and math.isclose(levels, round(levels)):
        return f"{round(levels)}/255"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _decides(key: str, item: Field[Any]) -> str:
    """The stages that read the setting and depend on it."""
    section = key.partition(".")[0] if key.partition(".")[0] in SECTIONS else "purifier"
    readers = [name for name, reads in READS.items() if (key in reads or section in reads) and decides(item, name)]
    return ", ".join(name for name in readers if name not in ("records", "point")) or "nothing"


if __name__ == "__main__":
    print(reference(), end="")
