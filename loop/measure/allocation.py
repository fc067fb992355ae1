"""Decide which prompts deserve more samples, given what a probe of a few responses showed of every prompt (pure).

A prompt's solve rate has a Beta prior, fitted to the probes of all prompts (empirical Bayes), so its further responses
are beta-binomial. r right and w wrong responses can be combined into r*w different pairs, of which at most `wanted` are
used. Responses go where they bring the most expected pairs per token, until the expected pairs reach the share
`keep` of what n responses to every prompt would bring.

DAPO (arXiv:2503.14476, section 3.2) samples on until enough prompts have both outcomes, and discards the others after
paying for all of their responses; here a prompt that is all right or all wrong after the probe is mostly left alone.
No prompt is excluded outright: the fitted prior says how often a one-sided probe misleads.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loop.seeds import hash_of

MEANS = tuple(i / 40 for i in range(1, 40))
CONCENTRATIONS = tuple(0.1 * 1.3**j for j in range(20))
"""The grid on which the prior is fitted: its mean, and its a + b from all-or-nothing (0.1) to nearly equal (15)."""
TINY = 1e-9
"""Expected pairs that count as none."""


class Beta(NamedTuple):
    """A distribution of solve rates."""

    a: float
    b: float


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe showed of one prompt."""

    prompt_id: str
    right: int
    wrong: int
    seen: int
    """All responses of the probe; those that can be in no pair are neither right nor wrong."""
    tokens: int
    """Their lengths, summed."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """How many more responses each prompt gets (those with none are left out), and the expectations behind it."""

    more: dict[str, int]
    prior: Beta
    expected: float
    """Pairs expected with these responses."""
    uniform: float
    """Pairs expected of n responses to every prompt."""

    @property
    def responses(self) -> int:
        """All that are added."""
        return sum(self.more.values())


class Step(NamedTuple):
    """From one number of further responses to a higher one, at the best gain per response on the way."""

    to: int
    added: int
    gain: float


def fit_prior(outcomes: Mapping[tuple[int, int], int]) -> Beta:
    """The Beta prior on the grid that makes the outcomes likeliest; `outcomes` counts prompts by (right, wrong)."""
    grid = [Beta(mean * size, (1 - mean) * size) for mean in MEANS for size in CONCENTRATIONS]
    return max(grid, key=lambda prior: sum(n * _log_likelihood(prior, r, w) for (r, w), n in sorted(outcomes.items())))


def _log_likelihood(prior: Beta, right: int, wrong: int) -> float:
    return _log_beta(prior.a + right, prior.b + wrong) - _log_beta(prior.a, prior.b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def chance(right: int, of: int, solve_rate: Beta) -> float:
    """Beta-binomial probability of `right` among the further responses."""
    ways = math.log(math.comb(of, right))
    return math.exp(ways + _log_likelihood(solve_rate, right, of - right))


def usable(right: int, wrong: int, wanted: int) -> int:
    """Different pairs that the responses can be combined into, as far as they are wanted."""
    return min(wanted, right * wrong)


def expected_pairs(right: int, wrong: int, *, room: int, wanted: int, prior: Beta) -> list[float]:
    """Expected usable pairs with 0, 1, ..., `room` further responses."""
    rate = Beta(prior.a + right, prior.b + wrong)
    return [
        sum(chance(x, m, rate) * usable(right + x, wrong + m - x, wanted) for x in range(m + 1))
        for m in range(room + 1)
    ]


def thinned(expected: Sequence[float], share: float) -> list[float]:
    """The same if each further response counts with this probability only: not if it is cut off, or not judged."""
    return [
        sum(math.comb(m, j) * share**j * (1 - share) ** (m - j) * expected[j] for j in range(m + 1))
        for m in range(len(expected))
    ]


def best_steps(expected: Sequence[float]) -> list[Step]:
    """The upper concave hull of the gains: steps whose gain per response falls, so that the best can be taken first.
    It matters where one more response brings next to nothing but several together do."""
    steps: list[Step] = []
    at = 0
    while at < len(expected) - 1:
        to = max(range(at + 1, len(expected)), key=lambda m: ((expected[m] - expected[at]) / (m - at), m))
        if expected[to] - expected[at] <= TINY:
            break
        steps.append(Step(to, to - at, expected[to] - expected[at]))
        at = to
    return steps


def allocate(
    probed: Sequence[ProbeResult], *, n: int, wanted: int, keep: float, budget: float = 1.0, seed: str = ""
) -> Allocation:
    """Further responses by prompt, at most n in all for each, and at most `budget` x n x prompts together. `wanted` is
    the most pairs a prompt is used for. Among prompts of equal promise the seed decides."""
    prior = fit_prior(Counter((one.right, one.wrong) for one in probed))
    fit = sum(p.right + p.wrong for p in probed) / max(1, sum(p.seen for p in probed))
    forecasts = {
        state: _forecast(*state, fit=fit, n=n, wanted=wanted, prior=prior) for state in {_state(p) for p in probed}
    }
    expected = math.fsum(forecasts[_state(p)][0] for p in probed)  # whatever the order of the prompts
    uniform = math.fsum(forecasts[_state(p)][-1] for p in probed)
    left = int(budget * n * len(probed) + TINY) - sum(p.seen for p in probed)
    more: dict[str, int] = {}
    for prompt_id, step in _ordered(probed, forecasts, seed):
        if expected >= keep * uniform - TINY or left <= 0:
            break
        added = min(step.added, left)
        more[prompt_id] = more.get(prompt_id, 0) + added
        expected += step.gain * added / step.added
        left -= added
    return Allocation({p.prompt_id: more[p.prompt_id] for p in probed if p.prompt_id in more}, prior, expected, uniform)


def _state(one: ProbeResult) -> tuple[int, int, int]:
    return one.right, one.wrong, one.seen


def _forecast(right: int, wrong: int, seen: int, *, fit: float, n: int, wanted: int, prior: Beta) -> list[float]:
    """Expected pairs by number of further responses. The share of them that can be in a pair is estimated from the
    prompt's probe and one response of the usual kind, of which the share `fit` can."""
    expected = expected_pairs(right, wrong, room=n - seen, wanted=wanted, prior=prior)
    return thinned(expected, (right + wrong + fit) / (seen + 1))


