"""Layers: what each package of `loop` may import, no circular imports, and module names that mean one thing."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("loop", "judges", "trainer")
GROUND = {"errors", "seeds", "redact", "format", "interrupt"}
"""Modules of `loop` that every package may import; they import nothing of the project."""
MAY: dict[str, set[str]] = {
    "config": {"trainer"},
    "store": {"config", "judges", "trainer"},
    "prompts": {"config", "store", "judges", "trainer"},
    "pairing": {"config", "store", "prompts", "trainer"},
    "engines": {"config", "judges", "trainer"},
    "measure": {"config", "store", "pairing"},
    "view": {"config", "store", "prompts", "pairing", "measure", "trainer"},
    "report": {"config", "store", "prompts", "pairing", "measure", "view", "trainer"},
    "workers": {"config", "store", "prompts", "pairing", "engines", "view", "judges", "trainer"},
    "trackers": {"config", "store", "measure", "view", "workers"},
    "campaign": {
        *("config", "store", "prompts", "pairing", "engines", "measure", "view", "report", "workers", "trackers"),
        *("judges", "trainer"),
    },
    "commands": {
        *("config", "store", "prompts", "engines", "measure", "view", "report", "workers", "trackers", "campaign"),
        *("judges", "trainer"),
    },
    "api": {"config", "store", "view", "report", "campaign", "commands"},
    "cli": {"config", "store", "view", "report", "campaign", "commands", "judges", "trainer"},
}
"""Debts: `workers` imports `view` for the progress bar; `view` and `report` import the settings of `trainer`."""
SMALL = {
    "loop.report.serve": "the only server of the project",
    "judges.people.label_page": "stands beside its template",
    "trainer.losses.reference_free": "one file per family of losses",
    "trainer.losses.token_level": "one file per family of losses",
}
"""Modules of under 60 lines with one importer, and why each is not part of it."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


def imports_of(tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules among `modules` that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & modules or {node.module}
    return found & modules


IMPORTS = {name: imports_of(ast.parse(path.read_text("utf-8")), set(MODULES)) for name, path in MODULES.items()}


def first_circle(imports: dict[str, set[str]]) -> list[str]:
    """A list of modules of which each imports the next and the last the first; empty if there is none."""
    finished: set[str] = set()
    for start in imports:
        path: list[str] = []
        waiting = [(start, 0)]
        while waiting:
            name, depth = waiting.pop()
            for left in path[depth:]:
                finished.add(left)
            del path[depth:]
            if name in path:
                return path[path.index(name) :]
            if name not in finished:
                path.append(name)
                waiting += [(other, depth + 1) for other in sorted(imports[name])]
        finished |= set(path)
    return []


def package_of(module: str) -> str:
    """`config` of loop.config.load, `judges` of anything in judges, the module's name for a file directly in loop."""
    room, *rest = module.split(".")
    return rest[0] if room == "loop" and rest else room


def test_no_module_imports_itself_through_others() -> None:
    assert first_circle(IMPORTS) == []


@pytest.mark.parametrize(
    ("imports", "circle"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c"]),
        ({"a": {"a"}}, ["a"]),
        ({"d": {"a"}, "a": {"b", "e"}, "e": {"d"}, "b": set()}, ["d", "a", "e"]),
    ],
)
def test_the_search_for_circles_finds_them(imports: dict[str, set[str]], circle: list[str]) -> None:
    assert first_circle(imports) == circle


def test_every_package_of_loop_has_its_row() -> None:
    assert {path.parent.name for path in (ROOT / "loop").glob("*/__init__.py")} == set(MAY)
    assert {path.stem for path in (ROOT / "loop").glob("*.py")} == GROUND | {"__init__"}


def test_packages_import_only_what_lies_below_them() -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in sorted(others)
        if name.startswith("loop.")
        and package_of(other) not in {package_of(name), *GROUND, *MAY.get(package_of(name), ())}
    ]
    assert upward == []


def test_the_table_allows_nothing_that_is_not_used() -> None:
    used = defaultdict(set)
    for name, others in IMPORTS.items():
        used[package_of(name)] |= {package_of(other) for other in others}
    assert {package: sorted(MAY[package] - used[package]) for package in MAY} == {package: [] for package in MAY}


def test_no_two_modules_of_loop_have_one_name() -> None:
    by_name = defaultdict(list)
    for name in MODULES:
        if name.startswith("loop."):
            by_name[name.rpartition(".")[2]].append(name)
    assert [names for names in by_name.values() if len(names) > 1] == []


def test_a_small_module_serves_two_others() -> None:
    small = {
        name
        for name, path in MODULES.items()
        if path.name != "__init__.py"
        and len(path.read_text("utf-8").splitlines()) < 60
        and sum(name in others for others in IMPORTS.values()) < 2
    }
    assert small == set(SMALL)


def test_functions_and_modules_stay_short() -> None:
    """No function above 50 lines, no module above 300, at most six files beside the packages of loop."""
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}
    functions = [
        (name, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [one for one in functions if one[2] > 50] == []
    assert [name for name, path in MODULES.items() if len(path.read_text("utf-8").splitlines()) > 300] == []
    assert len(list((ROOT / "loop").glob("*.py"))) <= 6
