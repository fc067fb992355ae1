"""Statistics: values worked out by hand, tables of Student's t, and coverage by seeded simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.measure.stats import (
    least_error,
    majority_at_k,
    paired_difference,
    paired_ratio,
    pass_at_k,
    ratio_interval,
    t_central,
    t_quantile,
    wilson,
)

SIMULATIONS = 400


# Quantiles


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157), (10, 2.228139), (199, 1.971957)],
)
def test_t_quantiles_are_those_of_the_tables(freedom, expected):
    assert t_quantile(0.95, freedom) == pytest.approx(expected, abs=1e-6)


def test_the_t_quantile_tends_to_the_normal_one():
    assert t_quantile(0.95, 100_000) == pytest.approx(1.959964, abs=1e-4)


def test_the_share_within_t_inverts_the_quantile():
    for freedom in (1, 2, 5, 8, 127):
        assert t_central(t_quantile(0.9, freedom), freedom) == pytest.approx(0.9, abs=1e-12)


def test_wilson_is_the_textbook_interval():
    low, high = wilson(0.5, 10, 1.959964)  # 5 of 10
    assert (low, high) == pytest.approx((0.236593, 0.763407), abs=1e-6)


# One metric


def test_the_value_is_the_ratio_of_sums_not_the_mean_of_ratios():
    made = ratio_interval([1, 0], [1, 3], 0.95)
    assert (made.value, made.n) == (0.25, 4)


def test_the_interval_uses_the_effective_number_of_trials():
    # p = 5/10; residuals of the prompts s - p m: 1, -1, 1, 0, -1; variance 5/4 · 4 / 10² = 0.05; 0.25 / 0.05 = 5 trials
    made = ratio_interval([2, 0, 2, 1, 0], [2, 2, 2, 2, 2], 0.95)
    assert (made.low, made.high) == pytest.approx(wilson(0.5, 5, t_quantile(0.95, 4)))


def test_repeating_a_prompts_response_adds_no_certainty():
    once, fourfold = ratio_interval([1, 0, 1, 0, 1], [1] * 5, 0.95), ratio_interval([4, 0, 4, 0, 4], [4] * 5, 0.95)
    assert (once.low, once.high) == pytest.approx((fourfold.low, fourfold.high))
    naive = wilson(0.6, 20, t_quantile(0.95, 4))
    assert fourfold.low < naive[0]  # counting 20 independent trials would claim more than is known
    assert fourfold.high > naive[1]


def test_all_wrong_still_has_an_upper_bound_by_the_number_of_prompts():
    made = ratio_interval([0] * 20, [4] * 20, 0.95)
    assert (made.value, made.low, made.n) == (0.0, 0.0, 80)
    assert made.high == pytest.approx(wilson(0, 20, t_quantile(0.95, 19))[1])


def test_prompts_without_trials_change_nothing():
    assert ratio_interval([1, 0, 0, 2], [2, 0, 0, 3], 0.95) == ratio_interval([1, 2], [2, 3], 0.95)


def test_without_trials_there_is_no_value():
    made = ratio_interval([0, 0], [0, 0], 0.95)
    assert (made.value, made.low, made.high, made.n) == (None, None, None, 0)


def test_one_prompt_says_nothing_about_others():
    made = ratio_interval([3], [4], 0.95)
    assert (made.value, made.low, made.high, made.n) == (0.75, 0.0, 1.0, 4)


@pytest.mark.parametrize(("successes", "trials"), [([2], [1]), ([-1], [1]), ([1, 1], [1]), ([math.nan], [1])])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="prompt"):
        ratio_interval(successes, trials, 0.95)


# Two models on the same prompts


def test_with_one_trial_each_the_difference_is_the_paired_t_test():
    # d = 1, 1, 0, 1, -1, 0: mean 1/3, sum of squares about it 4 - 6/9 = 10/3, standard error sqrt(10/3 / 5 / 6) = 1/3
    made = paired_difference([0, 0, 1, 0, 1, 0], [1] * 6, [1, 1, 1, 1, 0, 0], [1] * 6, 0.95)
    assert made.value == pytest.approx(1 / 3)
    assert made.low == pytest.approx(1 / 3 - 2.570582 / 3, abs=1e-6)
    assert made.high == 1.0  # 1/3 + 2.57 / 3 is more than a difference of shares can be
    assert made.p_value == pytest.approx(0.363217, abs=1e-6)  # t = 1 with 5 degrees of freedom
    assert made.n == 6


def test_pairing_by_prompt_finds_what_independent_intervals_hide():
    rng = np.random.default_rng(0)
    easy = rng.random(200) < 0.5
    first = np.where(easy, 3, 0)
    second = np.where(easy, 4, 1)
    made = paired_difference(first, [4] * 200, second, [4] * 200, 0.95)
    assert made.value == pytest.approx(0.25)
    assert made.low > 0.2
    one, two = (
        ratio_interval(s, [4] * 200, 0.95).high - ratio_interval(s, [4] * 200, 0.95).low for s in (first, second)
    )
    assert made.high - made.low < (one + two) / 4


def test_equal_outcomes_on_few_prompts_do_not_prove_equality():
    few, many = (paired_difference([1] * n, [4] * n, [1] * n, [4] * n, 0.95) for n in (8, 200))
    assert (few.value, few.p_value) == (0.0, 1.0)
    assert few.low == pytest.approx(-t_quantile(0.95, 7) / 10 / 2)  # the mean of four responses errs half as much
    assert few.low < -0.05 < many.low < 0


@pytest.mark.parametrize(("samples", "least"), [(1, 0.1), (4, 0.05), (16, 0.025), (0.5, 0.1)])
def test_the_least_error_is_one_prompt_and_falls_with_the_root_of_its_samples(samples, least):
    assert least_error(8, samples) == pytest.approx(least)


def test_a_side_without_trials_cannot_be_compared():
    made = paired_difference([0, 0], [0, 0], [1, 0], [1, 1], 0.95)
    assert (made.value, made.low, made.high, made.p_value, made.n) == (None, None, None, None, 2)


def test_one_prompt_decides_nothing():
    made = paired_difference([0], [4], [4], [4], 0.95)
    assert (made.value, made.low, made.high, made.p_value, made.n) == (1.0, -1.0, 1.0, 1.0, 1)


def test_different_prompts_are_refused():
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([0, 1], [1, 1], [1], [1], 0.95)


counts = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30
).map(lambda rows: [(min(a, b), b, min(c, d), d) for a, b, c, d in rows])


@given(counts)
def test_intervals_hold_their_value_and_the_p_value_agrees_with_them(rows):
    s1, m1, s2, m2 = map(list, zip(*rows, strict=True))
    made = paired_difference(s1, m1, s2, m2, 0.95)
    if made.value is None:
        assert not sum(m1) or not sum(m2)
        return
    assert -1 <= made.low <= made.value <= made.high <= 1
    assert 0 <= made.p_value <= 1
    if abs(made.p_value - 0.05) > 1e-9:
        assert (made.p_value < 0.05) == (made.low > 0 or made.high < 0)
    one = ratio_interval(s1, m1, 0.95)
    assert 0 <= one.low <= one.value <= one.high <= 1


@given(counts)
def test_swapping_the_models_turns_the_difference_round(rows):
    s1, m1, s2, m2 = map(list, zip(*rows, strict=True))
    there, back = paired_difference(s1, m1, s2, m2, 0.95), paired_difference(s2, m2, s1, m1, 0.95)
    if there.value is not None:
        assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


# Three times as good


def test_the_ratio_is_second_over_first_and_holds_it():
    made = paired_ratio([1, 0, 0, 1] * 25, [4] * 100, [3, 1, 1, 1] * 25, [4] * 100, 0.95)
    assert made.value == pytest.approx(3.0)
    assert 1 < made.low < 3 < made.high
    assert made.low * made.high == pytest.approx(9.0)  # symmetric on the logarithm
    assert made.n == 100


def test_a_ratio_to_nothing_is_unknown_and_of_nothing_is_zero():
    assert paired_ratio([0, 0], [4, 4], [1, 0], [4, 4], 0.95).value is None
    none_left = paired_ratio([1, 1], [4, 4], [0, 0], [4, 4], 0.95)
    assert (none_left.value, none_left.low, none_left.high) == (0.0, 0.0, None)


# Coverage


def simulated(rng: np.random.Generator, prompts: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Well-formed answers m and correct ones s of four samples per prompt; prompts that are harder are also messier."""
    kind = rng.integers(0, 3, size=prompts)
    formed = np.array([0.3, 0.6, 0.9])[kind]
    right = np.array([0.1, 0.4, 0.6])[kind] + gain
    m = rng.binomial(4, formed)
    return rng.binomial(m, right), m


