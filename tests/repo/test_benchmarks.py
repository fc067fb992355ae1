"""The benchmarks' own plumbing: a comparison starts each side in a process of its own."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIDE = """
import json, pathlib, sys

job = pathlib.Path(sys.argv[sys.argv.index("--job") + 1])
each = json.loads(job.read_text())["each"]
(job.parent / "result.json").write_text(json.dumps({"each": [{"losses": [len(each)]} for _ in each]}))
"""


def test_the_comparison_of_losses_runs_its_sides_by_the_training_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import losses
    import training

    assert Path(training.__file__).name == "training.py"
    script = tmp_path / "side.py"
    script.write_text(SIDE, encoding="utf-8")
    monkeypatch.setattr(training, "__file__", str(script))
    found = losses.losses_of({"threads": 1}, ["dpo", "cdpo"], "prefloop", tmp_path)
    assert found == {"dpo": [2], "cdpo": [2]}
