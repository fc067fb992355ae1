"""Statistics for evaluation: metrics with confidence intervals from successes and trials per prompt.

Responses to one prompt are not independent, so the prompt is the sampling unit everywhere: a metric is the ratio
p = Σs / Σm over prompts, and its variance is linearised over them (Cochran, Sampling Techniques, section 6.4), with t
quantiles at prompts - 1 degrees of freedom. Only prompts that have trials count as prompts here. Pure numpy.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loop.store.run_records import Difference, Interval, Ratio

Array = NDArray[np.float64]


def ratio_interval(successes: ArrayLike, trials: ArrayLike, confidence: float) -> Interval:
    """Σs / Σm over prompts with Wilson's interval at the effective number of trials, p(1 - p) / variance.

    That number is at most the trials. Where the variance is 0 it is the number of prompts: they could all be equal.
    """
    s, m = _counts(successes, trials)
    prompts, n = int(np.count_nonzero(m)), round(float(m.sum()))
    if prompts == 0:
        return Interval(None, None, None, 0)
    p = s.sum() / m.sum()
    if prompts == 1:
        return Interval(float(p), 0.0, 1.0, n)
    variance = _variance((s - p * m) / m.sum(), prompts)
    effective = min(p * (1 - p) / variance, m.sum()) if variance > 1e-12 * p * (1 - p) else prompts
    low, high = wilson(float(p), float(effective), t_quantile(confidence, prompts - 1))
    return Interval(float(p), low, high, n)


def paired_difference(s1: ArrayLike, m1: ArrayLike, s2: ArrayLike, m2: ArrayLike, confidence: float) -> Difference:
    """Σs2 / Σm2 - Σs1 / Σm1 where the arrays run over the same prompts; the p-value is two-sided and fits the interval.

    The standard error is never below `least_error`: equal outcomes on a few prompts do not prove that models are equal.
    """
    first, second = _counts(s1, m1), _counts(s2, m2)
    prompts = _common_prompts(first, second)
    if not first[1].sum() or not second[1].sum():
        return Difference(None, None, None, None, prompts)
    p1, p2 = (float(s.sum() / m.sum()) for s, m in (first, second))
    value = p2 - p1
    if prompts == 1:
        return Difference(value, -1.0, 1.0, 1.0, 1)
    influence = _influence(second, p2) - _influence(first, p1)
    error = max(math.sqrt(_variance(influence, prompts)), _least_error(first, second, prompts))
    reach = t_quantile(confidence, prompts - 1) * error
    p_value = 1 - t_central(abs(value) / error, prompts - 1)
    return Difference(value, max(value - reach, -1.0), min(value + reach, 1.0), p_value, prompts)


def paired_ratio(s1: ArrayLike, m1: ArrayLike, s2: ArrayLike, m2: ArrayLike, confidence: float) -> Ratio:
    """(Σs2 / Σm2) / (Σs1 / Σm1) on the same prompts, its interval by the delta method on the logarithm."""
    first, second = _counts(s1, m1), _counts(s2, m2)
    prompts = _common_prompts(first, second)
    if not first[0].sum() or not second[1].sum():
        return Ratio(None, None, None, prompts)
    p1, p2 = (float(s.sum() / m.sum()) for s, m in (first, second))
    if p2 == 0 or prompts == 1:
        return Ratio(p2 / p1, 0.0, None, prompts)
    influence = _influence(second, p2) / p2 - _influence(first, p1) / p1  # d log p = dp / p
    error = max(math.sqrt(_variance(influence, prompts)), _least_error(first, second, prompts) / max(p1, p2))
    reach = math.exp(min(t_quantile(confidence, prompts - 1) * error, 700.0))
    return Ratio(p2 / p1, p2 / p1 / reach, p2 / p1 * reach, prompts)


def least_error(prompts: int, samples: float) -> float:
    """The lowest standard error of a paired difference: one prompt changing its mind, which is what Agresti and Min
    (2005) give when no pair is discordant. A prompt's mind is a mean over `samples` responses, whose error falls with
    their root."""
    return 1 / (prompts + 2) / math.sqrt(max(samples, 1.0))


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that k of `samples` responses, drawn without replacement, hold a correct one (arXiv:2107.03374, Eq. 1)."""
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} correct among {samples} samples is not defined")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Chance that the most frequent of the first k extracted answers is correct (arXiv:2203.11171), 0 if all are None;
    answers with equally many votes are equally likely to be taken, so no order of sampling decides."""
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} of {len(answers)} answers is not defined")
    votes = list(zip(answers, correct, strict=True))[:k]
    counts = Counter(answer for answer, _ in votes if answer is not None)
    top = max(counts.values(), default=0)
    winners = [right for answer, right in votes if answer is not None and counts[answer] == top]
    return sum(winners) / len(winners) if winners else 0.0


def wilson(p: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share `p` among `n` (need not be whole), `quantile` standard errors to each side."""
    q2 = quantile**2
    centre = (p + q2 / (2 * n)) / (1 + q2 / n)
    reach = quantile * math.sqrt(p * (1 - p) / n + q2 / (4 * n**2)) / (1 + q2 / n)
    return min(max(centre - reach, 0.0), p), max(min(centre + reach, 1.0), p)


