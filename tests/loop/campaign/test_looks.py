"""`promote.more_samples`: an open decision gets further looks at the gate prompts, with the chance of an error divided
over them, and the same ones after any kill."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.gate import false_looks, looked_at
from loop.config.load import load_config
from loop.config.promote_section import PromoteConfig
from loop.errors import UserError
from loop.measure.evaluation import compare, measure, read_answers
from loop.measure.power import describe_gate, gate_of
from loop.measure.promotion import deciding_confidence, is_open, look_share
from loop.store.run_folder import RunFolder
from loop.store.run_records import AttemptRecord, BestSoFar, Difference, Limit
from loop.view.status import collect
from tests.helpers.campaigns import assert_same_results, read, times
from tests.helpers.inprocess import Here

MORE = {"looks": 2, "samples": 3}


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 4), st.sampled_from(["none", "bonferroni", "pocock"]))
def test_the_looks_spend_the_error_of_one_decision(first: int, samples: int, looks: int, spending: str) -> None:
    more = {"looks": looks, "samples": samples}
    settings = PromoteConfig.model_validate({"rule": "better", "alpha_spending": spending, "more_samples": more})
    shares = [look_share(settings, first, look) for look in range(1, looks + 2)]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    planned = {"k": 2, "iterations": 5, "checkpoints": 3}
    plain = PromoteConfig.model_validate({"rule": "better", "alpha_spending": spending})
    spent = [1 - deciding_confidence(settings, **planned, samples=first, look=look) for look in range(1, looks + 2)]
    assert sum(spent) == pytest.approx(1 - deciding_confidence(plain, **planned))


def attempt(
    low: float, high: float, *, promoted: bool = False, within: bool = True, best: float = 1.0
) -> AttemptRecord:
    gain = Difference((low + high) / 2, low, high, 0.5, 128)
    limit = Limit("kl", 1.0, 2.0, within)
    best_so_far = BestSoFar(1, Difference(best - 0.1, best - 0.2, best, 0.5, 128))
    return AttemptRecord({}, promoted, "", gain, (limit,), {}, "c", best=best_so_far)


@pytest.mark.parametrize(
    ("made", "open_"),
    [
        (attempt(-0.08, 0.02), True),
        (attempt(-0.04, 0.06, promoted=True), False),
        (attempt(-0.09, -0.05), False),  # at best at the bound
        (attempt(-0.09, -0.04), True),
        (attempt(-0.08, 0.02, within=False), False),  # more samples change no limit
        (attempt(-0.08, 0.02, best=-0.06), False),  # surely worse than the best so far
    ],
)
def test_a_decision_is_open_while_more_samples_may_promote(made: AttemptRecord, open_: bool) -> None:
    assert is_open(PromoteConfig(), made) is open_


@pytest.mark.parametrize(
    ("promote", "words"),
    [
        ({"rule": "always"}, "the rule always promotes every candidate"),
        ({"metric": "greedy_accuracy"}, "which the metric greedy_accuracy does not count"),
    ],
)
def test_looks_that_cannot_decide_are_refused(promote: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PromoteConfig.model_validate(promote | {"more_samples": MORE})


def test_all_iterations_take_as_many_samples(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["promote"] = {"more_samples": {"samples": [4, 8]}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(UserError, match=r"samples differs between iterations \(4, 8\)"):
        load_config(tmp_path / "settings.yaml")


def test_looks_err_no_more_often_than_one_decision_and_see_more() -> None:
    """Simulated: candidates that are worse by exactly the margin (nominal error 2.5 %), and equal ones."""
    assert false_looks(128, 4, MORE | {"samples": 8}, 600) <= 0.04
    passed, samples = looked_at(128, 2, {"looks": 2, "samples": 8}, 0.0, 300)
    assert passed > 0.8 > looked_at(128, 2, None, 0.0, 300)[0]
    assert samples < 18, "some are decided before the last look"


def test_the_plan_says_what_the_last_look_can_see() -> None:
    gate = gate_of(load_config("quickstart", ["promote.more_samples.looks=2", "promote.more_samples.samples=8"]))
    assert gate is not None
    assert gate.samples == gate.first + 16
    assert f" prompts x {gate.first} to {gate.samples} samples: " in describe_gate(gate)


@pytest.fixture
def looking(settings: dict[str, Any]) -> dict[str, Any]:
    """A campaign whose decisions stay open to the last look."""
    settings["promote"] = {"rule": "better", "confidence": 0.9999, "more_samples": MORE}
    settings["per_iteration"] = {1: {"promote.rule": "not_worse", "promote.margin": 1.5}}
    return settings


@pytest.mark.slow
def test_looks_are_kept_and_survive_kills(here: Here, looking: dict[str, Any]) -> None:
    config, run = here.write(looking), here.runs / "campaign"
    whole = here.run(config, "--name", "whole")
    places = (
        "os.link:*/iter-002/look-2/.gate-000.parquet.partial*",
        "os.rename:*/iter-001/look-3/.metrics.json.partial*",
        "os.rename:*/iter-002/.promotion.json.partial*",
    )
    for place in places:
        here.pause_at(place, config).kill()
    here.run(config)
    assert_same_results(run, whole)
    first, second = (read(run / f"iter-{k:03d}" / "promotion.json")["attempts"][-1] for k in (1, 2))
    assert (first["promoted"], len(first["looks"])) == (True, 1)
    samples = looking["eval"]["samples"]
    assert [look["samples"] for look in second["looks"]] == [samples, samples + 3, samples + 6]
    assert f"; look 3 of at most 3, {samples + 6} samples per prompt" in second["reason"]
    assert second["gain"] == second["looks"][-1]["gain"] == by_hand(RunFolder(run), second["confidence"])
    assert collect(RunFolder(run)).state_of(2).reason == second["reason"]
    before = times(run)
    (run / "iter-001" / "look-2" / "gate-000.parquet").unlink()
    assert here("run", config).code == 2, "a decision's samples are gone"
    here.run(config, "--repair")
    assert_same_results(run, whole)
    changed = {name for name, time in times(run).items() if before.get(name) != time and "look" in name}
    assert all("iter-001/look-2" in name for name in changed), changed


def by_hand(run: RunFolder, confidence: float) -> dict[str, Any]:
    """The difference of all responses of both models, read from the shards."""

    def everything(k: int) -> Any:
        folders = [run.stage(k, stage).path for stage in ("eval", "look-2", "look-3")]
        pairs = [
            (p, p.with_name(p.name.replace("gate", "gate-verdicts"))) for f in folders for p in f.glob("gate-[0-9]*")
        ]
        return measure(read_answers([p for p, _ in pairs], [v for _, v in pairs], 1.0), confidence)

    found = compare(everything(1), everything(2), "sampled_accuracy", confidence)
    return {name: getattr(found, name) for name in ("value", "low", "high", "p_value", "n")}