def truth(gain: float) -> float:
    return (0.3 * (0.1 + gain) + 0.6 * (0.4 + gain) + 0.9 * (0.6 + gain)) / 1.8


@pytest.mark.parametrize("prompts", [30, 128])
def test_the_interval_of_a_clustered_ratio_covers_the_truth_as_often_as_it_says(prompts):
    rng = np.random.default_rng(7)
    made = [ratio_interval(*simulated(rng, prompts, 0.0), 0.95) for _ in range(SIMULATIONS)]
    assert 0.92 <= np.mean([one.low <= truth(0.0) <= one.high for one in made]) <= 0.98


def test_ignoring_the_clusters_covers_too_rarely():
    rng = np.random.default_rng(7)
    right = rng.choice([0.05, 0.95], size=(SIMULATIONS, 128))
    s = rng.binomial(4, right)
    naive = [wilson(one.sum() / 512, 512, 1.96) for one in s]
    clustered = [ratio_interval(one, [4] * 128, 0.95) for one in s]
    assert np.mean([low <= 0.5 <= high for low, high in naive]) < 0.8
    assert 0.92 <= np.mean([one.low <= 0.5 <= one.high for one in clustered]) <= 0.98


def paired_samples(rng: np.random.Generator, prompts: int):
    """Both models on the same prompts: the second is better by 0.2 on each and formats well more often."""
    kind = rng.integers(0, 3, size=prompts)
    right = np.array([0.1, 0.4, 0.6])[kind]
    m1, m2 = rng.binomial(4, np.array([0.3, 0.6, 0.9])[kind]), rng.binomial(4, np.array([0.8, 0.8, 0.9])[kind])
    return rng.binomial(m1, right), m1, rng.binomial(m2, right + 0.2), m2


