"""The documentation builds as a site without a warning; its pages ask nothing of the network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from loop.cli.main import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "-f",
        "website/mkdocs.yml",
        "-d",
        str(folder),
    ]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return folder


@pytest.mark.slow
def test_every_page_is_in_the_site_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "commands", "python", "changelog"} <= set(
        pages
    )
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)\"", page)
        loaded += re.findall(r"<link[^>]* rel=\"stylesheet\"[^>]* href=\"([^\"]+)\"", page)
        assert [address for address in loaded if "//" in address] == [], name
        assert {
            address for address in loaded if not (site / address.lstrip("/").partition("?")[0]).exists()
        } == set(), name


@pytest.mark.slow
def test_the_reference_has_every_command_and_the_docstrings_of_the_interface(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for inner in getattr(command, "commands", {"": command}):
            assert f">{' '.join(filter(None, ['prefloop', name, inner]))}<" in commands
    assert "--until" in commands
    python = (site / "python.html").read_text(encoding="utf-8")
    assert "Run the campaign, or continue it where it stopped" in python
