"""Promotion: each rule at its bound, and a sentence that holds the numbers it was decided on."""

import pytest

from loop.config.promote_section import PromoteConfig
from loop.measure.promotion import decide
from loop.store.run_records import Difference

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
        "promoted: sampled accuracy changed by +3.00 points on 128 gate prompts, 95 % interval -1.20 to +7.20: "
        "it could be up to 1.20 points worse; the limit is 5 (not_worse)"
    )
    assert decide(PromoteConfig(rule="better", confidence=0.9), gain(-0.1, 0.06)).reason == (
        "not promoted: sampled accuracy changed by -2.00 points on 128 gate prompts, 90 % interval -10.00 to +6.00: "
        "it could be up to 10.00 points worse; it has to be better (better)"
    )
    assert decide(PromoteConfig(rule="always"), gain(-0.1, 0.06)).reason.startswith(
        "promoted, as every candidate is (always)"
    )
