"""People as the judge: the run writes what to label, stops with an exit code of its own, and goes on with the labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.loop.campaigns import Cli, Ended, events, read, refusal, rows, times

WAITING = 3


@pytest.fixture
def by_people(settings: dict[str, Any]) -> dict[str, Any]:
    """One iteration, its responses labelled by people, its evaluation by the judge of the other tests."""
    settings["eval"]["judge"] = settings["judge"]
    settings["judge"] = {"name": "external"}
    return settings | {"iterations": 1}


def waiting(ended: Ended) -> str:
    """What a run says that waits for people."""
    assert ended.code == WAITING, (ended.code, ended.out, ended.err)
    assert "Traceback" not in ended.err
    assert ended.err.strip().startswith("prefloop: Iteration 1 waits for people: ")
    return ended.err


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def put(folder: Path, labels: list[dict[str, Any]]) -> None:
    """What people do with the file that they have downloaded."""
    text = "".join(json.dumps(row) + "\n" for row in labels)
    (folder / "labels.jsonl").write_text(text, encoding="utf-8")


def parity(row: dict[str, Any]) -> dict[str, Any]:
    """People who label as the judge of the other tests does."""
    return {"id": row["id"], "check": row["check"], "label": "wrong" if len(row["response"]) % 2 else "right"}


@pytest.mark.slow
def test_a_run_waits_for_labels_and_goes_on_with_them(cli: Cli, by_people: dict[str, Any], reference: Path) -> None:
    config, folder = cli.write(by_people), cli.runs / "campaign" / "iter-001" / "judge"
    told = waiting(cli("run", config))
    assert "64 responses are to be labelled. Open" in told
    assert all(name in told for name in ("to-label.html", "to-label.jsonl", str(Path("judge") / "labels.jsonl")))
    sheet, before = lines(folder / "to-label.jsonl"), times(cli.runs / "campaign", "iter-001/sample/*")
    sampled = rows(*sorted((reference / "iter-001" / "sample").glob("*.parquet")))
    assert [row["response"] for row in sheet] == [row["text"] for row in sampled]

    put(folder, [parity(row) for row in sheet[:10]])
    told = waiting(cli("run", config))
    assert "64 responses are to be labelled. 10 of them are labelled." in told
    assert "judge.args.missing=abstain" in told
    assert [e["labelled"] for e in events(cli.runs / "campaign", "waiting_for_people")] == [0, 10]

    put(folder, [parity(row) | {"response": row["response"] + "!"} for row in sheet])
    assert "line 1: response of '1-train-" in refusal(cli("run", config))

    put(folder, [parity(row) for row in sheet])
    run = cli.run(config)
    assert times(run, "iter-001/sample/*") == before, "the responses were sampled again"
    verdicts = rows(*sorted(folder.glob("*.parquet")))
    theirs = rows(*sorted((reference / "iter-001" / "judge").glob("*.parquet")))
    assert [(v["response_id"], v["score"]) for v in verdicts] == [(v["response_id"], v["score"]) for v in theirs]
    for name in ("iter-001/pair/pairs.parquet", "iter-001/train/model/model.safetensors", "iter-001/eval/metrics.json"):
        assert (run / name).read_bytes() == (reference / name).read_bytes()
    assert read(folder / "manifest.json")["inputs"]["judge"]["name"] == "external"
    assert read(run / "iter-001" / "eval" / "manifest.json")["inputs"]["judge"]["name"].endswith(":Parity")

    put(folder, [parity(row) | {"label": "right"} for row in sheet])
    told = refusal(cli("run", config))
    assert "labels was" in told
    (folder / "labels.jsonl").unlink()  # what was made of them is kept
    assert cli("run", config).code == 0


@pytest.mark.slow
def test_what_has_no_label_abstains_where_the_user_says_so(cli: Cli, by_people: dict[str, Any]) -> None:
    by_people["judge"]["args"] = {"ask": "pair", "missing": "abstain", "pairs_per_prompt": 2}
    config, folder = cli.write(by_people), cli.runs / "campaign" / "iter-001" / "judge"
    assert "pairs are to be labelled" in waiting(cli("run", config)), "without any label there is nothing to go on with"
    sheet = lines(folder / "to-label.jsonl")
    put(folder, [{"id": row["id"], "check": row["check"], "label": "first"} for row in sheet[::2]])
    run = cli.run(config)
    counts = read(folder / "manifest.json")["counts"]
    assert counts["score"] == 2 * len(sheet[::2])
    assert counts["abstain"] == 64 - counts["score"]
    won = {row["id"].split()[0] for row in sheet[::2]}
    assert {pair["chosen_id"] for pair in rows(run / "iter-001" / "pair" / "pairs.parquet")} <= won


def test_people_who_would_have_to_evaluate_are_refused_with_the_way_out(cli: Cli, settings: dict[str, Any]) -> None:
    settings["judge"] = {"name": "external"}
    told = refusal(cli("run", cli.write(settings)))
    assert "eval.judge={name: exact}" in told
    settings["eval"]["judge"] = {"name": "exact"}
    settings["judge"]["examples"] = "labelled.jsonl"
    assert "people (external) cannot be asked" in refusal(cli("plan", cli.write(settings)))
    assert not cli.runs.exists()


def test_the_plan_names_the_judge_of_the_evaluation(cli: Cli, by_people: dict[str, Any]) -> None:
    planned = cli("plan", cli.write(by_people))
    assert planned.code == 0, planned.err
    assert "judge    external\n" in planned.out
    assert ":Parity in the evaluation" in planned.out


# ---- labelled examples before the start ----


def test_a_judge_that_misses_labelled_examples_stops_the_run_before_it_starts(
    cli: Cli, settings: dict[str, Any]
) -> None:
    examples = cli.folder / "labelled.jsonl"
    labelled = [("even", "right"), ("odd", "wrong"), ("four", "wrong")]
    put_rows = [{"prompt": "?", "response": text, "label": label} for text, label in labelled]
    examples.write_text("".join(json.dumps(row) + "\n" for row in put_rows), encoding="utf-8")
    settings["judge"]["examples"] = "labelled.jsonl"
    config = cli.write(settings)
    for command in (("run", config), ("plan", config, "--check")):
        told = refusal(cli(*command))
        assert f"judges 2 of the 3 labelled examples in {examples} as labelled" in told
        assert "at line 3: 'four', labelled wrong, is right to it (parity; extracted '4')" in told
    assert not (cli.runs / "campaign" / "prompts").exists()
    checked = cli("plan", config, "judge.examples_agreement=0.6", "--check")
    assert checked.code == 0, checked.err
    assert f"3 of {examples}" in checked.out
