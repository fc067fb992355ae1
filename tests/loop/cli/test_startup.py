"""The command answers at once: help and plan load none of the heavy libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "vllm", "datasets", "peft", "accelerate", "reasoning_gym")
LIGHT_MODULES = (
    *("judges", "judges.contract", "judges.resolve", "trainer", "trainer.settings"),
    *("loop", "loop.cli.main", "loop.view.run_view", "loop.trackers.driver"),
)
REPORT = "import json, sys; print(json.dumps(sorted(set(sys.modules) & set({heavy!r}))))"
COMMAND = """
import sys
from loop.cli.main import main
sys.argv = ["prefloop", *{arguments!r}]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
sys.stdout.flush()
print()
{report}
sys.exit(code)
"""


def heavy_modules_after(code: str, folder: Path) -> list[str]:
    """Run the code in a new interpreter, in a folder of its own; the last line it prints lists what it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    loaded: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return loaded


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_a_front_door_loads_no_heavy_library(module: str, tmp_path: Path) -> None:
    assert heavy_modules_after(f"import {module}\n{REPORT.format(heavy=HEAVY)}", tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["train-reward", "--help"],
        ["plan", "quickstart"],
        ["plan", "quickstart", "--json"],
    ],
    ids=" ".join,
)
def test_help_and_plan_load_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    code = COMMAND.format(arguments=arguments, report=REPORT.format(heavy=HEAVY))
    assert heavy_modules_after(code, tmp_path) == []


def test_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    heavy_modules_after(COMMAND.format(arguments=["plan", "quickstart"], report=REPORT.format(heavy=())), tmp_path)
    assert list(tmp_path.iterdir()) == []
