"""The report's statistics, axes and differences, against values worked out by hand and identities."""

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.format import clock
from loop.measure.estimators import (
    best_of,
    best_of_curve,
    best_of_kl,
    block_majority,
    dpo_field,
    length_controlled,
    majority_curve,
    mean_interval,
    pass_curve,
    sizes,
    thin,
    within_sums,
)
from loop.redact import redacted
from loop.report.changes import marked_difference
from loop.report.scale import axis, number, percent, share_axis, whole_axis

finite = st.floats(-1e6, 1e6, allow_nan=False)


def test_pass_at_k_is_the_chance_over_all_draws() -> None:
    assert pass_curve([(10, 3)])[4] == pytest.approx(1 - math.comb(7, 4) / math.comb(10, 4))
    assert pass_curve([(2, 1), (2, 0)]) == {1: 0.25, 2: 0.5}
    assert pass_curve([]) == {}


def test_curves_are_looked_at_in_powers_of_two_and_at_the_end() -> None:
    assert [sizes(most) for most in (0, 1, 2, 6, 8)] == [[], [1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_majority_is_the_mean_over_disjoint_blocks() -> None:
    group = [("7", True), ("7", True), ("9", False), ("9", False), ("7", True)]
    assert block_majority(group, 2) == pytest.approx((1 + 0) / 2)
    assert block_majority(group, 5) == 1.0
    assert majority_curve([group])[1] == pytest.approx(3 / 5)


def test_best_of_n_has_the_known_values() -> None:
    scores = [0.1, 0.4, 0.2, 0.9]
    assert [best_of(scores, n) for n in (1, 2, 4)] == pytest.approx([0.4, 0.616667, 0.9], abs=1e-6)
    assert [best_of_kl(n) for n in (4, 16, 64)] == pytest.approx([0.636294, 1.835089, 3.174508], abs=1e-6)
    assert best_of_curve([scores, [0.0, 0.0, 0.0, 1.0]])[1] == pytest.approx((0.4 + 0.25) / 2)
    with pytest.raises(ValueError, match="best of 5 among 4"):
        best_of(scores, 5)


@given(st.lists(finite, min_size=1, max_size=7), st.data())
def test_best_of_n_is_the_mean_over_all_subsets(scores: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores)))
    subsets = [max(subset) for subset in combinations(scores, n)]
    assert best_of(scores, n) == pytest.approx(sum(subsets) / len(subsets), abs=1e-6)


def test_the_gradient_field_has_the_known_values() -> None:
    """Pairs A (a = 1, b = -1) and C (a = -1, b = 0.75) at β = 0.1."""
    assert dpo_field(math.exp(1), math.exp(-1), 0.1) == pytest.approx((-0.016561, 0.122368), abs=1e-6)
    assert dpo_field(math.exp(-1), math.exp(0.75), 0.1) == pytest.approx((-0.147776, 0.025680), abs=1e-6)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.01, 1))
def test_the_gradient_ratio_is_x2_over_x1(a: float, b: float, beta: float) -> None:
    d1, d2 = dpo_field(math.exp(a), math.exp(b), beta)
    assert abs(d1) / abs(d2) == pytest.approx(math.exp(b - a), rel=1e-9)


def test_a_score_that_is_length_alone_is_flat_at_equal_length() -> None:
    groups = [[(10.0, 0.1), (20.0, 0.2)], [(30.0, 0.3), (50.0, 0.5)]]
    cross, square = within_sums(groups)
    assert cross / square == pytest.approx(0.01)
    level = length_controlled({0: (15.0, 0.15), 1: (40.0, 0.4)}, cross / square)
    assert level[0] == pytest.approx(level[1])
    assert length_controlled({0: (15.0, 0.15), 1: (40.0, 0.4)}, 0.0) == {0: 0.15, 1: 0.4}


def test_the_mean_has_a_t_interval() -> None:
    mean, low, high = mean_interval([0.0, 1.0, 0.0, 1.0], 0.95) or (0, 0, 0)
    assert (mean, high - mean, mean - low) == pytest.approx(
        (0.5, 3.182446 * math.sqrt(1 / 3) / 2, mean - low), abs=1e-5
    )
    assert mean_interval([0.3], 0.95) == (0.3, 0.3, 0.3)
    assert mean_interval([], 0.95) is None


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=60), st.integers(1, 20))
def test_thinning_keeps_the_range_and_no_more_points_than_allowed(points: list[tuple[float, float]], most: int) -> None:
    kept = thin(points, most)
    assert len(kept) == min(most, len(points))
    assert min(low for *_, low, _ in kept) == min(y for _, y in points)
    assert max(high for *_, high in kept) == max(y for _, y in points)


@given(st.lists(finite, min_size=1, max_size=20))
def test_an_axis_holds_its_values_and_ends_on_ticks(values: list[float]) -> None:
    found = axis(values, 0, 100)
    rounding = 1e-6 * (found.high - found.low)
    assert found.low <= min(values) + rounding
    assert found.high >= max(values) - rounding
    assert (found.ticks[0], found.ticks[-1]) == (found.low, found.high)
    assert 2 <= len(found.ticks) <= 12
    assert all(0 <= found.at(value) <= 100 for value in values)


def test_shares_never_go_beyond_a_hundred_and_iterations_are_whole() -> None:
    assert share_axis([3.0, 99.0], 0, 1).ticks == (0, 20, 40, 60, 80, 100)
    assert whole_axis([0, 1, 2, 3], 0, 1).ticks == (0, 1, 2, 3)
    assert whole_axis(list(range(1, 101)), 0, 1).ticks == (20, 40, 60, 80, 100)


def test_numbers_in_print() -> None:
    assert [number(v) for v in (0.693147, -12.5, 52108, 0.0125, 0, None, math.nan)] == [
        "0.693",
        "−12.5",
        "52\u202f108",
        "0.0125",
        "0",
        "–",
        "–",
    ]
    assert [percent(0.1234), percent(None)] == ["12.3", "–"]
    assert [clock(59.6), clock(3723)] == ["1:00", "1:02:03"]


@settings(max_examples=30)
@given(st.text(max_size=40), st.text(max_size=40))
def test_a_marked_difference_holds_both_texts_and_no_markup_of_theirs(before: str, after: str) -> None:
    left, right = marked_difference(before, after)
    for marked, text, tag in ((left, before, "del"), (right, after, "ins")):
        bare = str(marked).replace(f"<{tag}>", "").replace(f"</{tag}>", "")
        assert "<" not in bare
        assert bare == str(type(marked).escape(text))


def test_a_marked_difference_marks_the_words_that_differ() -> None:
    left, right = marked_difference("7 + 3 = 11", "7 + 3 = 10.")
    assert (left, right) == ("7 + 3 = <del>11</del>", "7 + 3 = <ins>10.</ins>")


def test_secrets_are_hidden_and_ordinary_settings_are_not() -> None:
    given_settings = {
        "api_key": "abc",
        "api_key_env": "OPENAI_API_KEY",
        "max_tokens": 40,
        "headers": {"Authorization": "Bearer abc"},
        "hf_token": "abc",
        "base_url": "https://user:pass@host/v1",
        "note": "uses sk-abcdefghijklmnop1234 here",
    }
    assert redacted(given_settings) == {
        "api_key": "(hidden)",
        "api_key_env": "OPENAI_API_KEY",
        "max_tokens": 40,
        "headers": {"Authorization": "(hidden)"},
        "hf_token": "(hidden)",
        "base_url": "https://(hidden)@host/v1",
        "note": "uses (hidden) here",
    }