@cache
def t_quantile(confidence: float, freedom: int) -> float:
    """The t for which a share `confidence` of Student's distribution lies in [-t, t]."""
    low, high = NormalDist().inv_cdf((1 + confidence) / 2), 1.0
    while t_central(high, freedom) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_central(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def t_central(t: float, freedom: int) -> float:
    """The share of Student's distribution in [-t, t]: Abramowitz and Stegun 26.7.3 and 26.7.4, finite sums."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    j = np.arange(1, (freedom - freedom % 2) // 2)
    if freedom % 2 == 0:
        return float(sine * (1 + np.cumprod((2 * j - 1) / (2 * j) * cosine**2).sum()))
    tail = cosine * (1 + np.cumprod(2 * j / (2 * j + 1) * cosine**2).sum()) if freedom > 1 else 0.0
    return float(2 / math.pi * (angle + sine * tail))


def _counts(successes: ArrayLike, trials: ArrayLike) -> tuple[Array, Array]:
    s, m = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    if s.shape != m.shape or s.ndim != 1:
        raise ValueError(f"successes {s.shape} and trials {m.shape} must be one value per prompt")
    if not ((s >= 0) & (s <= m) & np.isfinite(m)).all():
        raise ValueError("every prompt needs 0 <= successes <= trials")
    return s, m


def _influence(counts: tuple[Array, Array], p: float) -> Array:
    s, m = counts
    return (s - p * m) / m.sum()


def _variance(influence: Array, prompts: int) -> float:
    return float(prompts / (prompts - 1) * (influence**2).sum())


def _least_error(first: tuple[Array, Array], second: tuple[Array, Array], prompts: int) -> float:
    """`least_error` at the smaller of both sides' mean trials per prompt."""
    return least_error(prompts, float(min(first[1].sum(), second[1].sum())) / prompts)


def _common_prompts(first: tuple[Array, Array], second: tuple[Array, Array]) -> int:
    if first[0].shape != second[0].shape:
        raise ValueError(f"paired metrics need the same prompts, not {first[0].size} and {second[0].size}")
    return int(np.count_nonzero(first[1] + second[1]))


HALVINGS = 20
"""Steps of the search for the p-value: it is right to a millionth."""

Counts = tuple[ArrayLike, ArrayLike]
"""Successes and trials, one value per prompt."""


def unpaired_difference(first: Counts, second: Counts, confidence: float) -> Difference:
    """Second minus first; `n` counts the values of both sides. None where one side has no trial. The two-sided p-value
    fits the interval: it is 1 minus the highest confidence at which 0 lies outside."""
    one, two = (ratio_interval(*counts, confidence) for counts in (first, second))
    if one.value is None or two.value is None:
        return Difference(None, None, None, None, one.n + two.n)
    value, low, high = _reach(one, two)
    return Difference(value, low, high, _p_value(first, second), one.n + two.n)


def _reach(one: Interval, two: Interval) -> tuple[float, float, float]:
    """The difference, and its lowest and highest value."""
    (p1, low1, high1), (p2, low2, high2) = _known(one), _known(two)
    return p2 - p1, p2 - p1 - math.hypot(p2 - low2, high1 - p1), p2 - p1 + math.hypot(high2 - p2, p1 - low1)


def _known(interval: Interval) -> tuple[float, float, float]:
    assert interval.value is not None
    assert interval.low is not None
    assert interval.high is not None
    return interval.value, interval.low, interval.high


def _p_value(first: Counts, second: Counts) -> float:
    excluded, included = 0.0, 1.0  # confidences at which 0 lies outside and inside
    for _ in range(HALVINGS):
        middle = (excluded + included) / 2
        _, low, high = _reach(*(ratio_interval(*counts, middle) for counts in (first, second)))
        if low > 0 or high < 0:
            excluded = middle
        else:
            included = middle
    return 1 - (excluded + included) / 2 if excluded else 1.0
