"""The order of the house: what may import what, names that are there once, and what stands at the top."""

import ast
import subprocess
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "maep"
MODULES = sorted(PACKAGE.rglob("*.py"))
# From the ground up: a folder, or a module beside the folders, imports from its own floor and from those below it.
FLOORS = (
    ("__init__",),  # the version; it brings the library's entry points only when they are asked for
    ("runtime",),
    ("config",),
    ("storage",),
    ("models", "objectives"),
    ("attacks", "purifiers"),
    ("data",),
    ("training",),
    ("evaluation",),
    ("pipeline",),
    ("benchmarks",),
    ("ablation",),
    ("launch",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
TOP = {
    ".ci", ".github", ".gitignore", "LICENSE", "README.md", "configs", "launch", "maep", "pyproject.toml", "shards",
    "tests",
}  # fmt: skip


def room(path: Path) -> str:
    """The folder at the top of the package that a file is in, or its own stem there."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name below maep) of what a file imports from the package, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            package, _, name = f"{prefix}{alias.name}".partition(".")
            if package == PACKAGE.name:
                yield node.lineno, name


def target(name: str) -> str:
    """The room that a dotted name is in; what is no room is a name in the package's own `__init__`."""
    first = name.partition(".")[0]
    is_room = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
    return first if first and is_room else "__init__"


def arrows() -> dict[tuple[str, str], list[str]]:
    """`{(room, room it imports from): places}`; the front door, which only forwards, aside."""
    places: dict[tuple[str, str], list[str]] = {}
    for path in MODULES:
        for line, name in imports(path) if path != PACKAGE / "__init__.py" else ():
            if room(path) != target(name):
                places.setdefault((room(path), target(name)), []).append(f"{path.relative_to(ROOT)}:{line}: {name}")
    return places


def test_every_room_has_a_floor() -> None:
    """A new folder is put into FLOORS, and so into an order."""
    assert {room(path) for path in MODULES} == set(FLOOR)


def test_no_import_runs_up() -> None:
    """Lazy imports count; names that a registry keeps as text (maep.config.implementations) do not."""
    assert [place for (room, below), places in arrows().items() if FLOOR[room] < FLOOR[below] for place in places] == []


def test_rooms_of_one_floor_form_no_circle() -> None:
    """One may import from the other, but not both; with the order of floors there is no circle at all."""
    pairs = {(room, other) for room, other in arrows() if FLOOR[room] == FLOOR[other]}
    assert {pair for pair in pairs if pair[::-1] in pairs} == set()
    assert max(map(len, FLOORS)) <= 2, "three rooms on a floor could form a longer circle"


def module(name: str) -> str:
    """The file that a dotted name is of, below the package: itself, or what it is a name in."""
    path = PACKAGE.joinpath(*name.split("."))
    if path.with_suffix(".py").is_file():
        return str(path.relative_to(PACKAGE).with_suffix(".py"))
    return str(path.relative_to(PACKAGE) / "__init__.py") if path.is_dir() else module(name.rpartition(".")[0])


def test_files_form_no_circle() -> None:
    """Nor do those of one room, not even for the sake of an annotation: one of two can be read without the other."""
    files = {str(path.relative_to(PACKAGE)): path for path in MODULES if path != PACKAGE / "__init__.py"}
    graph = {file: {module(name) for _, name in imports(path)} - {file} for file, path in files.items()}
    assert sum(len(imported) for imported in graph.values()) > len(graph)
    TopologicalSorter(graph).prepare()


def test_stems_are_unique() -> None:
    """A file is found by its name alone."""
    stems = Counter(path.stem for path in MODULES if path.name != "__init__.py")
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_only_its_own_file_asks_for_maep() -> None:
    """Whatever is done with a purifier is done through its kind, for all kinds alike."""
    asking = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("isinstance", "issubclass")
        and "MAEPurifier" in ast.unparse(node)
    ]
    assert [place for place in asking if not place.startswith("maep/purifiers/mae.py")] == []


def test_the_top_level_is_fixed() -> None:
    """Nothing new stands beside README.md, whether committed or about to be."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {file.partition("/")[0] for file in files} - TOP == set()


def test_an_upward_import_is_noticed(tmp_path: Path) -> None:
    """In a function as well."""
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from maep.cli import paper\nimport maep.config.load\nfrom maep import __version__\n")
    assert sorted(target(name) for _, name in imports(file)) == ["__init__", "cli", "config"]


def test_text_is_utf8_whatever_the_locale_says() -> None:
    """Every file that is read or written as text names its encoding.

    In a locale of another one, Python's own choice ends a page with `…` in it after hours of work.
    """
    files = [*MODULES, *(path for folder in ("launch", "shards") for path in (ROOT / folder).rglob("*.py"))]
    assert [f"{path}:{line}" for path in files for line in _lines_without_encoding(path)] == []


def _lines_without_encoding(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and not any(keyword.arg == "encoding" for keyword in node.keywords):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            opened = name == "open" and not (isinstance(function, ast.Attribute) and _name_of(function) == "tarfile")
            if name in ("read_text", "write_text") or (opened and _is_text_mode(node)):
                yield node.lineno


def _name_of(attribute: ast.Attribute) -> str:
    return getattr(attribute.value, "id", "")


def _is_text_mode(call: ast.Call) -> bool:
    """Whether an argument is a mode such as "a+", and not one of bytes."""
    values = [node.value for node in (*call.args, *(keyword.value for keyword in call.keywords))
              if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip
    return any(value and set(value) <= set("rwaxt+") for value in values)
