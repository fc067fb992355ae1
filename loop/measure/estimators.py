"""Statistics for the report beyond `loop/measure/stats.py`. Pure functions of plain values."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from loop.measure.stats import majority_at_k, pass_at_k, t_quantile

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of lengths, as the report shows them."""


def sizes(most: int) -> list[int]:
    """The k at which curves are sampled: 1, 2, 4, … and `most` itself."""
    return sorted({min(2**i, most) for i in range(most.bit_length() + 1)}) if most else []


def pass_curve(groups: Sequence[tuple[int, int]]) -> dict[int, float]:
    """pass@k by k as means over prompts, each given as (samples, correct); up to the fewest samples."""
    most, alike = min((samples for samples, _ in groups), default=0), Counter(groups)
    return {k: sum(pass_at_k(n, c, k) * count for (n, c), count in alike.items()) / len(groups) for k in sizes(most)}


def majority_curve(groups: Sequence[Sequence[tuple[str | None, bool]]]) -> dict[int, float]:
    """maj@k by k as means over prompts, each a list of (extracted answer, correct)."""
    most = min(map(len, groups), default=0)
    return {k: sum(block_majority(group, k) for group in groups) / len(groups) for k in sizes(most)}


def block_majority(group: Sequence[tuple[str | None, bool]], k: int) -> float:
    """The mean of maj@k over disjoint blocks of k responses: unbiased like one block, with less chance in it."""
    blocks = [group[start : start + k] for start in range(0, len(group) - k + 1, k)]
    return sum(majority_at_k([a for a, _ in block], [c for _, c in block], k) for block in blocks) / len(blocks)


def best_of(scores: Sequence[float], n: int) -> float:
    """Expected best score of `n` responses drawn without replacement: Σ C(i-1, n-1) / C(M, n) r_(i), scores ascending.
    ValueError unless 1 <= n <= M."""
    if not 1 <= n <= len(scores):
        raise ValueError(f"the best of {n} among {len(scores)} scores is not defined")
    return float(np.sort(np.asarray(scores, float)) @ _chances(len(scores), n))


def best_of_curve(groups: Sequence[Sequence[float]]) -> dict[int, float]:
    """The best of n by n as means over prompts, each a list of scores; up to the fewest scores."""
    most = min(map(len, groups), default=0)
    return {n: sum(best_of(group, n) for group in groups) / len(groups) for n in sizes(most)}


@lru_cache
def _chances(samples: int, n: int) -> NDArray[np.float64]:
    """For each rank, lowest first, the chance that it is the best of n."""
    return np.array([math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)])


def best_of_kl(n: int) -> float:
    """Upper bound in nats on the KL divergence of best-of-n from its base: log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def quantiles(values: Sequence[float]) -> list[float]:
    """The report's quantiles, interpolated linearly; empty for no values."""
    return [float(q) for q in np.quantile(np.asarray(values, float), QUANTILES)] if len(values) else []


def mean_interval(values: Sequence[float], confidence: float) -> tuple[float, float, float] | None:
    """Mean of one value per prompt with its t interval; a single value is its own interval, none gives None."""
    if not values:
        return None
    array = np.asarray(values, float)
    mean = float(array.mean())
    if len(values) == 1:
        return mean, mean, mean
    reach = t_quantile(confidence, len(values) - 1) * float(array.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach


def within_sums(groups: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Σ(l - l̄)(s - s̄) and Σ(l - l̄)² with the means taken inside each prompt's list of (length, score)."""
    cross = square = 0.0
    for group in groups:
        pairs = np.asarray(group, float).reshape(-1, 2)
        centred = pairs - pairs.mean(axis=0) if len(pairs) else pairs
        cross += float((centred[:, 0] * centred[:, 1]).sum())
        square += float((centred[:, 0] ** 2).sum())
    return cross, square


def length_controlled(means: Mapping[int, tuple[float, float]], slope: float) -> dict[int, float]:
    """By iteration the mean score at the common length: score - slope · (length - mean length of all iterations), the
    adjusted means of an analysis of covariance. `means` holds (length, score)."""
    common = sum(length for length, _ in means.values()) / len(means) if means else 0.0
    return {k: score - slope * (length - common) for k, (length, score) in means.items()}


def thin(values: Sequence[Sequence[float]], most: int) -> list[tuple[float, float, float, float]]:
    """(x, y) points as at most about `most` buckets of neighbours: mean x, mean y, lowest y, highest y."""
    points = np.asarray(values, float).reshape(-1, 2)
    buckets = np.array_split(points, min(len(points), most)) if len(points) else []
    return [(float(x.mean()), float(y.mean()), float(y.min()), float(y.max())) for x, y in (b.T for b in buckets)]


def dpo_field(x1: float, x2: float, beta: float) -> tuple[float, float]:
    """∂L/∂x1 and ∂L/∂x2 of L = -log(x1^β / (x1^β + x2^β)), x = π / π_ref of the chosen and the rejected response
    (arXiv:2404.04626, Eq. 5)."""
    lost = 1 / (1 + (x1 / x2) ** beta)
    return -beta * lost / x1, beta * lost / x2
