"""The notebooks of docs/notebooks run from top to bottom, with a tiny model."""

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.helpers import tiny

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "notebooks"
pytestmark = pytest.mark.slow


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> dict[str, str]:
    """Run a notebook in a folder, with other values in its cell of parameters; the code cells with their outputs."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (given,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    given.source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    return {cell.source: json.dumps(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Settings that put a tiny model in the place of the small one."""
    model = tiny.save_model(tmp_path / "model")
    return {"model.base": str(model), "iterations": 1, "threads": 1, "sampling.max_tokens": 12}


def test_the_quickstart_runs_a_campaign(tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = run("quickstart", tmp_path, monkeypatch, SETTINGS=small)
    assert any("decided: " in output for output in outputs.values())
    assert (tmp_path / "my-model" / "model.safetensors").exists()
    assert (tmp_path / "my-pairs.jsonl").exists()
    assert (tmp_path / "runs" / "first" / "report.html").exists()


def test_an_own_judge_makes_pairs(tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = list(run("own-judge", tmp_path, monkeypatch, SETTINGS=small).values())
    assert "2 known examples are right" in outputs[2]
    assert "difference of scores" in outputs[-1]


def test_a_finished_campaign_is_read_and_plotted(
    tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = run("reading-a-campaign", tmp_path, monkeypatch, RUN=str(reference))
    assert "complete" in list(outputs.values())[1]
    assert sum("image/png" in output for output in outputs.values()) == 4
    assert "gain" in list(outputs.values())[-1]