def _ordered(
    probed: Sequence[ProbeResult], forecasts: Mapping[tuple[int, int, int], Sequence[float]], seed: str
) -> list[tuple[str, Step]]:
    """Every prompt's steps, those with the most expected pairs per token first."""
    steps = {state: best_steps(forecast) for state, forecast in forecasts.items()}
    usual = sum(p.tokens for p in probed) / max(1, sum(p.seen for p in probed))
    ranked = [
        (-step.gain / step.added / _tokens(one, usual), step.to, hash_of(seed, one.prompt_id), one.prompt_id, step)
        for one in probed
        for step in steps[_state(one)]
    ]
    return [(prompt_id, step) for *_, prompt_id, step in sorted(ranked)]


def _tokens(one: ProbeResult, usual: float) -> float:
    """Tokens that a further response will take: the mean of the prompt's own and one usual one."""
    return (one.tokens + usual) / (one.seen + 1)


def usual_share(n: int, probe: int, *, wanted: int, keep: float, budget: float) -> float:
    """The share of n responses to every prompt that is sampled where solve rates are spread evenly from 0 to 1: what a
    plan can say before anything was sampled."""
    of_each = 40
    probed = [
        ProbeResult(f"{right}-{i}", right, probe - right, probe, probe)
        for right in range(probe + 1)
        for i in range(of_each)
    ]
    added = allocate(probed, n=n, wanted=wanted, keep=keep, budget=budget).responses
    return (probe * len(probed) + added) / (n * len(probed))
