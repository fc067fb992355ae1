"""docs/methods.md is the table of losses, in words."""

from pathlib import Path

from trainer.losses.methods_page import NEED_IN_WORDS, page
from trainer.losses.table import METHODS

ROOT = Path(__file__).resolve().parents[3]


def cells(name: str) -> list[str]:
    (line,) = (line for line in page().splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_page_in_the_docs_is_current() -> None:
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == page(), "docs/methods.md is out of date: run `make docs`"


def test_every_row_has_a_line_of_seven_cells() -> None:
    assert {len(cells(name)) for name in METHODS} == {7}


def test_a_line_holds_words_needs_bounds_and_choices() -> None:
    _, relation, _, paper, needs, arguments, _ = cells("exo")
    assert (relation, paper, needs) == ("pairs", "Ji et al. 2024, arXiv:2402.00856", NEED_IN_WORDS["reference"])
    assert arguments.split("<br>")[1].startswith("`label_smoothing` = `0.001` (> 0, < 0.5): ")
    assert arguments.split("<br>")[2].startswith("`labels` = `normalised` (or `official`): ")


def test_a_flag_is_written_as_in_yaml() -> None:
    assert "`clamp` = `true`: " in cells("wpo")[5]


def test_a_loss_without_a_reference_needs_nothing() -> None:
    assert cells("simpo")[4] == "–"
