"""The map of the code is true: docs/architecture.md lists every package, and the paths that the pages quote exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("loop", "judges", "trainer")
PAGES = ("README.md", "CONTRIBUTING.md", "docs/architecture.md")
ROW = re.compile(r"^\| `((?:loop|judges|trainer)(?:/\w+)*)/` \|", re.MULTILINE)
PATH = re.compile(r"(?<![\w./-])((?:loop|judges|trainer|tests|configs)/[\w./-]*\w/?)")
NAME_IN = re.compile(r"`([\w.]+)`(?: and `([\w.]+)`)? in `((?:loop|judges|trainer)/[\w/]+\.py)`")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def packages() -> set[str]:
    """Every folder of the three rooms that holds an `__init__.py`."""
    found = (path.parent for room in ROOMS for path in (ROOT / room).rglob("__init__.py"))
    return {folder.relative_to(ROOT).as_posix() for folder in found}


def listed() -> list[str]:
    """The packages that have a row in the first table of the architecture page."""
    section = text_of("docs/architecture.md").partition("\n## Packages\n")[2].partition("\n## ")[0]
    return ROW.findall(section)


def test_the_architecture_page_lists_every_package_once_and_no_other() -> None:
    missing, gone = sorted(packages() - set(listed())), sorted(set(listed()) - packages())
    assert not missing, f"add a row for each of these to docs/architecture.md: {missing}"
    assert not gone, f"docs/architecture.md lists packages that do not exist: {gone}"
    assert len(listed()) == len(set(listed()))


def test_the_readme_is_a_short_introduction() -> None:
    assert len(text_of("README.md").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_quotes_exists(page: str) -> None:
    quoted = sorted(set(PATH.findall(text_of(page))))
    assert quoted
    assert [path for path in quoted if not (ROOT / path).exists()] == []


def defines(source: str, name: str) -> bool:
    return re.search(rf"(def|class) {name}\b|^\s*{name}\b.*[:=]", source, re.MULTILINE) is not None


def test_every_name_that_the_map_places_in_a_file_is_defined_there() -> None:
    placed = NAME_IN.findall(text_of("docs/architecture.md"))
    assert len(placed) > 20
    missing = [
        (name, path)
        for *names, path in placed
        for name in filter(None, names)
        if not defines(text_of(path), name.rpartition(".")[2])
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see `loop/store/run_folder.py`.", ["loop/store/run_folder.py"]),
        ("the package `loop/store/` and loop/cli", ["loop/store/", "loop/cli"]),
        ("runs/loop/x.py, https://example.org/loop/y.py and ../loop/z.py", []),
    ],
)
def test_paths_are_found_in_text(text: str, found: list[str]) -> None:
    assert PATH.findall(text) == found
