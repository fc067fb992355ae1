"""Held-out preferences: numbers worked out by hand."""

import pytest

from loop.config.checks import PREFERENCE
from loop.measure.evaluation import Names, compare, measure_preferences
from loop.store.run_records import SetMetrics

PAIRS: list[Names] = [("p", "p/a", "p/b"), ("p", "p/a", "p/c"), ("q", "q/a", "q/b")]
BASE = {"p/a": -10.0, "p/b": -9.0, "p/c": -12.0, "q/a": -5.0, "q/b": -5.0}
POLICY = {"p/a": -8.0, "p/b": -9.5, "p/c": -9.0, "q/a": -7.0, "q/b": -6.0}
# implicit rewards: p/a +2, p/b -0.5, p/c +3, q/a -2, q/b -1; margins: 2.5, -1, -1


def rate(metrics: SetMetrics) -> float | None:
    assert metrics.preference_accuracy is not None
    return metrics.preference_accuracy.value


def test_a_policy_prefers_what_has_gained_more_on_the_base_model() -> None:
    found = measure_preferences(PAIRS, POLICY, BASE, 0.95)
    assert found.counts == {PREFERENCE: {"p": [1.0, 2], "q": [0.0, 1]}}
    assert rate(found) == pytest.approx(1 / 3)
    assert found.mean_margin == pytest.approx((2.5 - 1 - 1) / 3)
    assert found.log_ratio == pytest.approx((1.5 + 1 - 1) / 3)
    assert found.likelihood_accuracy == pytest.approx(2 / 3)
    assert (found.pairs, found.pairs_too_long, found.sampled_accuracy.value) == (3, 0, None)


def test_the_base_model_itself_prefers_neither() -> None:
    found = measure_preferences(PAIRS, BASE, BASE, 0.95)
    assert (rate(found), found.mean_margin) == (0.5, 0.0)
    assert found.likelihood_accuracy == pytest.approx((0 + 1 + 0.5) / 3)
    gained = compare(found, measure_preferences(PAIRS, POLICY, BASE, 0.95), PREFERENCE, 0.95)
    assert gained.value == pytest.approx(1 / 3 - 1 / 2)


def test_pairs_without_a_log_prob_are_counted_and_left_out() -> None:
    short = {id: logp for id, logp in POLICY.items() if id != "p/c"}
    found = measure_preferences(PAIRS, short, BASE, 0.95)
    assert (found.pairs, found.pairs_too_long, rate(found)) == (2, 1, 0.5)
