"""The rules of the house, read off the source: who imports whom, and which file alone may know a thing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("loop", "judges", "trainer")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
RUN_FOLDER_NAMES = {"campaign.yaml", "lineage.json", "events.jsonl", "metrics.jsonl", "promotion.json", "manifest.json"}
RUN_FOLDER_NAMES |= {"run.json"}
RUN_FOLDER_PREFIXES = ("iter-", "shard-")
API_CLIENTS = {"http.client", "urllib.request", "requests", "httpx", "aiohttp", "openai"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module named by an import, anywhere in a file; relative imports stay inside their room and are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses(path: Path, modules: set[str]) -> bool:
    found = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
    return any(name == module or name.startswith(module + ".") for name in found for module in modules)


def plain_strings(tree: ast.AST) -> Iterator[str]:
    """String constants that the code uses: docstrings, which may talk about anything, are left out."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def names_a_run_folder_path(text: str) -> bool:
    """A file name of the run folder, alone or at the end of a path, or the beginning of a numbered name."""
    return text.rpartition("/")[2] in RUN_FOLDER_NAMES or text.startswith(RUN_FOLDER_PREFIXES)


@pytest.mark.parametrize(("room", "strangers"), [("judges", {"loop", "trainer"}), ("trainer", {"loop", "judges"})])
def test_a_room_imports_neither_the_corridor_nor_the_other_room(room: str, strangers: set[str]) -> None:
    assert [name_of(path) for path in SOURCES if path.is_relative_to(ROOT / room) and uses(path, strangers)] == []


def test_only_the_vllm_engine_imports_vllm() -> None:
    assert [name_of(path) for path in SOURCES if uses(path, {"vllm"})] == ["loop/engines/vllm_engine.py"]


def test_one_file_talks_to_an_api() -> None:
    assert [name_of(path) for path in SOURCES if uses(path, API_CLIENTS)] == ["judges/llm/api.py"]


def test_only_the_run_folder_knows_its_paths() -> None:
    knowing = [
        name_of(path)
        for path in SOURCES
        if any(map(names_a_run_folder_path, plain_strings(ast.parse(path.read_text(encoding="utf-8")))))
    ]
    assert knowing == ["loop/store/run_folder.py", "loop/store/stage.py"]


def test_every_file_begins_by_saying_what_it_is() -> None:
    silent = [name_of(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


def test_the_scanner_sees_every_way_to_import() -> None:
    tree = ast.parse(
        "import vllm.utils\nfrom loop import cli\nfrom .near import x\ndef f():\n    import torch.nn as nn\n"
    )
    assert list(imported_modules(tree)) == ["vllm.utils", "loop", "loop.cli", "torch.nn"]


def test_the_path_rule_sees_names_in_code_and_not_in_docstrings() -> None:
    tree = ast.parse('"""Writes manifest.json."""\na = "manifest.json"\nb = f"iter-{1:03}"\nc = "x/promotion.json"\n')
    assert [text for text in plain_strings(tree) if names_a_run_folder_path(text)] == [
        "manifest.json",
        "x/promotion.json",
        "iter-",
    ]
