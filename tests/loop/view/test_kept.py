"""What finished iterations gave is kept and reused: nothing differs by it, and nothing stale is believed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import loop.report.data
import loop.view.status
from loop.cli.main import app
from loop.report.data import read_run
from loop.report.page import render, samples_of
from loop.store import kept
from loop.store.files import read_json, to_json
from loop.store.run_folder import RunFolder
from loop.view.status import collect, keep_states, write_metrics
from tests.helpers.made_runs import Made, make_run, put


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = Made(iterations=4, finished=3, train=6, gate=5, test=5, steps=4, kl=True, reject=(2,))
    return make_run(tmp_path / "run", made)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if in a new process."""
    monkeypatch.setattr(kept, "_REMEMBERED", {})
    monkeypatch.setattr(loop.report.data, "_FINISHED", {})


def never(*_: Any) -> Any:
    raise AssertionError("it was read again")


def test_kept_iterations_are_not_read_again_and_say_the_same(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    first, metrics = collect(run), run.metrics.read_bytes()
    data = read_run(run)
    page = render(data, samples_of(data, run.report))
    keep_states(run, first)
    for process in ("this", "another"):
        if process == "another":
            forget(monkeypatch)
        found = collect(run)
        assert asdict(found) == asdict(first)
        write_metrics(run, found)
        assert run.metrics.read_bytes() == metrics
        data = read_run(run)
        assert render(data, samples_of(data, run.report)) == page
    state_of, numbers_of = loop.view.status.iteration_state, loop.report.data.set_numbers

    def state(run: RunFolder, k: int) -> Any:
        return state_of(run, k) if k == 4 else never()

    def numbers(shards: Any, *settings: float) -> Any:
        return numbers_of(shards, *settings) if not shards or "iter-004" in str(shards) else never()

    monkeypatch.setattr(loop.view.status, "iteration_state", state)
    monkeypatch.setattr(loop.report.data, "set_numbers", numbers)
    forget(monkeypatch)
    assert asdict(collect(run)) == asdict(first)
    assert len(read_run(run).iterations) == 5


@pytest.mark.parametrize("name", ["promotion.json", "train/manifest.json", "eval/metrics.json"])
def test_a_record_that_was_changed_is_read_again(run: RunFolder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_states(run, collect(run))
    changes: dict[str, dict[str, Any]] = {"promotion": {"reason": "another"}, "manifest": {}, "metrics": {}}
    found = read_json(run.root / "iter-003" / name) | changes[Path(name).stem]
    if "manifest" in name:
        found["counts"]["steps"] = 77
    if "metrics" in name:
        found["test"]["mean_length"] = 1234.5
    put(run.root / "iter-003" / name, to_json(found) + b"\n")
    for process in ("this", "another"):
        if process == "another":
            forget(monkeypatch)
        it = collect(run).iterations[3]
        assert it.trained is not None
        assert it.test is not None
        assert (it.reason == "another", it.trained.steps == 77, it.test.mean_length == 1234.5).count(True) == 1
    run.cached_iteration(1).write_text("{damaged", encoding="utf-8")
    forget(monkeypatch)
    assert len(collect(run).iterations) == 5


def test_an_undecided_iteration_is_never_kept(run: RunFolder) -> None:
    keep_states(run, collect(run))
    assert kept.sources_of(run, 4) is None
    run.stage(0, "eval").metrics.unlink()  # the base model is promoted before it is evaluated
    assert kept.sources_of(run, 0) is None
    assert sorted(path.name for path in run.cached_iteration(1).parent.iterdir()) == [f"00{k}.json" for k in range(4)]


def test_the_latest_iterations_alone(run: RunFolder) -> None:
    told = CliRunner().invoke(app, ["status", str(run.root), "--last", "2", "--json"])
    state = json.loads(told.output)
    assert (state["schema"], [it["iteration"] for it in state["iterations"]]) == (1, [3, 4])
    whole = CliRunner().invoke(app, ["status", str(run.root), "--json"])
    assert json.loads(whole.output)["iterations"][3:] == state["iterations"]
