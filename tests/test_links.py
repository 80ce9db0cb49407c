"""What a README names exists: pages and headings it links to, files, commands, configurations, settings."""

import re
from pathlib import Path

import pytest

from maep.__main__ import VERBS
from maep.config.load import leaves, settings_class
from maep.purifiers.registry import KINDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "maep/README.md",
    "launch/README.md",
    "configs/README.md",
    "shards/README.md",
    "tests/README.md",
    "tests/reports/README.md",
    ".github/CONTRIBUTING.md",
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
FOLDER_PATH = re.compile(r"(?<![\w./:-])(?:maep|launch|shards|configs|tests|\.github|\.ci)/[\w./-]*\w(?![\w*{<…-])")
SOURCE_FILE = re.compile(r"(?<![\w./*-])[\w/-]+\.py\b")
VERB = re.compile(r"(?<!from )(?<!import )(?<![\w/.-])maep ([a-z][a-z-]*)")
CONFIGURATION = re.compile(r"\bcfg=([\w/-]+)")
SETTINGS = {key for kind in KINDS for key in leaves(settings_class(kind))}
SECTIONS = "|".join({key.partition(".")[0] for key in SETTINGS})
SETTING = re.compile(rf"(?<![\w./-])(?:{SECTIONS})\.[a-z_0-9]+\b(?![./(])")
CLASS = re.compile(r"`([A-Z][a-z]+[A-Z]\w+)`")
CLASSES = {
    name
    for path in (ROOT / "maep").rglob("*.py")
    for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)
}
PLACEHOLDER = re.compile(r"NAME|NN|PATH|TABLE|IDENTITY|HASH")
FILE_ENDINGS = (".json", ".safetensors", ".py", ".html", ".yaml", ".md")


def code_of(page: str) -> str:
    """The code spans and blocks of a page."""
    return "\n".join(CODE.findall((ROOT / page).read_text()))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, those in code blocks left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def has_match(pattern: str, *folders: Path) -> bool:
    """Whether a path, whose placeholders stand for anything, exists below one of the folders."""
    return any(next(folder.glob(PLACEHOLDER.sub("*", pattern)), None) is not None for folder in folders)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link names a file or folder, and its anchor a heading there."""
    for target in LINK.findall((ROOT / page).read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    """Every path below a folder of the project, and every source file, is there."""
    code = code_of(page)
    for name in FOLDER_PATH.findall(code):
        assert has_match(name, ROOT, (ROOT / page).parent), f"{page}: {name}"
    for name in SOURCE_FILE.findall(code):
        places = [ROOT, (ROOT / page).parent]
        assert has_match(name, *places) or ("/" not in name and has_match(f"**/{name}", *places[1:])), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    """Every verb of `maep` is one, every `cfg=NAME` a file, every setting in the schema, every class in a module."""
    code = code_of(page)
    assert set(VERB.findall(code)) <= set(VERBS), page
    for name in CONFIGURATION.findall(code):
        assert name.startswith("runs/") or has_match(f"{name}.yaml", ROOT / "configs"), f"{page}: cfg={name}"
    settings = {name for name in SETTING.findall(code) if not name.endswith(FILE_ENDINGS)}
    assert settings <= SETTINGS, page
    assert set(CLASS.findall(code)) <= CLASSES, page


def test_no_page_holds_both_sides_of_a_merge() -> None:
    """A conflict that was committed with its markers."""
    for page in PAGES:
        assert not re.search(r"^(<{7}|>{7}) ", (ROOT / page).read_text(), re.MULTILINE), page
