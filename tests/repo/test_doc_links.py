"""Every relative link in the pages leads to a file, and every anchor to a heading of that file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def prose(page: Path) -> str:
    """The text of a page without its code blocks, whose brackets and number signs are neither links nor headings."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them: equal headings are numbered."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?)\s*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.append(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return {anchor if n == 0 else f"{anchor}-{n}" for i, anchor in enumerate(found) for n in [found[:i].count(anchor)]}


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            missing.append(link)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    headings = "# One `two` three\n\n# Twice\n\n# Twice\n\n"
    links = "[a](#one-two-three) [b](#twice-1) [c](#gone) [d](gone.md) [e](#twice-2)\n"
    page = tmp_path / "page.md"
    page.write_text(headings + links + "```\n# code\n[f](also-gone.md)\n```\n", encoding="utf-8")
    assert broken(page) == ["#gone", "gone.md", "#twice-2"]
