"""Killed at any moment of any stage and started again, a campaign ends as if nothing had happened."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.loop import tiny
from tests.loop.campaigns import Cli, assert_same_results, end_worker, events, read, refusal, times

STAGES = {
    "prompts": "open:*/prompts/.gate.parquet.partial*",
    "evaluation of the base model": "os.link:*/iter-000/eval/.test-000.parquet.partial*",
    "sample": "os.link:*/iter-001/sample/.shard-002.parquet.partial*",
    "judge": "os.link:*/iter-001/judge/.shard-003.parquet.partial*",
    "sample manifest": "open:*/iter-001/sample/.manifest.json.partial*",
    "pair": "os.rename:*/iter-001/pair/.pairs.parquet.partial*",
    "train, before a checkpoint": "os.rename:*/iter-001/train/work/checkpoint-000001.partial",
    "train, after a checkpoint": "os.rename:*/iter-001/train/work/checkpoint-000003.partial",
    "train, saving the model": "os.rename:*/iter-001/train/model.partial",
    "train manifest": "open:*/iter-001/train/.manifest.json.partial*",
    "eval": "os.link:*/iter-001/eval/.test-000.parquet.partial*",
    "eval metrics": "os.rename:*/iter-001/eval/.metrics.json.partial*",
    "promote": "os.rename:*/iter-001/.promotion.json.partial*",
    "train of the next iteration": "os.rename:*/iter-002/train/work/checkpoint-000002.partial",
    "promotion of the next iteration": "os.rename:*/iter-002/.promotion.json.partial*",
}
"""Where a campaign is killed: just before a file of that stage gets its name."""

SHARDS = "iter-*/*/*-[0-9]*.parquet"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_campaign_killed_in_every_stage_ends_as_one_that_nothing_interrupted(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    config, run = cli.write(settings), cli.runs / "campaign"
    finished: dict[str, int] = {}
    for stage, pattern in STAGES.items():
        cli.pause_at(pattern, config).kill()
        now = times(run, SHARDS)
        assert finished.items() <= now.items(), f"finished shards were made again after the kill before {stage}"
        finished = now
    cli.run(config)
    assert finished.items() <= times(run, SHARDS).items()
    assert_same_results(run, reference)
    assert leftovers(run) == []


def leftovers(run: Path) -> list[str]:
    """What a kill left behind that is neither a result nor swept up."""
    return [str(p.relative_to(run)) for p in sorted(run.rglob("*")) if p.name.endswith(".partial") or p.name == "work"]