P1 = truth(0.0)
P2 = (0.8 * 0.3 + 0.8 * 0.6 + 0.9 * 0.8) / 2.5


@pytest.mark.parametrize("prompts", [30, 128])
def test_the_difference_of_ratio_metrics_covers_the_truth_as_often_as_it_says(prompts):
    rng = np.random.default_rng(11)
    made = [paired_difference(*paired_samples(rng, prompts), 0.95) for _ in range(SIMULATIONS)]
    assert 0.92 <= np.mean([one.low <= P2 - P1 <= one.high for one in made]) <= 0.98


def test_the_ratio_of_metrics_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(13)
    made = [paired_ratio(*paired_samples(rng, 100), 0.95) for _ in range(SIMULATIONS)]
    assert 0.92 <= np.mean([one.low <= P2 / P1 <= one.high for one in made]) <= 0.98


def test_equal_models_are_called_different_about_one_time_in_twenty():
    rng = np.random.default_rng(17)
    low = []
    for _ in range(SIMULATIONS):
        right = rng.choice([0.1, 0.3, 0.8], size=100)
        one = paired_difference(rng.binomial(4, right), [4] * 100, rng.binomial(4, right), [4] * 100, 0.95)
        low.append(one.p_value < 0.05)
    assert 0.02 <= np.mean(low) <= 0.08


# pass@k and maj@k


def test_pass_at_k_is_the_unbiased_estimate():
    assert pass_at_k(10, 3, 5) == pytest.approx(0.916667, abs=1e-6)
    assert [pass_at_k(4, c, 1) for c in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert (pass_at_k(4, 1, 4), pass_at_k(4, 0, 4), pass_at_k(4, 2, 3)) == (1, 0, 1)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 2, 5), (4, 5, 2), (4, 2, 0), (4, -1, 2)])
def test_pass_at_k_refuses_what_is_not_defined(samples, correct, k):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(samples, correct, k)


def test_the_majority_decides_and_answers_that_were_not_found_do_not_vote():
    assert majority_at_k(["7", "7", "3"], [True, True, False], 3) == 1
    assert majority_at_k(["7", "3", "3"], [True, False, False], 3) == 0
    assert majority_at_k([None, None, "7"], [False, False, True], 3) == 1
    assert majority_at_k([None, None], [False, False], 2) == 0


def test_a_tied_vote_counts_by_its_chance_not_by_the_order_of_sampling():
    assert majority_at_k(["7", "3"], [True, False], 2) == majority_at_k(["3", "7"], [False, True], 2) == 0.5


def test_only_the_first_k_answers_vote():
    assert majority_at_k(["7", "3", "3"], [True, False, False], 1) == 1
    with pytest.raises(ValueError, match="not defined"):
        majority_at_k(["7"], [True], 2)
