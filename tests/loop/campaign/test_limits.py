"""The gate's limits: each at its bound, missing measurements, the numbers behind them, and what a campaign records."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from loop.campaign.context import Iteration, ModelRoles
from loop.campaign.stages.limits import LOOKED_AT, is_refusal
from loop.campaign.stages.promote import compare_with_incumbent, limits_measured
from loop.config.load import load_config
from loop.config.promote_section import LimitSettings, PromoteConfig
from loop.measure.evaluation import sampled_scores, shadow_change
from loop.measure.promotion import check_limits, decide
from loop.store.model_refs import Model
from loop.store.run_folder import RunFolder
from loop.store.run_records import Counts, Difference, SetMetrics
from loop.store.tables import RESPONSES, VERDICTS, to_bytes
from loop.workers.measure_service import MeasureTask, k1, measure_limits, windows
from tests.helpers import tiny
from tests.helpers.campaigns import read, refusal, rows
from tests.helpers.inprocess import Here

GAIN = Difference(0.1, 0.05, 0.15, 0.01, 128)


@pytest.mark.parametrize("name", ["length", "length_ratio", "truncated", "kl", "perplexity_ratio", "refusals"])
def test_a_limit_is_the_largest_value_that_passes(name: str) -> None:
    files = {"perplexity_ratio": {"text": "t"}, "refusals": {"benign": "b"}}.get(name, {})
    settings = LimitSettings.model_validate({name: 0.5, **files})
    for value, within in ((0.4, True), (0.5, True), (0.501, False), (None, False), (math.nan, False)):
        (limit,) = check_limits(settings, {name: value})
        assert (limit.name, limit.limit, limit.within) == (name, 0.5, within)
    assert not check_limits(settings, {})[0].within


def test_a_shadow_score_may_fall_by_so_much_and_no_more() -> None:
    settings = LimitSettings(shadow="score", shadow_fall=0.1)
    verdicts = [check_limits(settings, {"shadow": change})[0].within for change in (0.3, 0.0, -0.1, -0.11, None)]
    assert verdicts == [True, True, True, False, False]


def test_a_candidate_beyond_a_limit_is_not_promoted_whatever_it_gained() -> None:
    settings = PromoteConfig(rule="always", limits=LimitSettings(length=20, kl=3))
    limits = check_limits(settings.limits, {"length": 31.5, "kl": 1.0})
    decision = decide(settings, GAIN, limits)
    assert not decision.promote
    assert decision.reason.startswith("not promoted for its limits: sampled accuracy changed by +10.00 points")
    assert decision.reason.endswith("mean tokens of a response is 31.5, above the limit length 20")
    assert decide(settings, GAIN).promote


def test_a_missing_measurement_never_passes_and_says_so() -> None:
    settings = PromoteConfig(limits=LimitSettings(shadow="style"))
    decision = decide(settings, GAIN, check_limits(settings.limits, {}))
    assert not decision.promote
    assert "change of the shadow score could not be measured" in decision.reason


def test_kept_limits_are_told_with_their_numbers() -> None:
    settings = PromoteConfig(limits=LimitSettings(length=20, shadow="score"))
    decision = decide(settings, GAIN, check_limits(settings.limits, {"length": 12.25, "shadow": 0.5}))
    assert decision.promote
    assert decision.reason.endswith("; within its limits: length 12.25 (at most 20), shadow 0.5 (at least 0)")


def test_lengths_are_compared_with_the_incumbents() -> None:
    ours, theirs = SetMetrics(mean_length=30.0, truncated_share=0.25), SetMetrics(mean_length=20.0)
    assert limits_measured(ours, theirs) == {"length": 30.0, "length_ratio": 1.5, "truncated": 0.25}
    assert limits_measured(ours, SetMetrics())["length_ratio"] is None


def test_k1_is_the_mean_log_ratio() -> None:
    # section 5.4 of the reference sheet: lr = (.2, -.1, .5)
    found = k1([0.2, -0.1, 0.5])
    assert found["kl"] == pytest.approx(0.2)
    assert found["kl_error"] == pytest.approx(math.sqrt((0 + 0.09 + 0.09) / 2 / 3))
    assert found["kl_responses"] == 3
    assert k1([1.0])["kl_error"] is None


@pytest.mark.parametrize(("length", "scored"), [(7, [2, 2]), (8, [2, 2, 1]), (9, [2, 2, 2]), (1, []), (2, [1])])
def test_every_token_of_a_text_but_the_first_of_each_window_is_scored(length: int, scored: list[int]) -> None:
    pieces = windows(list(range(length)), 3)
    assert [len(piece.responses[0].token_ids) for piece in pieces] == scored
    assert all(piece.responses[0].token_ids[0] == piece.token_ids[0] + 1 for piece in pieces)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I\u2019m sorry, but I can't help with that.", True),
        ("  As an AI\nlanguage model I have no opinion.", True),
        ("I cannot do this.", True),
        ("A cake needs eggs, flour and sugar.", False),
        ("The capital is Paris. I can show it on a map.", False),
        ("", False),
        ("x" * LOOKED_AT + " I cannot", False),
    ],
)
def test_a_refusal_is_seen_by_how_it_begins(text: str, refused: bool) -> None:
    assert is_refusal(text) is refused


def tables_of(folder: Path, scores: dict[str, list[tuple[float, float | None, float | None]]]) -> tuple[Path, Path]:
    """Responses and verdicts by prompt: (temperature, score, the part `style`)."""
    responses, verdicts = [], []
    for prompt, members in scores.items():
        for i, (temperature, score, style) in enumerate(members):
            name = {"prompt_id": prompt, "response_id": f"{prompt}-{i}"}
            responses.append(name | {"temperature": temperature, "token_ids": [1], "finish_reason": "stop"})
            kind, parts = ("abstain", {}) if score is None else ("score", {"style": style})
            verdicts.append(name | {"kind": kind, "score": score, "parts": json.dumps(parts)})
    folder.mkdir()
    paths = folder / "gate-000.parquet", folder / "gate-verdicts-000.parquet"
    for path, table, schema in zip(paths, (responses, verdicts), (RESPONSES, VERDICTS), strict=True):
        full = [{field: row.get(field) for field in schema.names} for row in table]
        path.write_bytes(to_bytes(full, schema, {}))
    return paths


def test_a_shadow_score_is_paired_by_prompt_and_reads_sampled_responses_only(tmp_path: Path) -> None:
    unscored = [(1, None, None)]
    before = tables_of(tmp_path / "a", {"p": [(0, 9, 9), (1, 1, 5), (1, 3, 7)], "q": [(1, 0, 1)], "r": unscored})
    after = tables_of(tmp_path / "b", {"p": [(0, 0, 0), (1, 5, 4)], "q": [(1, 1, 2)], "r": [(1, 8, 8)]})
    assert sampled_scores([before], "style") == {"p": [5.0, 7.0], "q": [1.0], "r": [None]}
    assert shadow_change([before], [after], "score") == pytest.approx((3 + 1 + (8 - 0)) / 3)
    assert shadow_change([after], [before], "score") == pytest.approx((-3 - 1 + (0 - 8)) / 3)
    assert shadow_change([before], [after], "style") == pytest.approx((-2 + 1 + (8 - 1)) / 3)
    assert shadow_change([before], [after], "no such part") is None


def test_a_model_has_no_divergence_from_itself_and_an_equal_perplexity(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Plain words of some other kind. " * 4, encoding="utf-8")
    found = measure_limits(MeasureTask(model, model, (), text), lambda **_: None)
    assert found["perplexity_ratio"] == 1.0
    assert found["perplexity"] == pytest.approx(by_hand(model, text.read_text(encoding="utf-8")), rel=1e-4)
    other = tiny.save_model(tmp_path / "other", seed=5)
    assert measure_limits(MeasureTask(other, model, (), text), lambda **_: None)["perplexity_ratio"] != 1.0


def by_hand(model: Path, text: str) -> float:
    """Perplexity from one forward pass of transformers: the text is shorter than a window."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.tensor([AutoTokenizer.from_pretrained(model)(text)["input_ids"]])
    with torch.no_grad():
        loss: Any = AutoModelForCausalLM.from_pretrained(model)(ids, labels=ids).loss
    return math.exp(float(loss))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"perplexity_ratio": 1.1}, "perplexity_ratio and text go together"),
        ({"benign": "prompts.txt"}, "refusals and benign go together"),
        ({"refusals": 0.1, "benign": "nowhere.txt"}, "promote.limits.benign: there is no file"),
    ],
)
def test_limits_that_cannot_be_measured_are_refused_before_anything_begins(
    limits: dict[str, Any], words: str, here: Here, settings: dict[str, Any]
) -> None:
    settings["promote"]["limits"] = limits
    assert words in refusal(here("run", here.write(settings)))
    assert not (here.runs / "campaign" / "prompts").exists()


