"""What `prefloop status`, `show` and `plan` print about a run."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.bad_input import call
from tests.helpers.campaigns import Cli, Ended, copy_run, rows, times

METRICS = ("sampled_accuracy", "greedy_accuracy", "well_formed_share", "accuracy_among_well_formed")


@pytest.fixture
def run(cli: Cli, reference: Path) -> Path:
    return copy_run(reference, cli)


def told(ended: Ended) -> Any:
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_status_as_json_lists_the_iterations_from_the_base_model_on(cli: Cli, run: Path) -> None:
    state = told(cli("status", "campaign", "--json"))
    assert [it["iteration"] for it in state["iterations"]] == [0, 1, 2]
    for it in state["iterations"]:
        for name in ("gate", "test"):
            for metric in METRICS:
                interval = it[name][metric]
                assert interval.keys() == {"value", "low", "high", "n"}
                assert interval["low"] <= interval["value"] <= interval["high"]
    assert state["complete"]
    assert state["incumbent"] == 2
    assert state["gains"].keys() == set(METRICS)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == state["iterations"]


def test_run_as_json_tells_what_status_tells(cli: Cli, run: Path, settings: dict[str, Any]) -> None:
    ended = cli("run", cli.write(settings), "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == told(cli("status", run, "--json"))


def test_status_prints_a_table_that_fits_the_terminal(cli: Cli, run: Path) -> None:
    ended = cli("status", run, env={"COLUMNS": "80"})
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    for words in ("sampled", "promoted", "base", "Incumbent: iteration 2", "well formed share", "prompt", "paired"):
        assert words in ended.out
    assert "Not complete" not in ended.out


def test_status_of_an_unfinished_run_says_how_to_go_on(cli: Cli, run: Path) -> None:
    (run / "iter-002" / "promotion.json").unlink()
    (run / "iter-002" / "eval" / "manifest.json").unlink()
    ended = cli("status", run)
    assert ended.code == 0
    assert "in progress" in ended.out
    assert f"prefloop run {run}" in ended.out.replace("\n", " ")
    assert [it["finished"] for it in told(cli("status", run, "--json"))["iterations"][1:]] == [True, False]


def test_status_of_a_run_in_progress_says_who_works_on_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "iter-002" / "promotion.json").unlink()
    (run / "lock").write_text(f"pid {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    ended, _ = call(("status", str(run)), monkeypatch)
    assert f"Running: process {os.getpid()}. Follow it with: prefloop watch" in ended.out
    assert "Not complete" not in ended.out


def test_show_prints_prompts_with_responses_verdicts_and_pairs(cli: Cli, run: Path) -> None:
    found = told(cli("show", "campaign@1", "--limit", "99", "--json"))
    sampled = rows(*sorted((run / "iter-001" / "sample").glob("*.parquet")))
    judged = {row["response_id"]: row for row in rows(*sorted((run / "iter-001" / "judge").glob("*.parquet")))}
    shown = [response for prompt in found for response in prompt["responses"]]
    assert len(found) == 16
    assert [(r["response_id"], r["text"]) for r in shown] == [(r["response_id"], r["text"]) for r in sampled]
    assert all(r["verdict"]["score"] == judged[r["response_id"]]["score"] for r in shown)
    pairs = [[p["chosen_id"], p["rejected_id"]] for p in rows(run / "iter-001" / "pair" / "pairs.parquet")]
    assert sorted(pair for prompt in found for pair in prompt["pairs"]) == sorted(pairs)
    asked = {row["id"]: json.loads(row["messages"])[-1]["content"] for row in rows(run / "prompts" / "train.parquet")}
    assert all(prompt["prompt"] == asked[prompt["prompt_id"]] for prompt in found)


def test_show_finds_a_prompt_by_its_text_and_a_held_out_set(cli: Cli, run: Path) -> None:
    one = rows(run / "prompts" / "test.parquet")[0]
    found = told(cli("show", "campaign@2", "--set", "test", "--prompt", one["id"], "--json"))
    assert [prompt["prompt_id"] for prompt in found] == [one["id"]]
    assert [r["temperature"] == 0 for r in found[0]["responses"]] == [True, False, False]
    assert all(r["verdict"]["kind"] == "score" for r in found[0]["responses"])
    text = cli("show", "campaign@1", "--limit", "2")
    assert text.code == 0
    assert text.out.count("target: ") == 2
    assert "pairs (chosen>rejected): " in cli("show", "campaign@1", "--limit", "16").out


def test_show_of_an_iteration_or_set_that_is_not_there_says_what_is(cli: Cli, run: Path) -> None:
    for args, words in {
        ("campaign@7",): "it has: 0, 1, 2",
        ("campaign",): "RUN@K",
        ("campaign@1", "--set", "all"): "gate",
    }.items():
        ended = cli("show", *args)
        assert ended.code == 2
        assert words in ended.err


def test_plan_says_where_a_run_would_go_on_and_touches_nothing(cli: Cli, run: Path, settings: dict[str, Any]) -> None:
    config, before = cli.write(settings), times(run)
    assert "all 2 iterations are finished" in cli("plan", config).out
    for name in ("promotion.json", "eval/manifest.json", "train/manifest.json"):
        (run / "iter-002" / name).unlink()
        before.pop(f"iter-002/{name}")
    planned = told(cli("plan", config, "--json"))
    assert planned["resume"] == "it continues in iteration 2 at stage train"
    assert planned["engine"] == "transformers"
    assert [it["responses"] for it in planned["iterations"]] == [64, 64]
    assert "train.beta: null → 0.2" in cli("plan", config, "train.beta=0.2").out
    assert times(run) == before


@pytest.mark.slow
def test_plan_with_check_builds_the_judge_and_opens_the_data(cli: Cli, settings: dict[str, Any]) -> None:
    checked = told(cli("plan", cli.write(settings), "--check", "--json"))["checked"]
    assert checked["prompts"]["train"] == 48
    assert "Parity" in checked["judge"]
    assert "torch" in checked["libraries"]
    assert not cli.runs.exists()
