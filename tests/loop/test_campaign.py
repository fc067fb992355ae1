"""A whole campaign with a tiny model: what it leaves behind adds up, and every number can be recomputed."""

from pathlib import Path

from tests.loop.campaigns import events


def test_one_start_of_each_worker_serves_the_whole_campaign(reference: Path) -> None:
    started = [event["worker"] for event in events(reference, "worker_started")]
    assert sorted(started) == ["engine", "judge", "trainer"]
