"""docs/api.md lists everything public with its signature: a change of one is seen here, and is a change of the page."""

import inspect
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

import judges
import loop

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
LISTED = [
    line
    for block in re.findall(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("loop.", "judges."))
]
NAMES = {re.split(r"[( ]", line)[0] for line in LISTED}


def as_listed(name: str) -> str:
    """A public object as the page lists it: a call with its signature, anything else by its name alone."""
    package, *parts = name.split(".")
    value = resolve_name(f"{package}:{'.'.join(parts)}")
    listed_by_name = not callable(value) or (inspect.isclass(value) and f"{name}(" not in "\n".join(LISTED))
    return name if listed_by_name else f"{name}{signature(value)}"


def signature(value: object) -> str:
    """Its signature without `self` and without the modules of types."""
    found = inspect.signature(value)  # type: ignore[arg-type]
    known = [parameter for parameter in found.parameters.values() if parameter.name != "self"]
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", str(found.replace(parameters=known)))
    return text.replace(" -> None", "")


@pytest.mark.parametrize("line", LISTED)
def test_what_is_listed_has_that_signature(line: str) -> None:
    assert as_listed(re.split(r"[( ]", line)[0]) == line


def test_every_public_name_and_method_is_listed() -> None:
    public = {f"{module.__name__}.{name}" for module in (loop, judges) for name in module.__all__}
    for kind in (loop.Campaign, loop.IterationView, loop.Rows):
        public |= {f"loop.{kind.__name__}.{name}" for name in dir(kind) if not name.startswith("_")}
    assert sorted(public - NAMES) == []


def test_an_unknown_name_of_the_package_is_no_name() -> None:
    with pytest.raises(AttributeError, match="module 'loop' has no attribute 'campain'"):
        _ = loop.campain  # type: ignore[attr-defined]


def test_a_changed_signature_is_seen() -> None:
    def run(self: object, *, until: int | None = 3) -> None: ...

    assert signature(run) == "(*, until: int | None = 3)" != signature(loop.Campaign.run)
