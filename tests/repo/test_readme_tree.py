"""The README's tree, one line per file, equals the tree."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("loop", "judges", "trainer")
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
DRAWING = str.maketrans("│├└─┬╰╭", "       ")


def tree_block(readme: str) -> str:
    """The fenced block that has a line for each of the three rooms."""
    for match in FENCE.finditer(readme):
        drawn = (line.translate(DRAWING).split(maxsplit=1) for line in match[1].splitlines())
        first_words = {words[0] for words in drawn if words}
        if {f"{room}/" for room in ROOMS} <= first_words:
            return match[1]
    pytest.fail("README.md has no fenced block with lines for loop/, judges/ and trainer/: the tree is missing")


def paths_in(block: str) -> Iterator[str]:
    """The files a drawn tree lists: a line's first word, inside the folders above it that are indented less."""
    folders: list[tuple[int, str]] = []
    for line in filter(str.strip, block.splitlines()):
        plain = line.translate(DRAWING)
        indent, name = len(plain) - len(plain.lstrip()), plain.split(maxsplit=1)[0]
        while folders and folders[-1][0] >= indent:
            folders.pop()
        if name.endswith("/"):
            folders.append((indent, name))
        else:
            yield str(PurePosixPath(*(folder for _, folder in folders), name))


def files_of_rooms() -> set[str]:
    """Every source file of the three rooms; `__init__.py` goes without saying."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in names if PurePosixPath(name).name != "__init__.py" and (ROOT / name).exists()}


def in_rooms(paths: Iterator[str]) -> set[str]:
    """Paths below a room, wherever the drawing's root folder is; `__init__.py` may be listed and need not be."""
    found = (path.removeprefix("prefloop/") for path in paths)
    return {path for path in found if path.split("/")[0] in ROOMS and not path.endswith("__init__.py")}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the list of files comes from git")
def test_the_readme_tree_equals_the_tree() -> None:
    listed = in_rooms(paths_in(tree_block((ROOT / "README.md").read_text(encoding="utf-8"))))
    existing = files_of_rooms()
    missing, gone = sorted(existing - listed), sorted(listed - existing)
    assert not missing, f"add a line for each of these to the tree in README.md: {missing}"
    assert not gone, f"the tree in README.md lists files that do not exist: {gone}"


BOXES = """prefloop/
├── loop/        the corridor
│   ├── cli.py   commands
│   └── engines/
│       └── base.py  what both engines share
└── README.md
"""
INDENTED = """loop/  the corridor
  cli.py  commands
  engines/
    base.py  what both engines share
README.md
"""
FULL_PATHS = """loop/cli.py           commands
loop/engines/base.py  what both engines share
"""


@pytest.mark.parametrize("drawing", [BOXES, INDENTED, FULL_PATHS], ids=["boxes", "indented", "full paths"])
def test_every_way_to_draw_a_tree_is_read(drawing: str) -> None:
    assert in_rooms(paths_in(drawing)) == {"loop/cli.py", "loop/engines/base.py"}