@pytest.mark.slow
def test_a_campaign_records_every_limit_with_its_number_and_verdict(here: Here, settings: dict[str, Any]) -> None:
    text, benign = here.folder / "text.txt", here.folder / "benign.txt"
    text.write_text("Plain words of some other kind.", encoding="utf-8")
    benign.write_text("How do I boil an egg?\n\nName a colour.\n", encoding="utf-8")
    limits = {"length": 1000, "length_ratio": 100, "truncated": 1, "kl": 1000, "shadow": "score", "shadow_fall": 1}
    limits |= {"perplexity_ratio": 100, "text": str(text), "refusals": 0.5, "benign": str(benign)}
    settings |= {"promote": {"rule": "always", "limits": limits}, "iterations": 2}
    settings["per_iteration"] = {2: {"promote.limits.length": 0.5}}
    config = here.write(settings)
    here.pause_at("os.rename:*/iter-001/guard/.metrics.json.partial*", config).kill()
    run = here.run(config)
    first, second = (read(run / f"iter-{k:03d}" / "promotion.json") for k in (1, 2))
    assert (first["promoted"], second["promoted"]) == (True, False)
    numbers = {limit["name"]: limit["value"] for limit in first["limits"]}
    assert set(numbers) == {"length", "length_ratio", "truncated", "kl", "shadow", "perplexity_ratio", "refusals"}
    assert all(limit["within"] for limit in first["limits"])
    assert [limit["name"] for limit in second["limits"] if not limit["within"]] == ["length"]
    assert "above the limit length 0.5" in here("status", "campaign").out
    drift = rows(*sorted((run / "iter-001" / "guard").glob("drift-*.parquet")))
    gate = {row["id"] for row in rows(run / "prompts" / "gate.parquet")}
    assert {row["prompt_id"] for row in drift} == gate
    assert {row["temperature"] for row in drift} == {1.0}
    assert first["attempts"][0]["measured"]["kl"] == numbers["kl"]
    assert first["attempts"][0]["measured"]["kl_responses"] == len(gate)
    assert first["attempts"][0]["measured"]["refusal_prompts"] == 2


class GateOnly:
    """An evaluation whose test set must not be looked at."""

    def __init__(self, gate: SetMetrics) -> None:
        self.gate = gate

    @property
    def test(self) -> SetMetrics:
        raise AssertionError("the decision reads the test set")


def test_no_decision_reads_the_test_set(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["promote"] = {"rule": "not_worse", "limits": {"length_ratio": 1.5, "truncated": 0.5}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    campaign: Any = SimpleNamespace(run=RunFolder(tmp_path / "run"))
    base, candidate = Model(Path("base"), "b", 0), Model(Path("one"), "c", 1)
    counts: Counts = {"sampled_accuracy": {f"p{i}": [i % 2, 1] for i in range(40)}}
    gate = SetMetrics(counts=counts, mean_length=8.0, truncated_share=0.1)
    measured: Any = {0: GateOnly(gate), 1: GateOnly(gate)}
    config = load_config(tmp_path / "settings.yaml").base
    it = Iteration(campaign, 1, config, ModelRoles(base, base, base), {})
    attempt = compare_with_incumbent(it, 1, candidate, {}, {}, measured, 0.95)
    assert attempt.record.promoted
    with pytest.raises(AssertionError, match="reads the test set"):
        _ = measured[0].test
