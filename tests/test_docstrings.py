"""Every public function says what it does, and the arguments that docstrings explain are the function's own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "maep"
MODULES = sorted(PACKAGE.rglob("*.py"))
# `images: [N, 3, H, W]…` or `purified, clean: …` where a sentence begins.
EXPLAINED = re.compile(r"(?:^|(?<=[.;] ))([a-z_]\w*(?:, [a-z_]\w*)*(?:,? and [a-z_]\w*)?): ", re.MULTILINE)
WORDS = {"default"}  # "; default: as it was saved" is no argument

Function = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Functions and classes of a module, and those in its classes; not what is inside of functions."""
    for node in tree.body:
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield node
            yield from definitions(node)


def explained(docstring: str) -> list[str]:
    """The names that a docstring explains: paragraphs become one line, and code in backticks is no prose."""
    text = re.sub(r"``?[^`]*``?", "…", docstring)
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    lists = EXPLAINED.findall("\n".join(paragraphs))
    return [name for names in lists for name in re.split(r",? and |, ", names) if name not in WORDS]


def arguments(function: Function) -> set[str]:
    """The names in a signature."""
    signature = function.args
    optional = filter(None, (signature.vararg, signature.kwarg))
    arguments = [*signature.posonlyargs, *signature.args, *signature.kwonlyargs, *optional]
    return {argument.arg for argument in arguments}


def attributes(cls: ast.ClassDef) -> set[str]:
    """What a class's docstring may explain: its fields, attributes and methods, and what it is made from."""
    names: set[str] = set()
    for node in ast.walk(cls):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            names.add(node.attr)
        elif isinstance(node, Function):
            names.add(node.name)
            names |= arguments(node) if node.name in ("__init__", "__new__") else set()
    return names


def inherited(cls: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> Iterator[ast.ClassDef]:
    """A class and those of this package that it is made from, by name."""
    yield cls
    for base in cls.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        for other in classes.get(name, []):
            if other is not cls:
                yield from inherited(other, classes)


def by_name() -> dict[str, list[ast.ClassDef]]:
    """Every class of the package."""
    classes: dict[str, list[ast.ClassDef]] = {}
    for path in MODULES:
        for node in definitions(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    return classes


CLASSES = by_name()


def unknown_names(tree: ast.Module) -> list[str]:
    """`line name: argument` of what docstrings explain although there is no such argument or attribute."""
    problems = []
    for node in definitions(tree):
        names = explained(ast.get_docstring(node) or "")
        if isinstance(node, ast.ClassDef):
            allowed = set().union(*(attributes(cls) for cls in inherited(node, CLASSES)))
        else:
            allowed = arguments(node)
        problems += [f"line {node.lineno}, {node.name}: {name}" for name in names if name not in allowed]
    return problems


def needs_docstring(function: Function, protocol: set[str]) -> bool:
    """Whether it is public, and neither an overload nor an implementation of what a protocol beside it explains."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in function.decorator_list}
    return not function.name.startswith("_") and "overload" not in decorators and function.name not in protocol


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, and public methods of public classes, without a docstring."""
    public = [node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name.startswith("_"))]
    nodes = list(definitions(ast.Module(public, [])))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    abstract = [cls for cls in classes if {ast.unparse(base) for base in cls.bases} & {"Protocol", "ABC"}]
    explained_there = {
        node.name for cls in abstract for node in cls.body if isinstance(node, Function) and ast.get_docstring(node)
    }
    return [
        f"line {node.lineno}: {node.name}"
        for node in nodes
        if isinstance(node, Function) and not ast.get_docstring(node) and needs_docstring(node, explained_there)
    ]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_docstrings(path: Path) -> None:
    """Of one module."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module says nothing of itself"
    assert undocumented(tree) == []
    assert unknown_names(tree) == []


def test_a_renamed_argument_is_noticed() -> None:
    """In the first place and after a sentence, in a function and in a dataclass; code and prose are left alone."""
    text = '''
"""A module."""
def load(images, device):
    """Load: `device: x` is code, and this line, see
    below: is prose.

    images, masks: [N, 3, H, W]. devise: where to. Raises UserError: never.
    """
class Settings:
    """seconds: since then; step: one of them."""
    seconds: float
'''
    assert unknown_names(ast.parse(text)) == ["line 3, load: masks", "line 3, load: devise", "line 9, Settings: step"]
    assert undocumented(ast.parse("class A:\n    def b(self): ...\ndef _c(): ...")) == ["line 2: b"]


def test_arguments_are_explained_in_this_form() -> None:
    """So many are today that the pattern is known to fit; were it to miss all, nothing above would fail."""
    docstrings = (
        ast.get_docstring(node) or "" for path in MODULES for node in definitions(ast.parse(path.read_text()))
    )
    assert sum(len(explained(docstring)) for docstring in docstrings) > 400
