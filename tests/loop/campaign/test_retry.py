"""After a rejected candidate: continue, stop or retry with stated changes; every attempt is kept, at any kill."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from loop.commands.export import export_model
from loop.commands.fork import fork
from loop.commands.plan import make_plan
from loop.config.load import load_config
from loop.config.promote_section import RetrySettings, beta_of, settings_of_attempt
from loop.errors import UserError
from loop.store.model_folder import weights_hash
from loop.store.run_folder import RunFolder
from loop.view.status import collect
from tests.helpers.campaigns import assert_same_results, events, read, refusal, times
from tests.helpers.inprocess import Here
from trainer.settings import TrainSettings

REJECT = {"rule": "better", "confidence": 0.9999}


def test_factors_add_up_over_the_attempts_and_values_do_not() -> None:
    train = TrainSettings(learning_rate=1e-4, beta=0.1)
    retry = RetrySettings(learning_rate=0.5, beta=3.0, nll_weight=0.2, steps=0.5, checkpoint="best")
    assert settings_of_attempt(train, retry, 1, 0) == (train, {})
    second, changes = settings_of_attempt(train, retry, 2, 9)
    assert changes == {
        "learning_rate": 5e-5,
        "beta": pytest.approx(0.3),
        "nll_weight": 0.2,
        "max_steps": 4,
        "select": "best",
    }
    assert (second.learning_rate, second.max_steps, second.select) == (5e-5, 4, "best")
    third, changes = settings_of_attempt(train, retry, 3, 4)
    assert (changes["learning_rate"], changes["max_steps"]) == (2.5e-5, 2)
    assert [term.arguments["beta"] for term in third.terms if "beta" in term.arguments] == [pytest.approx(0.9)]
    assert settings_of_attempt(train, retry, 4, 1)[1]["max_steps"] == 1


def test_the_beta_that_a_retry_multiplies_is_the_losss_own() -> None:
    assert beta_of(TrainSettings()) == 0.1
    assert beta_of(TrainSettings(beta=0.3)) == 0.3
    assert beta_of(TrainSettings(loss="sft")) is None
    assert beta_of(TrainSettings(loss={"name": "dpo", "beta": 0.2})) is None, "train.beta does not reach it"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"promote": {"on_reject": "retry", "retry": {"learning_rate": 1.0}}}, "promote.retry changes nothing"),
        ({"promote": {"on_reject": "retry", "retry": {"beta": 2}}, "train": {"loss": "sft"}}, "the loss has no beta"),
        (
            {"promote": {"on_reject": "retry", "retry": {"checkpoint": "best"}}, "train": {"checkpoint_every": 0}},
            "there is none to choose",
        ),
        ({"train": {"select": "best", "checkpoint_every": 0}}, "select is best, but checkpoint_every is 0"),
    ],
)
def test_a_retry_that_could_not_change_anything_is_refused(
    changes: dict[str, Any], words: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_config(tmp_path / "settings.yaml")
    assert words in str(refused.value)
    assert "\n\n" not in str(refused.value)


def test_plan_says_what_follows_a_rejected_candidate(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["promote"] = {"on_reject": "retry", "retries": 2, "retry": {"steps": 0.5}, "limits": {"length": 20}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    said = make_plan(RunFolder(tmp_path / "run"), load_config(tmp_path / "settings.yaml"), check=False).as_json()[
        "evaluation"
    ]
    assert said.endswith(
        "; never beyond length 20; a rejected round is retried 2 times, first with learning_rate 5e-05, max_steps "
        "0.5 of those before"
    )


@pytest.fixture
def retried(settings: dict[str, Any]) -> dict[str, Any]:
    """A campaign in which every candidate of iteration 1 is rejected, and retried once as a choice of checkpoints."""
    settings["promote"] = REJECT | {"on_reject": "retry", "retry": {"learning_rate": 0.1, "steps": 0.5}}
    settings["per_iteration"] = {1: {"promote.retry.checkpoint": "best"}, 2: {"promote.rule": "always"}}
    return settings


PLACES = {
    "train of the retry": "os.rename:*/iter-001/attempt-2/train/work/checkpoint-000001.partial",
    "a candidate to choose": "os.rename:*/attempt-2/train/work/candidates/last.partial",
    "evaluation of a candidate": "os.link:*/attempt-2/train/work/gate/last/.gate-000.parquet.partial*",
    "the chosen one": "os.rename:*/iter-001/attempt-2/train/model.partial",
    "manifest of the retry": "open:*/iter-001/attempt-2/train/.manifest.json.partial*",
    "eval of the retry": "os.link:*/iter-001/attempt-2/eval/.test-000.parquet.partial*",
    "decision": "os.rename:*/iter-001/.promotion.json.partial*",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "places",
    [
        pytest.param(("train of the retry", "evaluation of a candidate", "decision"), marks=pytest.mark.slow),
        pytest.param(tuple(PLACES), marks=pytest.mark.soak, id="every place"),
    ],
)
def test_attempts_are_kept_with_their_numbers_and_survive_kills(
    here: Here, retried: dict[str, Any], places: tuple[str, ...]
) -> None:
    config, run = here.write(retried), here.runs / "campaign"
    whole = here.run(config, "--name", "whole")
    for place in places:
        here.pause_at(PLACES[place], config).kill()
    shown = here("status", "campaign")
    assert "attempt 2" in shown.out, shown.out + shown.err
    here.run(config)
    assert_same_results(run, whole)
    for name in ("train/steps.jsonl", "train/model/model.safetensors", "eval/metrics.json"):
        path = Path("iter-001") / "attempt-2" / name
        assert (run / path).exists()
        if "steps" not in name:
            assert (run / path).read_bytes() == (whole / path).read_bytes()
    assert not list(run.glob("iter-*/**/work"))
    first, second = (read(run / f"iter-{k:03d}" / "promotion.json") for k in (1, 2))
    assert [attempt["promoted"] for attempt in first["attempts"]] == [False, False]
    original, retry = first["attempts"]
    steps = [read(run / "iter-001" / at / "train" / "manifest.json")["counts"] for at in (".", "attempt-2")]
    assert original["changes"] == {}
    assert retry["changes"] == {
        "learning_rate": pytest.approx(1e-5),
        "max_steps": steps[0]["steps"] // 2,
        "select": "best",
    }
    assert steps[1]["steps"] == steps[0]["steps"] // 2
    chosen = steps[1]["selected"]
    best = max(value for value in chosen["values"].values() if value is not None)
    assert chosen["values"][chosen["checkpoint"]] == best
    assert "last" in chosen["values"]
    assert len(chosen["values"]) == steps[1]["steps"]
    assert 1 - retry["confidence"] == pytest.approx((1 - original["confidence"]) / len(chosen["values"]))
    assert retry["candidate"] == steps[1]["weights_hash"] != original["candidate"]
    assert (first["promoted"], first["policy"]["iteration"]) == (False, 0)
    assert (second["promoted"], len(second["attempts"])) == (True, 1)
    assert [event["attempts"] for event in events(whole, "promotion")] == [2, 1]
    told = here("status", "campaign").out
    assert "Iteration 1, attempt 1 not promoted" in told
    assert "Iteration 1, attempt 2 (learning_rate 1e-05" in told
    forked_after_two_attempts(here, RunFolder(whole))
    state = collect(RunFolder(run))
    assert [len(it.attempts) for it in state.iterations] == [0, 2, 1]
    assert state.as_json()["iterations"][1]["gate"]["sampled_accuracy"] == public(run)


def forked_after_two_attempts(here: Here, whole: RunFolder) -> None:
    """The fork holds both attempts; what reads it reads the second."""
    new = RunFolder(here.runs / "new")
    fork(whole, 1, new, [])
    assert times(new.root, "iter-001/**/*") == times(whole.root, "iter-001/**/*")
    assert collect(new).iterations == collect(whole).iterations[:2]
    model = export_model(whole, 1, here.folder / "exported")
    assert weights_hash(model) == read(whole.promotion(1))["candidate"]["hash"]
    assert "learning rate 1e-05" in (model / "README.md").read_text(encoding="utf-8")


def public(run: Path) -> Any:
    """The accuracy of the last attempt."""
    return read(run / "iter-001" / "attempt-2" / "eval" / "metrics.json")["gate"]["sampled_accuracy"]


@pytest.mark.slow
def test_a_campaign_that_stops_at_a_rejection_says_how_to_go_on_and_does(here: Here, settings: dict[str, Any]) -> None:
    settings["promote"] = REJECT | {"on_reject": "stop"}
    config, run = here.write(settings), here.runs / "campaign"
    for _ in range(2):  # the second time nothing is left to do, and it says the same
        ended = here("run", config)
        assert (ended.code, ended.err) == (0, "")
        assert "candidate of iteration 1 was rejected and promote.on_reject is stop" in ended.out
        assert not (run / "iter-002").exists()
    assert here("fork", "campaign@1", "forked").code == 0
    assert "Stopped" in here("run", here.runs / "forked").out
    here.run(config, "promote.on_reject=continue")
    assert read(run / "iter-002" / "promotion.json")["incumbent"]["iteration"] == 0
    assert "is complete" in here("run", config).out, "what was gone on from is finished, whatever on_reject says now"


@pytest.mark.slow
def test_a_finished_iteration_stays_as_it_was_decided_when_retries_are_allowed_later(
    here: Here, settings: dict[str, Any]
) -> None:
    settings |= {"promote": REJECT, "iterations": 1}
    config = here.write(settings)
    run = here.run(config)
    before = (run / "iter-001" / "promotion.json").read_bytes()
    assert "is complete" in here("run", config, "promote.on_reject=retry").out
    assert (run / "iter-001" / "promotion.json").read_bytes() == before
    assert "promote.limits" in refusal(here("run", config, "promote.limits.length=3"))
