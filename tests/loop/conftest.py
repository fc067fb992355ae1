"""Shared by the tests of whole campaigns: a tiny model, its settings, and one campaign that nothing interrupted."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny
from tests.helpers.campaigns import Cli
from tests.helpers.inprocess import Here


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the prompts and the judge."""
    folder = tmp_path_factory.mktemp("toys")
    tiny.save_model(folder / "model")
    tiny.save_prompts(folder / "prompts.jsonl")
    (folder / "parity.py").write_text(tiny.PARITY, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def _settings(toys: Path) -> dict[str, Any]:
    return tiny.settings(toys / "model", toys / "prompts.jsonl", toys / "parity.py")


@pytest.fixture
def settings(_settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the reference campaign, to change at will."""
    return copy.deepcopy(_settings)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command, in a folder of its own."""
    return Cli(tmp_path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The same command in this process, for what is not about processes."""
    return Here(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def reference(_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a campaign that was never interrupted; tests only read it."""
    cli = Cli(tmp_path_factory.mktemp("reference"))
    return cli.run(cli.write(_settings), "--name", "reference")
