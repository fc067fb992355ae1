"""`prefloop run --until`: stops after the named stage and says how to go on; nothing comes out otherwise."""

from pathlib import Path
from typing import Any

import pytest

from loop.campaign.context import StopPoint, read_stop_point
from loop.errors import UserError
from tests.helpers.campaigns import Cli, assert_same_results, refusal
from tests.helpers.inprocess import Here


@pytest.mark.parametrize(
    ("text", "goal"),
    [("2", (2, "promote")), ("1/pair", (1, "pair")), ("3/promote", (3, "promote")), ("0", (0, "eval"))],
)
def test_a_goal_is_an_iteration_or_a_stage_of_one(text: str, goal: tuple[int, str]) -> None:
    assert read_stop_point(text, 3) == StopPoint(*goal)


@pytest.mark.parametrize("text", ["", "x", "-1", "1/", "1/pairs", "0/train", "1.5", "1/pair/2"])
def test_anything_else_is_refused_with_the_stages(text: str) -> None:
    with pytest.raises(UserError, match="expected an iteration or an iteration and a stage"):
        read_stop_point(text, 3)


def test_a_goal_beyond_the_campaign_is_refused() -> None:
    with pytest.raises(UserError, match="the campaign has 3 iterations"):
        read_stop_point("4", 3)


STAGES = ("sample", "judge", "pair", "train", "eval")


@pytest.mark.slow
def test_a_run_stops_after_each_stage_and_ends_as_one_that_did_not(
    here: Here, settings: dict[str, Any], reference: Path
) -> None:
    config, run = here.write(settings), here.runs / "campaign"
    places = {
        "0": "iter-000/eval",
        "1/sample": "iter-001/sample",
        "1/judge": "iter-001/judge",
        "1/pair": "iter-001/pair",
    }
    places |= {"1/train": "iter-001/train", "1/eval": "iter-001/eval"}
    not_yet = [*list(places.values())[1:], "iter-001/promotion.json"]
    for (goal, done), missing in zip(places.items(), not_yet, strict=True):
        command = Cli(here.folder) if goal == "1/train" else here
        ended = command("run", config, "--until", goal)
        assert (ended.code, ended.err) == (0, "")
        assert f"resume with: prefloop run {run}" in ended.out
        assert (run / done / "manifest.json").exists()
        assert not (run / missing).exists() or not (run / missing / "manifest.json").exists()
    here.run(config, "--until", "1")
    assert (run / "iter-001" / "promotion.json").exists()
    assert not (run / "iter-002" / "sample").exists()
    here.run(config)
    assert_same_results(run, reference)
    assert "the campaign has 2 iterations" in refusal(here("run", config, "--until", "3"))
