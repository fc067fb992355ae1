"""`loop.Campaign`: plan, run, read, report and export from Python, as the commands do."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import loop.workers.pool
from loop import Campaign, Event, UserError
from tests.helpers.campaigns import Cli, assert_same_results, events
from tests.helpers.inprocess import InProcess


@pytest.fixture
def config(tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file in the current folder; campaigns run inside this process."""
    monkeypatch.setattr(loop.workers.pool, "Worker", InProcess)
    monkeypatch.setattr(InProcess, "after", staticmethod(lambda worker, job: None))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_a_campaign_from_python_equals_that_of_the_command(config: Path, reference: Path) -> None:
    seen: list[Event] = []
    campaign = Campaign.from_yaml(config, name="mine")
    assert repr(campaign) == "Campaign mine in runs/mine: not started, 2 iterations planned"
    assert "it starts with the base model's evaluation" in str(campaign.plan())
    assert list(campaign.run(until="1/pair", on_event=seen.append, quiet=True).iterations) == [0, 1]
    assert campaign.iterations[1].decision is None
    campaign.run(on_event=seen.append, quiet=True)
    assert_same_results(campaign.path, reference)
    assert campaign.status().complete
    assert "complete" in repr(campaign)
    assert [event.event for event in seen] == [event["event"] for event in events(campaign.path)]
    assert seen[-1].event == "campaign_finished"
    written = campaign.export(1, model="out/model", pairs="out/pairs.jsonl")
    assert written == [Path("out/model"), Path("out/pairs.jsonl")]
    assert (written[0] / "model.safetensors").exists()
    rows = written[1].read_text(encoding="utf-8").splitlines()
    assert len(rows) == campaign.iterations[1].pairs().to_arrow().num_rows > 0
    assert campaign.report().samefile(campaign.path / "report.html")
    assert campaign.report("out/page.html").read_bytes() == campaign.report().read_bytes()


def test_an_exception_in_the_callback_ends_the_run_and_the_next_one_continues(config: Path, reference: Path) -> None:
    def stop(event: Event) -> None:
        if event.event == "stage_finished" and event.stage == "sample":
            raise RuntimeError("enough")

    campaign = Campaign.from_yaml(str(config), name="mine")
    with pytest.raises(RuntimeError, match="enough"):
        campaign.run(on_event=stop, quiet=True)
    Campaign.open("mine").run(quiet=True)
    assert_same_results(campaign.path, reference)


def test_settings_are_given_as_values_and_refused_like_those_of_the_command(config: Path, cli: Cli) -> None:
    changed = {"train.learning_rate": [1e-6, 2e-6], "model.base": Path("m"), "judge.args": {"right": 1}, "seed": 3}
    campaign = Campaign.from_yaml(config, changed)
    assert [campaign.settings(k).train.learning_rate for k in (1, 2)] == [1e-6, 2e-6]
    assert campaign.settings().judge is not None
    assert (campaign.settings().judge.args, campaign.settings().seed) == ({"right": 1}, 3)
    for wrong, text in (({"train.bet": 1}, "train.bet"), ({"seed": object()}, "The setting seed is <object")):
        with pytest.raises(UserError, match=text):
            Campaign.from_yaml(config, wrong)
    with pytest.raises(UserError, match="--until is '7'"):
        campaign.run(until=7)


def test_what_is_not_there_is_refused_in_one_sentence(reference: Path, tmp_path: Path) -> None:
    campaign = Campaign.open(reference)
    for wrong, text in (
        (lambda: campaign.iterations[7], r"There is no iteration 7; there are 0, 1, 2\."),
        (lambda: campaign.iterations[0].pairs(), r"There are no pairs of iteration 0; there are some of \[1, 2\]"),
        (lambda: campaign.export(1), "Nothing to export"),
        (lambda: Campaign.open("nowhere", runs=tmp_path), "There is no run 'nowhere'"),
    ):
        with pytest.raises(UserError, match=text):
            wrong()
    before = sorted(campaign.iterations)
    assert (before, campaign.iterations[2].settings.sampling.n) == ([0, 1, 2], 4)
    assert campaign.iterations[0].model == campaign.model(0)
    assert campaign.iterations[1].metrics().to_arrow()["iteration"].to_pylist() == [1]
    assert set(campaign.iterations[2].steps().to_arrow()["iteration"].to_pylist()) == {2}
    for which in ("train", "gate", "test"):
        responses = campaign.iterations[1].responses(which).to_arrow()  # type: ignore[arg-type]
        assert responses.num_rows == campaign.iterations[1].verdicts(which).to_arrow().num_rows > 0  # type: ignore[arg-type]
