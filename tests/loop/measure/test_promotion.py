"""Promotion: each rule at its bound, and a sentence that holds the numbers it was decided on."""

import pytest
from pydantic import ValidationError

from loop.config.promote_section import PromoteConfig
from loop.measure.promotion import decide, deciding_confidence
from loop.store.run_records import OUTCOMES, BestSoFar, Difference

UNKNOWN = Difference(None, None, None, None, 0)


def gain(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, low, high, 0.5, 128)


@pytest.mark.parametrize(
    ("rule", "low", "promoted"),
    [
        ("better", 0.001, True),
        ("better", 0.0, False),
        ("better", -0.01, False),
        ("not_worse", 0.2, True),
        ("not_worse", -0.049, True),
        ("not_worse", -0.05, False),
        ("not_worse", -0.2, False),
        ("always", -0.9, True),
    ],
)
def test_a_rule_asks_where_the_lower_end_of_the_interval_lies(rule, low, promoted):
    assert decide(PromoteConfig(rule=rule, margin=0.05), gain(low, 0.3)).promote is promoted


def test_a_wider_margin_allows_more():
    assert not decide(PromoteConfig(margin=0.05), gain(-0.1, 0.1)).promote
    assert decide(PromoteConfig(margin=0.11), gain(-0.1, 0.1)).promote


def test_a_clear_gain_on_average_is_not_enough_while_the_interval_reaches_zero():
    assert not decide(PromoteConfig(rule="better"), gain(-0.01, 0.4)).promote


@pytest.mark.parametrize(("rule", "promoted"), [("better", False), ("not_worse", False), ("always", True)])
def test_what_cannot_be_compared_is_promoted_only_by_a_rule_that_asks_nothing(rule, promoted):
    made = decide(PromoteConfig(rule=rule, metric="accuracy_among_well_formed"), UNKNOWN)
    assert made.promote is promoted
    assert "accuracy among well formed cannot be compared" in made.reason


def test_the_sentence_holds_the_numbers():
    assert decide(PromoteConfig(), gain(-0.012, 0.072)).reason == (
        "promoted, not worse: sampled accuracy changed by +3.00 points on 128 gate prompts, 95 % interval -1.20 to "
        "+7.20: it could be up to 1.20 points worse; the limit is 5 (not_worse)"
    )
    assert decide(PromoteConfig(rule="better", confidence=0.9), gain(-0.1, 0.06)).reason == (
        "not promoted, too few prompts to tell: sampled accuracy changed by -2.00 points on 128 gate prompts, 90 % "
        "interval -10.00 to +6.00: it could be up to 10.00 points worse; it has to be better (better)"
    )
    assert decide(PromoteConfig(rule="always"), gain(-0.1, 0.06)).reason.startswith(
        "promoted, as every candidate is (always)"
    )


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.001, 0.2, "better"),
        (0.0, 0.2, "not_worse"),
        (-0.049, 0.2, "not_worse"),
        (-0.049, -0.01, "not_worse"),
        (-0.05, -0.01, "worse"),
        (-0.3, -0.2, "worse"),
        (-0.05, 0.0, "too_few_prompts"),
        (-0.13, 0.01, "too_few_prompts"),
        (-1.0, 1.0, "too_few_prompts"),
    ],
)
@pytest.mark.parametrize("rule", ["better", "not_worse", "always"])
def test_the_outcome_is_what_the_interval_says_whatever_the_rule(rule, low, high, outcome):
    made = decide(PromoteConfig(rule=rule), gain(low, high))
    assert made.outcome == outcome
    assert rule == "always" or f"promoted, {OUTCOMES[outcome]}: " in made.reason


def test_what_cannot_be_compared_is_too_little_to_tell():
    assert decide(PromoteConfig(), UNKNOWN).outcome == "too_few_prompts"


@pytest.mark.parametrize(
    ("rule", "low", "best_low", "promoted"),
    [
        ("not_worse", -0.02, -0.04, True),
        ("not_worse", -0.02, -0.06, False),
        ("not_worse", -0.06, 0.01, False),
        ("not_worse", 0.01, -0.05, False),
        ("better", 0.01, -0.06, True),
        ("always", -0.02, -0.06, True),
    ],
)
def test_not_worse_is_held_against_the_best_so_far_too(rule, low, best_low, promoted):
    made = decide(PromoteConfig(rule=rule), gain(low, 0.2), best=BestSoFar(3, gain(best_low, -0.01)))
    assert made.promote is promoted


def test_the_sentence_names_the_best_model_that_a_candidate_is_worse_than():
    made = decide(PromoteConfig(), gain(-0.03, 0.01), best=BestSoFar(0, gain(-0.07, -0.03)))
    assert made.reason == (
        "not promoted, worse: sampled accuracy changed by -5.00 points against the base model, the best promoted model "
        "so far on 128 gate prompts, 95 % interval -7.00 to -3.00: it could be up to 7.00 points worse; the limit is 5 "
        "(not_worse)"
    )
    assert made.outcome == "worse"
    unknown = decide(PromoteConfig(), gain(-0.03, 0.01), best=BestSoFar(2, UNKNOWN))
    assert not unknown.promote
    assert "cannot be compared against iteration 2, the best promoted model so far" in unknown.reason


@pytest.mark.parametrize("spending", ["none", "bonferroni", "pocock"])
@pytest.mark.parametrize(("iterations", "retries"), [(1, 0), (3, 0), (10, 2)])
def test_a_campaign_spends_as_much_as_one_decision(spending, iterations, retries):
    retrying = {"on_reject": "retry", "retries": retries} if retries else {}
    settings = PromoteConfig(rule="better", confidence=0.9, alpha_spending=spending, **retrying)
    shares = [1 - deciding_confidence(settings, k=k, iterations=iterations) for k in range(1, iterations + 1)]
    if spending == "none":
        assert shares == pytest.approx([0.1] * iterations)
    else:
        assert sum(shares) * (1 + retries) == pytest.approx(0.1)
        assert shares == sorted(shares, reverse=True)
        assert (shares[0] > 1.5 * shares[-1]) is (spending == "pocock" and iterations > 1)


def test_each_checkpoint_that_was_looked_at_takes_its_part_of_the_error():
    assert deciding_confidence(PromoteConfig(), k=2, iterations=3, checkpoints=5) == pytest.approx(0.99)
    sentence = decide(PromoteConfig(), gain(-0.01, 0.3), confidence=0.9875).reason
    assert "98.75 % interval" in sentence


def test_only_better_has_an_error_to_spend():
    with pytest.raises(ValidationError, match="alpha_spending is pocock, but the rule is not_worse"):
        PromoteConfig(alpha_spending="pocock")
